"""uvicorn's HTTP protocol with the bounds it lacks: clients that send nothing, too slowly, or do not read are cut off.

Written against uvicorn 0.54's `HttpToolsProtocol` (a C parser: a request costs less than half of what it costs with the
one in Python). Five rules: the head and the body of a request each arrive within `receive_timeout_s`; a head names one
host and is not endless, and neither is what stands between the pieces of a body; a client that takes nothing of its
answer for `receive_timeout_s` is cut off; when all places are taken, the longest idle connection makes room for a new
one; and where none is idle, a few more are let in to ask a probe and nothing else. Each connection is looked at four
times in `receive_timeout_s`, so it may have a quarter of that more.
"""

import asyncio
import json
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from i2v.errors import BadRequest, I2VError, NotReady
from i2v.server.answers import error_body
from i2v.server.clients import PROBES

MAX_PIPELINED = 100  # requests that wait for the answer before theirs; each is in memory before any guard sees it
PROBE_PLACES = 32  # connections beyond all places that may ask `PROBES`; the longest one makes room for the next
MAX_FRAMING = 64_000  # bytes in a row that do not end a request and hold nothing of a body; more is not HTTP

FULL = "too many open connections"


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

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._answering: Any = None  # the request cycle whose answer is due; those after it wait in `pipeline`
        self._framing = 0  # bytes since a request ended or a piece of a body came
        self._drained = 0  # how often the client has taken what filled the buffer
        self._awaited: tuple[object, ...] | None = None  # what the client has to do next, see `_note`
        self.since = 0.0  # when that began, by the clock of the event loop
        self._timer: asyncio.TimerHandle | None = None
        self.guest = False  # it came when all places were taken, and may ask a probe
        self._refusal: I2VError | None = None  # why a head was not taken, if not for its form

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        others = [one for one in self.connections if isinstance(one, BoundedProtocol)]
        if len(others) >= self.places:
            self._make_room(others)
        super().connection_made(transport)
        self._look()

    def _make_room(self, others: "list[BoundedProtocol]") -> None:
        """All places are taken: an idle connection goes, or this one is a guest, for whom a guest may have to go."""
        guests = [one for one in others if one.guest]
        if len(others) - len(guests) < self.places:
            return
        idle = [one for one in others if one.idle and not one.guest]
        if idle:
            oldest = min(idle, key=lambda one: one.since)
            oldest.transport.abort()
            self.connections.discard(oldest)
            return
        self.guest = True
        if len(guests) >= PROBE_PLACES:
            oldest = min(guests, key=lambda one: (not one.idle, one.since))
            oldest._refuse(NotReady(FULL, retry_after=5))
            self.connections.discard(oldest)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._abandon()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._framing += len(data)
        try:
            while data:
                data = self._feed(data)
        except httptools.HttpParserError:
            self._framing = MAX_FRAMING + 1
        if self._framing > MAX_FRAMING:
            self._refuse(self._refusal or BadRequest("the request is not valid HTTP"))

    def on_headers_complete(self) -> None:
        """The parser turns a `BadRequest` into an error of its own."""
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise BadRequest("a request names one Host")
        if len(self.pipeline) >= MAX_PIPELINED:
            raise BadRequest("too many requests at once")
        if self.parser.get_method() == b"CONNECT":
            raise BadRequest("this server is no proxy")
        self._take_authority()
        if self.guest and self.url.partition(b"?")[0].decode("latin-1") not in PROBES:
            self._refusal = NotReady(FULL, retry_after=5)
            raise self._refusal
        if not self.parser.should_upgrade():
            super().on_headers_complete()
            cycle: Any = self.cycle
            cycle.keep_alive = cycle.keep_alive and not self.guest
            self.headers = []  # the app has seen its own; what follows a chunked body is no header

    def _take_authority(self) -> None:
        """A target with a host of its own counts in place of the Host header (RFC 9112, 3.2.2), in every check.

        Raises `BadRequest` for one that is no http address.
        """
        if self.url[:1] in (b"/", b"*"):
            return
        target = httptools.parse_url(self.url)
        if target.schema.lower() not in (b"http", b"https") or not target.host or target.userinfo is not None:
            raise BadRequest("the address in the request line is none of this server's")
        host = b"[%b]" % target.host if b":" in target.host else target.host
        host += b"" if target.port is None else b":%d" % target.port
        self.headers[:] = [item for item in self.headers if item[0] != b"host"] + [(b"host", host)]

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._framing = 0

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()
        self._framing = 0

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._drained += 1

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    @property
    def idle(self) -> bool:
        """Whether the connection holds no request that is being answered."""
        return self.cycle is None or self.cycle.response_complete or self.transport.is_closing()

    def _feed(self, data: bytes) -> bytes:
        """Parses, and returns what has to be parsed again: the head of a request that offers another protocol, without
        its offer, and all that follows, its body included, which the parser hands over unread. A server need not take
        up such an offer (RFC 9110, 7.8). Raises `HttpParserError`.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            first = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
            kept = [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
            self.parser = httptools.HttpRequestParser(self)  # one that has seen the last request reads nothing more
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
            return b"\r\n".join([first, *kept, b"", data[offer.args[0] :]])
        return b""

    def _look(self) -> None:
        """Cut off a client that has had to do the same for too long. Runs as long as the connection is open."""
        self._note()
        if self._awaited is not None and self.loop.time() - self.since >= self.timeout_s:
            self._give_up(self._awaited[0])
        self._timer = self.loop.call_later(self.timeout_s / 4, self._look)

    def _note(self) -> None:
        """Note since when the client has had to do the same: take bytes of ours, or send a body or the next head."""
        cycle: Any = self.cycle
        awaited: tuple[object, ...] | None = None
        if self.flow.write_paused or self.transport.is_closing():
            awaited = ("take", self._drained)
        elif self.idle:
            awaited = ("head", cycle)
        elif cycle.more_body and not cycle.response_started and not self.pipeline:
            awaited = ("body", cycle)
        if awaited != self._awaited:
            self._awaited, self.since = awaited, self.loop.time()

    def _give_up(self, awaited: object) -> None:
        if awaited == "take":
            self.transport.abort()
        elif awaited == "head" and not self.guest:
            self.transport.close()
        elif awaited == "head":
            self._refuse(NotReady(FULL, retry_after=5))
        else:
            self._refuse(RequestTimeout(f"the request did not arrive within {self.timeout_s:g} s"))

    def _refuse(self, error: I2VError) -> None:
        """Answer outside of any route, unless another answer is under way, and close."""
        if not self._abandon():
            body = json.dumps(error_body(error, "")).encode("ascii")
            head = b"Content-Type: application/json\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n"
            if error.retry_after is not None:
                head += b"Retry-After: %d\r\n" % error.retry_after
            head += b"Content-Length: %d\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[error.status] + head + body)
        self.transport.close()

    def _abandon(self) -> bool:
        """Tell the request that is being answered that its client is gone. Returns whether its answer has begun."""
        cycle = self._answering
        self.pipeline.clear()
        if cycle is None or cycle.response_complete:
            return False
        cycle.disconnected = True
        cycle.message_event.set()
        return bool(cycle.response_started)
