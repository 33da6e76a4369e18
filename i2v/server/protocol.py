"""uvicorn's HTTP protocol with the bounds it lacks: silent, dripping and never-reading clients are let go.

Written against uvicorn 0.54's `HttpToolsProtocol` (a C parser: a request costs less than half of what it costs with the
one in Python). Four rules: the head and the body of a request each arrive within `receive_timeout_s`; a head names one
host and is not endless, and neither is what stands between the pieces of a body; a client that reads nothing of its
answer for `receive_timeout_s` is cut off; when all places are taken, the longest-waiting idle connection makes room for
a new one.
"""

import asyncio
import json
import socket
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from i2v.errors import BadRequest, I2VError, NotReady
from i2v.server.answers import error_body

BUSY = NotReady("too many open connections", retry_after=5)
MAX_PIPELINED = 100  # requests that wait for the answer before theirs; each is in memory before any guard sees it
MAX_FRAMING = 64_000  # bytes in a row that neither begin nor end a request nor belong to its body; more is not HTTP


class RequestTimeout(I2VError):
    status, code = 408, "request_timeout"


def bounded_protocol(receive_timeout_s: float, max_connections: int) -> type[asyncio.Protocol]:
    """The protocol class for `uvicorn.Config(http=...)` with these bounds."""

    class Bounded(BoundedProtocol):
        timeout_s = receive_timeout_s
        places = max_connections

    return Bounded


