"""The framework's page, scripts and styles, answered from memory; browsers keep the scripts for a year.

A first visit asks for some ninety files and the page itself. The framework opens a file in a thread for each, has them
all asked for again at the next visit, and writes the page anew for everybody, though nothing in it changes while the
server runs: 0.24 s of the interpreter that a running job needs too. Here an answer is looked up before any route is
tried, and sent compressed where the browser allows it.
"""

import gzip
import mimetypes
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
from i2v.server.protocol import Ready, ready_answer
from i2v.server.security import is_short

FOLDER = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
PREFIX = "/assets/"
FOREVER = (b"cache-control", b"public, max-age=31536000, immutable")  # their names hold a content hash

PAGES = ("/", "/config", "/theme.css", "/static/js/iframeResizer.contentWindow.min.js")
SHAPES_A_PAGE = (b"host", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-prefix")  # headers in its addresses
CLOSED = ("/gradio_api/deep_link",)  # keeps what a session shows in a file, for a link that anyone may open
KEPT = 32  # answers; a few addresses and languages of one server

SMALL = 1000  # bytes that are not worth compressing
COMPRESSED_ALREADY = (".woff", ".woff2", ".png", ".jpg")

Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Kept:
    """One whole answer of status 200, as it is and compressed (None where that would not make it smaller)."""

    headers: tuple[Header, ...]  # without those that say how the body is encoded
    body: bytes
    packed: bytes | None

    @classmethod
    def of(cls, headers: list[Header], body: bytes, *, compress: bool = True) -> Self:
        packed = gzip.compress(body, 6, mtime=0) if compress and len(body) > SMALL else body
        return cls((*headers, (b"vary", b"accept-encoding")), body, packed if len(packed) < 0.9 * len(body) else None)

    def chosen(self, packed: bool) -> tuple[list[Header], bytes]:
        """The headers and the body for a client that takes gzip, or for one that does not."""
        body, headers = self.body, list(self.headers)
        if self.packed is not None and packed:
            body = self.packed
            headers.append((b"content-encoding", b"gzip"))
        headers.append((b"content-length", b"%d" % len(body)))
        return headers, body

    async def answer(self, scope: Scope, send: Send) -> None:
        headers, body = self.chosen(takes_gzip(scope["headers"]))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def takes_gzip(asked: Iterable[Header]) -> bool:
    """Whether these headers name gzip and do not refuse it by `q=0`."""
    for name, value in asked:
        if name == b"accept-encoding":
            words = [word.replace(b" ", b"") for word in value.lower().split(b",")]
            return any(word.partition(b";")[0] == b"gzip" and not word.endswith(b";q=0") for word in words)
    return False


class FromMemory:
    """A layer that answers `/assets/...` and the page itself, and hands on everything else.

    The page holds nothing of a visitor: what a tab shows comes through events. Its first answer is kept, for each
    address it is asked by and each model it is `written_for`. An answer that sets a cookie or is no whole 200 is not.
    """

    def __init__(self, app: ASGIApp, written_for: Callable[[], str | None]) -> None:
        self.app = app
        self.written_for = written_for
        self.pages: OrderedDict[tuple[object, ...], Kept] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            await self.app(scope, receive, send)
        elif scope["path"].startswith(PREFIX):
            await self._file(scope, receive, send)
        elif scope["path"] in CLOSED:
            await error_answer(NotFound("there is no such route"), scope["path"])(scope, receive, send)
        elif scope["path"] in PAGES and scope["method"] == "GET":
            await self._page(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _file(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path"][len(PREFIX) :]
        kept = _KEPT.get(name)
        if kept is None:
            path = _files().get(name)
            if path is None:
                await error_answer(NotFound("there is no such file"), scope["path"])(scope, receive, send)
                return
            kept = _KEPT[name] = await run_in_threadpool(_read, path)
        await kept.answer(scope, send)

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
        kept = self.pages.get(key)
        if kept is not None:
            self.pages.move_to_end(key)
            await kept.answer(scope, send)
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


def at_hand(served: Callable[[bytes], bool], url: bytes, asked: list[Header]) -> Ready | None:
    """What the server sends for a file of the page that somebody has asked for before, see `i2v.server.protocol`.

    What the guard would refuse, a Host that is not `served` or too long a head, is left to it.
    """
    host = next((value for name, value in asked if name == b"host"), b"")
    if not url.startswith(b"/assets/") or not is_short(len(url), asked) or not served(host):
        return None
    name, packed = url[len(PREFIX) :].decode("latin-1"), takes_gzip(asked)
    if (name, packed) not in _READY:
        if (kept := _KEPT.get(name)) is None:
            return None
        _READY[name, packed] = ready_answer(*kept.chosen(packed))
    return _READY[name, packed]


def may_be_kept(messages: list[Message]) -> bool:
    """Whether these ASGI messages are one whole answer that is the same for everybody."""
    starts = [message for message in messages if message["type"] == "http.response.start"]
    bodies = [message for message in messages if message["type"] == "http.response.body"]
    if not starts or not bodies or bodies[-1].get("more_body", False) or starts[0]["status"] != 200:
        return False
    return not {name for name, _ in starts[0]["headers"]} & {b"set-cookie", b"content-encoding"}


def _joined(messages: list[Message]) -> Kept:
    own = (b"content-length", b"vary", b"x-request-id")  # the last is written by a layer outside, for each answer
    headers = [item for item in messages[0]["headers"] if item[0] not in own]
    return Kept.of(headers, b"".join(message.get("body", b"") for message in messages[1:]))


# The package's files do not change: one copy serves all servers of a process.
_KEPT: dict[str, Kept] = {}
_READY: dict[tuple[str, bool], Ready] = {}  # by name, and whether compressed


@lru_cache(maxsize=1)
def _files() -> dict[str, Path]:
    """Only files that lie in the folder at start have a name here, so no path can lead out of it."""
    return {path.relative_to(FOLDER).as_posix(): path for path in FOLDER.rglob("*") if path.is_file()}


def _read(path: Path) -> Kept:
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    if kind.startswith("text/"):
        kind += "; charset=utf-8"
    headers = [(b"content-type", kind.encode("ascii")), FOREVER]
    return Kept.of(headers, path.read_bytes(), compress=path.suffix not in COMPRESSED_ALREADY)
