"""uvicorn's HTTP protocol with the deadlines it lacks: silent, dripping and never-reading clients are let go.

Written against uvicorn 0.54's `H11Protocol`, whose parser and state it watches and does not change. Three rules:
the head and the body of a request each arrive within `receive_timeout_s`; a client that reads nothing of its answer
for that long is cut off; when all places are taken, the longest-waiting idle connection makes room for a new one.
"""

import asyncio
import json
import socket
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from i2v.errors import BadRequest, I2VError, NotReady
from i2v.server.answers import error_body

BUSY = NotReady("too many open connections", retry_after=5)


class RequestTimeout(I2VError):
    status, code = 408, "request_timeout"


def bounded_protocol(receive_timeout_s: float, max_connections: int) -> type[asyncio.Protocol]:
    """The protocol class for `uvicorn.Config(http=...)` with these bounds."""

    class Bounded(BoundedProtocol):
        timeout_s = receive_timeout_s
        places = max_connections

    return Bounded


class BoundedProtocol(H11Protocol):
    timeout_s: float
    places: int

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], **more: Any) -> None:
        super().__init__(config, server_state, app_state, **more)
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
        self._stop_reading_timer()
        self._stop_writing_timer()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self._writing or self.loop.call_later(self.timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_writing_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP is answered in the server's error form, and the connection closed."""
        self._refuse(BadRequest("the request is not valid HTTP"))

    @property
    def idle(self) -> bool:
        """Whether the connection holds no request that is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        """Keep the receive deadline running exactly while the client owes bytes of one head or one body."""
        owes = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        if not owes or self._owed_for is not self.cycle:
            self._stop_reading_timer()
        if owes and self._reading is None and not self.transport.is_closing():
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
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and self.conn.their_state is h11.SEND_BODY:
            self._refuse(RequestTimeout(f"the request did not arrive within {self.timeout_s:g} s"))
        elif self.idle:
            self.transport.close()

    def _let_an_idle_one_go(self) -> bool:
        idle = [other for other in self.connections if isinstance(other, BoundedProtocol) and other.idle]
        oldest: BoundedProtocol | None = min(idle, key=_waiting_since, default=None)
        if oldest is None:
            return False
        oldest.transport.abort()
        self.connections.discard(oldest)
        return True

    def _refuse(self, error: I2VError) -> None:
        """Answer outside of any route, and close."""
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
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the app's own answer, should it come, has nowhere to go
            self.cycle.message_event.set()
        self.transport.write("\r\n".join(head).encode("ascii") + b"\r\n\r\n" + body)
        self.transport.close()


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
