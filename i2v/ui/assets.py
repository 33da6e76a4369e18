"""The framework's scripts and styles, answered from memory and kept by browsers for a year.

The framework opens a file in a thread for each of the ninety that a page takes, and lets browsers ask for all of them
again: a page load cost 0.24 s of the interpreter that the running job needs too. Their names hold a content hash.
"""

import mimetypes
from functools import lru_cache
from pathlib import Path

import gradio
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from i2v.errors import NotFound

FOLDER = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}


def add_assets(app: FastAPI) -> None:
    """Serve `/assets/...`; before the page is mounted, since a mount at `/` takes every path that is left."""
    app.add_route("/assets/{name:path}", asset, include_in_schema=False)


async def asset(request: Request) -> Response:
    """Only files that lie in the folder at start have a name here, so no path can lead out of it."""
    path = _files().get(request.path_params["name"])
    if path is None:
        raise NotFound("there is no such file")
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return Response(_content(path), media_type=kind, headers=FOREVER)


@lru_cache(maxsize=1)
def _files() -> dict[str, Path]:
    return {path.relative_to(FOLDER).as_posix(): path for path in FOLDER.rglob("*") if path.is_file()}


@lru_cache(maxsize=256)
def _content(path: Path) -> bytes:
    return path.read_bytes()