class BoundedProtocol(HttpToolsProtocol):
    timeout_s: float
    places: int

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], **more: Any) -> None:
        super().__init__(config, server_state, app_state, **more)
        self._part: str | None = None  # "head" or "body" while one of them has begun to arrive and is not whole
        self._framing = 0  # bytes received since the last piece of news
        self._news = False  # whether the parser found a beginning, an end or a piece of a body in what it was fed
        self._answering: Any = None  # the request cycle whose answer is due; those after it wait in `pipeline`
        self._again = b""  # a head that offers another protocol, without the offer
        self._reading: asyncio.TimerHandle | None = None  # runs while the client owes us bytes
        self._owed_for: object = self  # the request cycle that `_reading` was started for
        self._writing: asyncio.TimerHandle | None = None  # runs while the client does not take ours

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        _send_at_once(transport)
        room = len(self.connections) < self.places or self._let_an_idle_one_go()
        super().connection_made(transport)
        if not room:
            self._refuse(BUSY)
            return
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._abandon()
        self._stop_reading_timer()
        self._stop_writing_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._news = False
        rest: bytes | None = data
        try:
            while rest is not None:
                rest = self._feed(rest)
        except httptools.HttpParserError:
            self.send_400_response("")
            return
        self._framing = 0 if self._news else self._framing + len(data)
        if self._framing > MAX_FRAMING:
            self.send_400_response("")
            return
        self._watch()

    def on_message_begin(self) -> None:
        self._unset_keepalive_if_required()  # armed by the answer to a request of the same piece of data
        super().on_message_begin()
        self._part, self._news = "head", True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._part == "head":  # what follows a chunked body is no header: the app has seen those already
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Raises `BadRequest` for a head without its one host and for one too many, which the parser turns into an
        error of its own."""
        hosts = sum(name == b"host" for name, _ in self.headers)
        if len(self.pipeline) >= MAX_PIPELINED:
            raise BadRequest("too many requests at once")
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise BadRequest("one Host is wanted")
        if self.parser.should_upgrade():
            self._again = self._head_without_offer()
            return
        super().on_headers_complete()
        self._part = "body"

    def on_body(self, body: bytes) -> None:
        self._news = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._again:
            return
        super().on_message_complete()
        self._part, self._news = None, True

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        async def watched(scope: Any, receive: Any, send: Any) -> None:
            try:
                await app(scope, receive, send)
            finally:
                if not cycle.response_complete:
                    self.loop.call_soon(self._watch)  # it broke off: uvicorn closes the connection now

        self._answering = cycle
        super()._start_asgi_task(cycle, watched)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self._writing or self.loop.call_later(self.timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        if not self.transport.is_closing():
            self._stop_writing_timer()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch()

    def shutdown(self) -> None:
        super().shutdown()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP is answered in the server's error form, and the connection closed."""
        self._refuse(BadRequest("the request is not valid HTTP"))

    @property
    def idle(self) -> bool:
        """Whether the connection holds no request that is being answered."""
        if self._answering is None or self.transport.is_closing():
            return True
        return bool(self._answering.response_complete and not self.pipeline)

    def _feed(self, data: bytes) -> bytes | None:
        """Parse; what is to be parsed again, where a request offers another protocol. Raises `HttpParserError`."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            again, self._again = self._again, b""
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
            return again + data[offer.args[0] :]
        return None

    def _head_without_offer(self) -> bytes:
        """The head again as plain HTTP: a server need not take up an offer to change protocols (RFC 9110, 7.8).

        The parser would hand over everything after such a head, the body of the request included.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise BadRequest("this is no proxy")
        kept = [(name, value) for name, value in self.headers if name not in (b"upgrade", b"http2-settings")]
        version = self.parser.get_http_version().encode("ascii")
        lines = [method + b" " + self.url + b" HTTP/" + version, *(name + b": " + value for name, value in kept)]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _watch(self) -> None:
        """Keep the receive deadline running exactly while the client owes bytes of one head or one body.

        A connection that is being closed waits for its client to take the rest; that has the same deadline.
        """
        if self.parser is None:  # lost
            return
        if self.transport.is_closing():
            self._abandon()
            self._stop_reading_timer()
            self._writing = self._writing or self.loop.call_later(self.timeout_s, self.transport.abort)
            return
        owes = self.idle or (self._part is not None and not self.pipeline)
        if not owes or self._owed_for is not self.cycle:
            self._stop_reading_timer()
        if owes and self._reading is None:
            self._owed_for = self.cycle
            self._reading = self.loop.call_later(self.timeout_s, self._too_slow)

    def _stop_reading_timer(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _stop_writing_timer(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _too_slow(self) -> None:
        self._reading = None
        if self.transport.is_closing():
            return
        if self.idle:
            self.transport.close()
            self._watch()
        elif self._part == "body" and not self.cycle.response_started:
            self._refuse(RequestTimeout(f"the request did not arrive within {self.timeout_s:g} s"))

    def _let_an_idle_one_go(self) -> bool:
        idle = [other for other in self.connections if isinstance(other, BoundedProtocol) and other.idle]
        oldest: BoundedProtocol | None = min(idle, key=_waiting_since, default=None)
        if oldest is None:
            return False
        oldest.transport.abort()
        self.connections.discard(oldest)
        return True

    def _refuse(self, error: I2VError) -> None:
        """Answer outside of any route, unless another answer is under way, and close."""
        if not self._abandon():
            self.transport.write(_whole_answer(error))
        self.transport.close()
        self._watch()

    def _abandon(self) -> bool:
        """Tell the requests that wait for an answer that it has nowhere to go. Returns whether one was under way."""
        waiting = [self._answering, *(cycle for cycle, _ in self.pipeline)]
        unanswered = [cycle for cycle in waiting if cycle is not None and not cycle.response_complete]
        for cycle in unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        self.pipeline.clear()
        return any(cycle.response_started for cycle in unanswered)


def _whole_answer(error: I2VError) -> bytes:
    body = json.dumps(error_body(error, "")).encode("ascii")
    head = [
        f"HTTP/1.1 {error.status} {_PHRASES[error.status]}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    if error.retry_after is not None:
        head.append(f"Retry-After: {error.retry_after}")
    return "\r\n".join(head).encode("ascii") + b"\r\n\r\n" + body


def _send_at_once(transport: asyncio.Transport) -> None:
    """Head and body of an answer are two writes: with Nagle's algorithm the second waits for the client's delayed
    acknowledgement of the first, 40 ms. asyncio turns it off only on sockets whose protocol number was spelt out.
    """
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


_PHRASES = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


def _waiting_since(connection: BoundedProtocol) -> float:
    timers = [timer.when() for timer in (connection._reading, connection.timeout_keep_alive_task) if timer]
    return min(timers, default=float("inf"))
