"""`/docs`: the API on one page that needs no other machine, made from the same schema as `/openapi.json`."""

import json
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from i2v.request import PublicLimits, default_of
from i2v.server.context import context_of, public_base

router = APIRouter()

_CSP = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'; base-uri 'none'; form-action 'none'"

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
pre {{ background: #f4f4f4; padding: .8rem; overflow-x: auto }} code {{ font-family: ui-monospace, monospace }}
h2 {{ margin-top: 2rem }} .method {{ font-weight: bold; margin-right: .5rem }} dt {{ font-weight: bold }}
@media (prefers-color-scheme: dark) {{ body {{ background: #181818; color: #ddd }} pre {{ background: #262626 }} }}
</style></head><body>
<h1>{title}</h1><p>{summary}. The machine-readable form is at <a href="/openapi.json">/openapi.json</a>.</p>
<h2>From the shell</h2><pre><code>{shell}</code></pre>
<h2>From Python</h2><pre><code>{python}</code></pre>
{routes}
<h2>Objects</h2>
{objects}
</body></html>"""

_SHELL = """curl {base}/api/predict/ -H 'Content-Type: application/json' -d @- <<EOF
{{"data": ["data:image/jpeg;base64,$(base64 -w0 photo.jpg)", "the scene at sunset", {values}]}}
EOF"""

_PYTHON = """import base64, requests

photo = "data:image/jpeg;base64," + base64.b64encode(open("photo.jpg", "rb").read()).decode()
answer = requests.post("{base}/api/predict/", json={{"data": [photo, "the scene at sunset", {values}]}})
print(answer.json()["data"])

from openai import OpenAI

videos = OpenAI(base_url="{base}/v1", api_key="the token, or any word where none is set").videos
video = videos.create_and_poll(prompt="the scene at sunset", input_reference=open("photo.jpg", "rb"))
videos.download_content(video.id).write_to_file("video.mp4")"""


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """The page; it loads nothing and runs no script."""
    schema = request.app.openapi()
    base, values = public_base(request), _values(context_of(request).settings.limits)
    page = _PAGE.format(
        title=escape(f"{schema['info']['title']} {schema['info']['version']}"),
        summary=escape(schema["info"].get("summary", "")),
        shell=escape(_SHELL.format(base=base, values=values)),
        python=escape(_PYTHON.format(base=base, values=values)),
        routes="\n".join(
            _route(path, method, operation)
            for path, operations in schema["paths"].items()
            for method, operation in operations.items()
        ),
        objects="\n".join(_object(name, found) for name, found in sorted(schema["components"]["schemas"].items())),
    )
    return HTMLResponse(page, headers={"Content-Security-Policy": _CSP})


def _values(limits: PublicLimits) -> str:
    """What follows the prompt in an example: the defaults, at a size that this operator allows."""
    usual = default_of("width")
    side = usual if usual in limits.resolutions else limits.resolutions[0]
    return ", ".join(map(str, (side, *map(default_of, ("num_frames", "fps", "steps", "guidance_scale")))))


def _route(path: str, method: str, operation: dict[str, Any]) -> str:
    """One operation: what it does, what it takes, what it answers."""
    parts = [f'<h2><span class="method">{method.upper()}</span><code>{escape(path)}</code></h2>']
    parts.append(f"<p>{escape(operation.get('description', operation.get('summary', '')))}</p>")
    parameters = operation.get("parameters", [])
    if parameters:
        items = (f"<dt>{escape(p['name'])} ({escape(p['in'])})</dt><dd>{_json(p['schema'])}</dd>" for p in parameters)
        parts.append(f"<dl>{''.join(items)}</dl>")
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<p>Body, {escape(kind)}: {_kind(content['schema'])}</p>")
    answers = operation.get("responses", {})
    items = (
        f"<dt>{escape(status)}</dt><dd>{escape(answer['description'])}{_contents(answer.get('content', {}))}</dd>"
        for status, answer in answers.items()
    )
    parts.append(f"<details><summary>Answers</summary><dl>{''.join(items)}</dl></details>")
    return "\n".join(parts)


def _contents(content: dict[str, Any]) -> str:
    """What an answer holds, by media type."""
    kinds = (f"{escape(kind)} {_kind(entry.get('schema', {}))}".strip() for kind, entry in content.items())
    return f" ({', '.join(kinds)})" if content else ""


def _object(name: str, schema: dict[str, Any]) -> str:
    """One object by name: a line for each field, and the whole schema below."""
    needed = schema.get("required", ())
    items = (
        f"<dt><code>{escape(field)}</code>: {_kind(found)}{'' if field in needed else ', may be left out'}</dt>"
        f"<dd>{escape(found.get('description', ''))}</dd>"
        for field, found in schema.get("properties", {}).items()
    )
    return (
        f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{escape(schema.get("description", ""))}</p>'
        f"<dl>{''.join(items)}</dl><details><summary>Schema</summary><pre>{_json(schema)}</pre></details>"
    )


def _kind(schema: dict[str, Any]) -> str:
    """A value's type in a few words; an object is a link to its description on this page."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_kind(part) for part in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return escape(", ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")])))
    if "items" in schema:
        return f"list of {_kind(schema['items'])}"
    ends = [schema.get(end) for end in ("minimum", "maximum")]
    words = f" {ends[0]:g} to {ends[1]:.16g}" if None not in ends else ""
    return escape(f"{schema.get('type', '')}{words}")


def _json(value: Any) -> str:
    return escape(json.dumps(value, indent=2, ensure_ascii=False))
