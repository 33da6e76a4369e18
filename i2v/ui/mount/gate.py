"""Which of the framework's addresses answer: those that the page asks for, by method and path, and no other.

The framework brings about eighty routes: it encodes videos, holds streams open, edits its own program, lists what
ran. Here a request is looked at before the framework sees it, so a route that a new version adds stays closed.
"""

from typing import Any

from fastapi import Request
from gradio.routes import App
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from i2v.errors import BadRequest, BodyTooLarge, I2VError, MethodNotAllowed, NotFound
from i2v.server.answers import UNKNOWN_PATH, error_answer
from i2v.server.body import refuse_compressed, whole
from i2v.ui.mount.events import MAX_EVENT, read_event, refusals_noted
from i2v.ui.mount.policy import policy_of
from i2v.ui.mount.upload_total import UploadTotal

EVENT = "/gradio_api/run/predict"
UPLOAD = "/gradio_api/upload"
PROGRESS = "/gradio_api/upload_progress"
OPEN = {  # path: methods. What asks for it, in the browser
    "/": ("GET", "HEAD"),
    "/config": ("GET",),  # the page's description, for who wants it apart from the page
    "/theme.css": ("GET",),
    "/favicon.ico": ("GET",),
    "/static/js/iframeResizer.contentWindow.min.js": ("GET",),
    "/gradio_api/app_id": ("GET",),  # a page whose server was away: is it the same one?
    EVENT: ("POST",),  # every event, see `i2v.ui.page.EVENT`
    UPLOAD: ("POST",),
}
OPEN_BELOW = {"/gradio_api/file=": ("GET", "HEAD")}  # uploads of this server, by their whole path


def methods_of(path: str) -> tuple[str, ...]:
    """What the framework may answer at this path. The page's scripts are not among it: `assets.py` has them."""
    if path in OPEN:
        return OPEN[path]
    return next((methods for start, methods in OPEN_BELOW.items() if path.startswith(start)), ())


class Gate:
    """Stands around the mounted framework; whatever is not open is 404 or 405 in our own form, and so is what the
    framework refuses: its own words repeat the path that was asked for.

    The bar of an upload is answered here, with its end: the framework holds a stream open until an upload under a name
    of the caller's choice is whole, and remembers each name that was ever asked for. Of an `Origin` it is not told,
    since it would let that page read the answer; who may write, `HeadGuard` has decided.
    """

    def __init__(self, framework: App, uploads: UploadTotal, largest: int) -> None:
        self.framework = framework
        self.uploads = uploads
        self.largest = largest  # bytes of one upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        method, path = scope["method"], scope["path"]
        shown: dict[str, Any] = {"headers": [item for item in scope["headers"] if item[0] != b"origin"]}
        if (method, path) == ("GET", PROGRESS):
            await Response(b'data: {"msg":"done"}\n\n', media_type="text/event-stream")(scope, receive, send)
        elif not (allowed := methods_of(path)):
            await error_answer(NotFound(UNKNOWN_PATH), path)(scope, receive, send)
        elif method not in allowed:
            allow = ", ".join(allowed)
            error = MethodNotAllowed(f"this path takes {allow}")
            await error_answer(error, path, {"Allow": allow})(scope, receive, send)
        elif (method, path) == ("GET", "/"):
            await self._page({**scope, **shown}, receive, send)
        elif path == EVENT:
            await self._event({**scope, **shown}, receive, send)
        elif path == UPLOAD:
            await self._upload({**scope, **shown, "query_string": b""}, receive, send)
        else:
            await self._ask({**scope, **shown}, receive, send, NotFound(UNKNOWN_PATH))

    async def _ask(self, scope: Scope, receive: Receive, send: Send, refusal: I2VError) -> None:
        """The framework's answer, or `refusal` where it refuses."""
        refused = False

        async def in_our_words(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] in range(400, 500):
                refused = message["status"] != 416
                if refused:
                    await error_answer(refusal, scope["path"])(scope, receive, send)
            if not refused:
                await send(message)

        await self.framework(scope, receive, in_our_words)

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """With a policy for the scripts that stand in it, which differ by address and model."""
        plain = [item for item in scope["headers"] if item[0] != b"accept-encoding"]
        start: Message = {}
        body = b""

        async def policed(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            body += message.get("body", b"")
            if message.get("more_body", False):
                return
            policy = policy_of(body.decode("utf-8", "replace") + self.framework.get_blocks().head)
            headers = [*start["headers"], (b"content-security-policy", policy.encode("ascii"))]
            await send({**start, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        await self.framework({**scope, "headers": plain}, receive, policed)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        size = int(declared) if declared.isdigit() else self.largest
        try:
            await run_in_threadpool(self.uploads.make_room, size)
        except I2VError as error:
            await error_answer(error, UPLOAD)(scope, receive, send)
            return
        try:
            await self._ask(scope, receive, send, BadRequest("an upload is a form with files, as the page sends it"))
        finally:
            self.uploads.arrived(size)

    async def _event(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = read_event(self.framework.get_blocks(), await _short_body(Request(scope, receive)))
        except I2VError as error:
            await error_answer(error, EVENT)(scope, receive, send)
            return
        told = [item for item in scope["headers"] if item[0] not in (b"content-length", b"content-type")]
        told += [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        handed = False

        async def again() -> Message:
            nonlocal handed
            if handed:
                return await receive()
            handed = True
            return {"type": "http.request", "body": body, "more_body": False}

        with refusals_noted() as noted:

            async def send_unless_refused(message: Message) -> None:
                if not noted:
                    await send(message)
                elif message["type"] == "http.response.start":
                    await error_answer(noted[0], EVENT)(scope, receive, send)

            await self.framework({**scope, "headers": told}, again, send_unless_refused)


async def _short_body(request: Request) -> bytes:
    """Raises `BadRequest`, and `BodyTooLarge` for more than `MAX_EVENT` bytes."""
    refuse_compressed(request)
    body = b""
    with whole():
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_EVENT:
                raise BodyTooLarge(f"an event of the page has at most {MAX_EVENT:,} bytes")
    return body
