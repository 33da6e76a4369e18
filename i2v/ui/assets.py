"""The framework's page, scripts and styles, answered from memory; browsers keep the scripts for a year.

The framework opens a file in a thread for each of the ninety that a page takes, and lets browsers ask for all of them
again: a page load cost 0.24 s of the interpreter that the running job needs too. Their names hold a content hash. It
also writes the page and its config anew for each visit, 6 to 7 ms each, though nothing in them changes while the server
runs.
"""

import mimetypes
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path

import gradio
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from i2v.errors import NotFound

FOLDER = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}

PAGES = ("/", "/config")
SHAPES_A_PAGE = (b"host", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-prefix")  # headers in its addresses
KEPT = 32  # answers; a few addresses and languages of one server


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


class KeptPages:
    """The mounted page with its first answers to `/` and `/config` kept, for each address it is asked by.

    The page holds nothing of a visitor: what a tab shows comes through events. An answer that sets a cookie or is no
    200 is not kept.
    """

    def __init__(self, page: ASGIApp) -> None:
        self.page = page
        self.kept: OrderedDict[tuple[object, ...], list[Message]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] not in PAGES:
            await self.page(scope, receive, send)
            return
        shaped = tuple(item for item in scope["headers"] if item[0] in SHAPES_A_PAGE)
        key = (scope["path"], scope["query_string"], scope.get("scheme"), scope.get("root_path"), shaped)
        if key not in self.kept:
            messages: list[Message] = []

            async def note(message: Message) -> None:
                messages.append(copied(message))
                await send(message)

            await self.page(scope, receive, note)
            if may_be_kept(messages):
                self.kept[key] = messages
                while len(self.kept) > KEPT:
                    self.kept.popitem(last=False)
            return
        self.kept.move_to_end(key)
        for message in list(self.kept[key]):
            await send(copied(message))


def copied(message: Message) -> Message:
    """A message that those who pass it on may write into, as they do with its headers."""
    return {**message, "headers": list(message["headers"])} if "headers" in message else dict(message)


def may_be_kept(messages: list[Message]) -> bool:
    """Whether these ASGI messages are one whole answer that is the same for everybody."""
    starts = [message for message in messages if message["type"] == "http.response.start"]
    bodies = [message for message in messages if message["type"] == "http.response.body"]
    whole = bool(starts and bodies) and not bodies[-1].get("more_body", False)
    return whole and starts[0]["status"] == 200 and not any(name == b"set-cookie" for name, _ in starts[0]["headers"])


def keep_pages(app: FastAPI) -> None:
    """Answer the page that was mounted last from memory."""
    mount = app.routes[-1]
    if not isinstance(mount, Mount):
        raise RuntimeError("the page is not the last route; mount it after all others")
    mount.app = KeptPages(mount.app)
