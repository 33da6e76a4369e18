"""How many bytes of request bodies the server holds: of one body, of one client's, of all. A pure ASGI layer.

It covers every route, the page's uploads and the framework's forms alike: what has arrived counts, from its first byte
until the route has let the body go or has answered. Nobody waits for room, so nothing can stand still: who exceeds it
is refused, and what that one held is free.
"""

from collections import Counter
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from i2v.decoding_room import give_back
from i2v.errors import BodyTooLarge, I2VError, Unavailable
from i2v.server.answers import error_answer
from i2v.server.clients import client_of
from i2v.settings import Settings

MB = 1_000_000
MUCH = 50 * MB  # held at once; once all of that is free, it is given back to the system
RETRY_S = 5

LET_GO = "i2v.let_go"  # in the scope: a route that goes on without its body calls it


class _Refused(Exception):
    """Raised into the app that reads a body which is not taken."""


class BodyLimit:
    """Bodies of at most `max_body_mb`, and `max_bodies_mb` of all at once, of which one client has half.

    A body that is larger by its own word is refused unread, any other as soon as it exceeds one of the three. One body
    always fits. The framework's own limit answers in plain text; this one keeps the server's error form.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self.app = app
        self.limit = int(settings.max_body_mb * MB)
        self.room = max(self.limit, int(settings.max_bodies_mb * MB))
        self.share = max(self.limit, self.room // 2)
        self.too_large = BodyTooLarge(f"the request body is larger than {settings.max_body_mb:g} MB")
        self.no_room = Unavailable("other requests' bodies fill the room for them now", retry_after=RETRY_S)
        self.held: Counter[str] = Counter()  # bytes by client; nobody who holds none is in it
        self.total = 0
        self._most = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal() or int(declared[:20]) > self.limit:
            await error_answer(self.too_large, scope["path"])(scope, receive, send)
            return
        client = client_of(scope)
        received = holds = 0
        refusal: I2VError | None = None
        answered = False

        async def counted() -> Message:
            nonlocal received, holds, refusal
            message = await receive()
            size = len(message.get("body", b""))
            received, holds = received + size, holds + size
            self._count(client, size)
            if received > self.limit:
                refusal = self.too_large
            elif size and (self.total > self.room or self.held[client] > self.share):
                refusal = self.no_room
            if refusal is not None:
                release()
                raise _Refused
            return message

        async def watched(message: Message) -> None:
            nonlocal answered
            if refusal is None:
                answered = True
                await send(message)
            # After a refusal the app may turn our exception into an answer of its own; ours goes out instead.

        def release() -> None:
            nonlocal holds
            self._count(client, -holds)
            holds = 0

        scope[LET_GO] = release
        try:
            await self.app(scope, counted, watched)
        except Exception:
            if refusal is None:
                raise
        finally:
            release()
        if refusal is not None and not answered:
            await error_answer(refusal, scope["path"])(scope, receive, send)

    def _count(self, client: str, size: int) -> None:
        self.total += size
        self._most = max(self._most, self.total)
        self.held[client] += size
        if not self.held[client]:
            del self.held[client]
        if not self.total and self._most > MUCH:
            self._most = 0
            give_back()


def let_go(scope: Scope) -> None:
    """The route holds nothing of its body any more, and goes on for some time."""
    done: Callable[[], None] | None = scope.get(LET_GO)
    if done is not None:
        done()
