"""The stream that the framework keeps open for each tab ends when the server is asked to stop."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFIX = "/gradio_api/heartbeat/"


class EndWithServer:
    """A layer that tells the framework that the client is gone once the server stops, and ends its answer.

    It waits for the client alone: without this layer a stop with a page open took as long as it is allowed to, and left
    an error in the log.
    """

    def __init__(self, app: ASGIApp, stopping: asyncio.Event) -> None:
        self.app = app
        self.stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self.app(scope, receive, send)
            return
        is_open = False

        async def until_stopped() -> Message:
            stopped = asyncio.ensure_future(self.stopping.wait())
            received = asyncio.ensure_future(receive())
            try:
                await asyncio.wait({stopped, received}, return_when=asyncio.FIRST_COMPLETED)
                return received.result() if received.done() else {"type": "http.disconnect"}
            finally:
                stopped.cancel()
                received.cancel()

        async def watched(message: Message) -> None:
            nonlocal is_open
            is_open = message["type"] == "http.response.start" or message.get("more_body", False)
            await send(message)

        await self.app(scope, until_stopped, watched)
        if is_open and self.stopping.is_set():
            await send({"type": "http.response.body", "body": b""})
