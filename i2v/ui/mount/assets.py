"""The framework's page, scripts and styles, answered from memory; browsers keep the scripts for a year.

A first visit asks for about ninety files and the page itself. The framework opens each file in a thread, lets browsers
ask for all of them again at the next visit, and writes the page anew for everybody, though nothing in it changes while
the server runs: 0.24 s of the interpreter, which a running job needs too. Here an answer is looked up inside of the
guards and before any route is tried. Memory holds it once, compressed; the few clients that do not take gzip get it
unpacked.
"""

import gzip
import mimetypes
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

import gradio
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from i2v.errors import NotFound
from i2v.server.answers import error_answer

FOLDER = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
PREFIX = "/assets/"
FOREVER = (b"cache-control", b"public, max-age=31536000, immutable")  # their names hold a content hash

PAGES = ("/", "/config", "/theme.css", "/static/js/iframeResizer.contentWindow.min.js")
SHAPES_A_PAGE = (b"host", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-prefix")  # headers in its addresses
KEPT = 32  # answers; a few addresses and languages of one server

SMALL = 1000  # bytes that are not worth compressing
COMPRESSED_ALREADY = (".woff", ".woff2", ".png", ".jpg")

Header = tuple[bytes, bytes]
_ZERO = re.compile(rb"q\s*=\s*0*\.?0*")  # a weight of nothing, however it is written


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """One whole answer of status 200."""

    headers: tuple[Header, ...]  # without those that say how the body is encoded
    body: bytes
    packed: bool  # whether `body` is compressed

    @classmethod
    def of(cls, headers: list[Header], body: bytes, *, compress: bool = True) -> Self:
        """Stores `body` compressed where that makes it smaller by a tenth."""
        smaller = gzip.compress(body, 6, mtime=0) if compress and len(body) > SMALL else body
        packed = len(smaller) < 0.9 * len(body)
        return cls((*headers, (b"vary", b"accept-encoding")), smaller if packed else body, packed)

    async def answer(self, scope: Scope, send: Send) -> None:
        body, headers = self.body, list(self.headers)
        if self.packed and takes_gzip(scope["headers"]):
            headers.append((b"content-encoding", b"gzip"))
        elif self.packed:
            body = gzip.decompress(body)
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def takes_gzip(asked: Iterable[Header]) -> bool:
    """Whether `Accept-Encoding` names gzip with a weight that is not zero (RFC 9110, 12.5.3); `*` does not name it."""
    values = b",".join(value for name, value in asked if name == b"accept-encoding").lower()
    for item in values.split(b","):
        coding, *parameters = (part.strip() for part in item.split(b";"))
        if coding in (b"gzip", b"x-gzip"):
            return not any(_ZERO.fullmatch(part) for part in parameters)
    return False


class FromMemory:
    """A layer that answers `/assets/...` and the page itself, and hands on everything else.

    The page holds nothing of a visitor: what a tab shows comes through events. Its first answer is stored, for each
    address that it is asked by and each model that it is `written_for`; not one with a cookie, nor one that is no whole
    200.
    """

    def __init__(self, app: ASGIApp, written_for: Callable[[], str | None]) -> None:
        self.app = app
        self.written_for = written_for
        self.pages: OrderedDict[tuple[object, ...], StoredAnswer] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            await self.app(scope, receive, send)
        elif scope["path"].startswith(PREFIX):
            await self._file(scope, receive, send)
        elif scope["path"] in PAGES and scope["method"] == "GET":
            await self._page(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _file(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path"][len(PREFIX) :]
        stored = _STORED.get(name)
        if stored is None:
            path = _files().get(name)
            if path is None:
                await error_answer(NotFound("there is no such file"), scope["path"])(scope, receive, send)
                return
            stored = _STORED[name] = await run_in_threadpool(_read, path)
        await stored.answer(scope, send)

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        shaped = tuple(item for item in scope["headers"] if item[0] in SHAPES_A_PAGE)
        key = (
            self.written_for(),
            scope["path"],
            scope["query_string"],
            scope.get("scheme"),
            scope.get("root_path"),
            shaped,
        )
        stored = self.pages.get(key)
        if stored is not None:
            self.pages.move_to_end(key)
            await stored.answer(scope, send)
            return
        messages: list[Message] = []

        async def note(message: Message) -> None:
            messages.append(dict(message))
            await send(message)

        # Asked for uncompressed: the framework would otherwise pack each answer in its own way.
        plain = [item for item in scope["headers"] if item[0] != b"accept-encoding"]
        await self.app({**scope, "headers": plain}, receive, note)
        if may_be_kept(messages):
            self.pages[key] = _joined(messages)
            while len(self.pages) > KEPT:
                self.pages.popitem(last=False)


def may_be_kept(messages: list[Message]) -> bool:
    """Whether these ASGI messages are one whole answer that is the same for everybody."""
    starts = [message for message in messages if message["type"] == "http.response.start"]
    bodies = [message for message in messages if message["type"] == "http.response.body"]
    if not starts or not bodies or bodies[-1].get("more_body", False) or starts[0]["status"] != 200:
        return False
    return not {name for name, _ in starts[0]["headers"]} & {b"set-cookie", b"content-encoding"}


def _joined(messages: list[Message]) -> StoredAnswer:
    own = (b"content-length", b"vary", b"x-request-id")  # the last is written by a layer outside, for each answer
    headers = [item for item in messages[0]["headers"] if item[0] not in own]
    return StoredAnswer.of(headers, b"".join(message.get("body", b"") for message in messages[1:]))


# The package's files do not change: one copy serves all servers of a process.
_STORED: dict[str, StoredAnswer] = {}


@lru_cache(maxsize=1)
def _files() -> dict[str, Path]:
    """Only files that lie in the folder at start have a name here, so no path can lead out of it."""
    return {path.relative_to(FOLDER).as_posix(): path for path in FOLDER.rglob("*") if path.is_file()}


def _read(path: Path) -> StoredAnswer:
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    if kind.startswith("text/"):
        kind += "; charset=utf-8"
    headers = [(b"content-type", kind.encode("ascii")), FOREVER]
    return StoredAnswer.of(headers, path.read_bytes(), compress=path.suffix not in COMPRESSED_ALREADY)
