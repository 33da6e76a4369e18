"""Which of the framework's addresses answer: those that the page asks for, by method and path, and no other.

The framework brings about ninety routes: it encodes videos, holds streams open, edits its own program, lists what
ran. Here a request is looked at before the framework sees it, so a route that a new version adds stays closed.
"""

from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from i2v.errors import NotFound
from i2v.server.answers import UNKNOWN_PATH, error_answer

UPLOAD = "/gradio_api/upload"
PROGRESS = "/gradio_api/upload_progress"
OPEN = {  # path: methods. What asks for it, in the browser
    "/": ("GET", "HEAD"),
    "/config": ("GET",),  # the page's description, for who wants it apart from the page
    "/theme.css": ("GET",),
    "/favicon.ico": ("GET",),
    "/static/js/iframeResizer.contentWindow.min.js": ("GET",),
    "/gradio_api/app_id": ("GET",),  # a page whose server was away: is it the same one?
    "/gradio_api/run/predict": ("POST",),  # every event, see `i2v.ui.page.EVENT`
    UPLOAD: ("POST",),
}
OPEN_BELOW = {"/gradio_api/file=": ("GET", "HEAD")}  # uploads of this server, by their whole path


def is_open(method: str, path: str) -> bool:
    """Whether the framework may answer this. The page's scripts are not among it: `assets.py` has them."""
    allowed = OPEN.get(path)
    if allowed is None:
        allowed = next((methods for start, methods in OPEN_BELOW.items() if path.startswith(start)), ())
    return method in allowed


class Gate:
    """Stands around the mounted framework; whatever is not open is 404 in our own form.

    The bar of an upload is answered here, with its end: the framework holds a stream open until an upload under a name
    of the caller's choice is whole, and remembers each name that was ever asked for. Of an `Origin` it is not told,
    since it would let that page read the answer; who may write, `HeadGuard` has decided.
    """

    def __init__(self, framework: ASGIApp) -> None:
        self.framework = framework

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        method, path = scope["method"], scope["path"]
        if (method, path) == ("GET", PROGRESS):
            await Response(b'data: {"msg":"done"}\n\n', media_type="text/event-stream")(scope, receive, send)
        elif not is_open(method, path):
            await error_answer(NotFound(UNKNOWN_PATH), path)(scope, receive, send)
        else:
            shown: dict[str, Any] = {"headers": [item for item in scope["headers"] if item[0] != b"origin"]}
            if path == UPLOAD:
                shown["query_string"] = b""
            await self.framework({**scope, **shown}, receive, send)
