"""The outermost ASGI layers: a request id and fixed headers on every answer, and JSON for an unexpected error.

They cover the mounted web page too. Who may ask is decided in `security.py`.
"""

import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from i2v.errors import I2VError, NotFound
from i2v.server.answers import UNEXPECTED, UNKNOWN_PATH, error_answer

log = logging.getLogger("i2v.server")

# Called once a request has been answered: method, route template, status (0: never answered), seconds.
OnAnswer = Callable[[str, str, int, float], None]

_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# No answer but the two pages, which set their own, is one that a browser should run anything for. It shows a video or a
# picture that is opened in a tab by a page of its own, which asks for that file again and sets styles.
POLICY = (
    b"default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
FIXED_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", POLICY),
)


class Stamp:
    """Request id and fixed headers on every answer, one log record and one measurement for each request."""

    def __init__(self, app: ASGIApp, *, on_answer: OnAnswer) -> None:
        self.app = app
        self.on_answer = on_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":  # no route here speaks it
            await send({"type": "websocket.close", "code": 1000})
            return
        its_id = scope["i2v.request_id"] = request_id(scope["headers"])
        started = time.perf_counter()
        status = 0

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _stamped(message.get("headers", ()), its_id)
            await send(message)

        try:
            await self.app(scope, receive, stamped)
        except Exception as error:
            if 0 < status < 500:  # it stopped in the middle; all that can be done is to end the connection
                log.warning("an answer stopped in the middle: %s", error, extra={"request": its_id})
                return
            log.exception("unexpected error", extra={"request": its_id})
            if not status:
                await error_answer(I2VError(UNEXPECTED), scope["path"])(scope, receive, stamped)
        finally:
            seconds = time.perf_counter() - started
            self.on_answer(scope["method"], route_of(scope), status, seconds)
            log.debug("%s %s %d", scope["method"], scope["path"], status, extra={"request": its_id, "s": seconds})


_OWN_WORDS = {404: NotFound(UNKNOWN_PATH), 500: I2VError(UNEXPECTED)}


class OwnWords:
    """A 404 or 500 of an app that is mounted inside ours, in its framework's words, becomes our own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        owner = scope.get("app")
        replaced = False

        async def own(message: Message) -> None:
            nonlocal replaced
            status = message.get("status")
            if status in _OWN_WORDS and scope.get("app") is not owner:
                replaced = True
                await error_answer(_OWN_WORDS[status], scope["path"])(scope, receive, send)
            elif not replaced:
                await send(message)

        await self.app(scope, receive, own if scope["type"] == "http" else send)


def _stamped(headers: Iterable[tuple[bytes, bytes]], its_id: str) -> list[tuple[bytes, bytes]]:
    """An answer's own headers (ASGI has their names in lower case), the fixed ones that it does not set, and the id."""
    own = [item for item in headers if item[0] != b"x-request-id"]
    names = {name for name, _ in own}
    fixed = (item for item in FIXED_HEADERS if item[0] not in names)
    return [*own, *fixed, (b"x-request-id", its_id.encode("ascii"))]


def route_of(scope: Scope) -> str:
    """The template of the route that answered, for labels with a bounded number of values."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) and path else "other"


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's own id where it is a plain word, so that both logs can be matched; a fresh one otherwise."""
    given = next((value for name, value in headers if name == b"x-request-id"), b"").decode("latin-1")
    return given if _PLAIN.fullmatch(given) else f"req_{uuid.uuid4().hex}"
