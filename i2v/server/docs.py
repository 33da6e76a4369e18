"""`/docs`: the API on one page that needs no other machine, `docs.html` around the schema of `/openapi.json`."""

import json
from functools import partial
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.templating import Jinja2Templates

from i2v.request import PublicLimits, default_of
from i2v.server.context import context_of, public_base

router = APIRouter()

_CSP = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
_TEMPLATES = Jinja2Templates(Path(__file__).parent)


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """The page; it loads nothing and runs no script."""
    found = {
        "schema": request.app.openapi(),
        "base": public_base(request),
        "values": _values(context_of(request).settings.limits),
        "json": partial(json.dumps, indent=2, ensure_ascii=False),
    }
    return _TEMPLATES.TemplateResponse(request, "docs.html", found, headers={"Content-Security-Policy": _CSP})


def _values(limits: PublicLimits) -> str:
    """What follows the prompt in an example: the defaults, at a size that this operator allows."""
    usual = default_of("width")
    side = usual if usual in limits.resolutions else limits.resolutions[0]
    return ", ".join(map(str, (side, *map(default_of, ("num_frames", "fps", "steps", "guidance_scale")))))
