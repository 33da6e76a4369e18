"""The connections of the server as `i2v serve` opens them."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.requests import Request
from uvicorn.server import ServerState

from i2v.serve import Server
from i2v.server.clients import RequestShare
from i2v.server.context import caller_of
from i2v.server.protocol import PROBE_PLACES, BoundedProtocol, bounded_protocol
from i2v.settings import Settings
from tests.serving import serving


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_no_answer_waits_for_the_acknowledgement_of_its_first_half(tmp_path, host):
    """Each answer on a kept connection took 40 ms longer: Nagle's algorithm was on, for the listening socket was made
    here and without a protocol number, by which asyncio knows TCP."""
    settings = Settings(outputs=tmp_path / "outputs", model="fake", ui=False, min_free_mb=0, host=host, port=0)
    with serving(settings) as (address, server), httpx.Client(base_url=address) as client:
        assert client.get("/livez").status_code == 200
        open_ones = [one.transport.get_extra_info("socket") for one in server.server_state.connections]
        assert [one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for one in open_ones] == [1]


ASK = b"GET %b HTTP/1.1\r\nHost: localhost\r\n%b\r\n"
LARGE = b"x" * 1_000_000


go_on = asyncio.Event()  # lets the app answer `/slow`
told = asyncio.Event()  # `/listen` has heard that its client is gone


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/slow":
        await go_on.wait()
    if scope["path"] == "/listen":
        while (await receive())["type"] != "http.disconnect":
            pass
        told.set()
        return
    body = {"/large": LARGE, "/huge": 20 * LARGE}.get(scope["path"], scope["path"].encode())
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, BoundedProtocol]]:
    """One connection to a server, and that server's side of it."""
    config = uvicorn.Config(app, http=bounded_protocol(60.0, 10), log_config=None)
    config.load()
    make: Any = config.http_protocol_class
    protocol = make(config, ServerState(), {})
    server = await asyncio.get_running_loop().create_server(lambda: protocol, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    yield reader, writer, protocol
    writer.transport.abort()
    server.close()


async def bodies(reader: asyncio.StreamReader, count: int) -> list[bytes]:
    found = []
    for _ in range(count):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        found.append(await reader.readexactly(int(length.partition(b":")[2])))
    return found


async def test_answers_keep_the_order_of_their_requests():
    asked = [b"/small", b"/other", b"/small", b"/large", b"/small", b"/other"]
    async with connected() as (reader, writer, _):
        writer.write(b"".join(ASK % (target, b"") for target in asked))
        found = await bodies(reader, len(asked))
    assert found == [LARGE if target == b"/large" else target for target in asked]


async def test_each_request_has_its_own_time_to_arrive():
    async with connected() as (reader, writer, protocol):
        starts = [protocol.since]
        for _ in range(3):
            writer.write(ASK % (b"/small", b""))
            assert await bodies(reader, 1) == [b"/small"]
            starts.append(protocol.since)
        assert sorted(set(starts)) == starts


async def test_a_client_that_asks_and_does_not_read_fills_no_memory():
    async with connected() as (_, writer, protocol):  # a stream takes no more than its limit, 128 kB, unread
        writer.write(ASK % (b"/large", b"") * 100)
        while not (protocol.flow.write_paused or protocol.transport.is_closing()):
            await asyncio.sleep(0)
        for _ in range(1000):  # turns of the loop, in which the rest of the requests arrives
            await asyncio.sleep(0)
        assert protocol.transport.get_write_buffer_size() < 3 * len(LARGE)
        assert len(protocol.pipeline) <= 100


async def test_the_time_of_an_idle_connection_does_not_run_during_the_next_request():
    """What came in one piece with a request that was answered at once was cut off after five seconds."""
    async with connected() as (reader, writer, protocol):
        writer.write(ASK % (b"/small", b"") + ASK % (b"/slow", b""))
        assert await bodies(reader, 1) == [b"/small"]
        assert protocol.timeout_keep_alive_task is None
        go_on.set()
        assert await bodies(reader, 1) == [b"/slow"]


async def test_a_client_that_leaves_is_told_to_the_request_that_is_answered_and_the_next_one_is_dropped():
    async with connected() as (_, writer, protocol):
        writer.write(ASK % (b"/listen", b"") + ASK % (b"/other", b""))
        while not protocol.pipeline:
            await asyncio.sleep(0)
        writer.transport.abort()
        await told.wait()
        while protocol.pipeline:
            await asyncio.sleep(0)


async def test_a_closing_connection_does_not_wait_for_ever_for_a_client_that_reads_nothing():
    async with connected() as (_, writer, protocol):
        writer.write(ASK % (b"/huge", b"Connection: close\r\n"))
        while protocol.transport is None or not protocol.transport.get_write_buffer_size():
            await asyncio.sleep(0)
        while not protocol.transport.is_closing():
            await asyncio.sleep(0)
        protocol._look()
        assert protocol.transport.get_write_buffer_size() > 0
        protocol.since -= 60  # its time is up
        protocol._look()
        assert protocol.transport.get_write_buffer_size() == 0
        assert protocol.transport.is_closing()


MODELS = ASK % (b"/v1/models", b"")
DRIP = b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx"


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Callable[..., socket.socket], Server]]:
    """A server of 40 places, and connections to it that are closed in the end."""
    settings = Settings(
        outputs=tmp_path_factory.mktemp("few"), model="fake", ui=False, min_free_mb=0, port=0, max_connections=40
    )
    with ExitStack() as stack, serving(settings) as (address, server):

        def connect(number: int, data: bytes = b"") -> socket.socket:
            """From the machine's own address of that number, with `data` sent."""
            made = stack.enter_context(socket.socket())
            made.settimeout(30)
            made.bind((f"127.0.0.{number}", 0))
            made.connect(("127.0.0.1", int(address.rpartition(":")[2])))
            made.sendall(data)
            return made

        yield connect, server
        stack.close()


def status_of(connection: socket.socket) -> int:
    return int(connection.recv(12)[9:])


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def busy(server: Server) -> int:
    """Requests that are being answered."""
    open_ones = [one for one in list(server.server_state.connections) if isinstance(one, BoundedProtocol)]
    return sum(not one.idle for one in open_ones)


@pytest.mark.fault("F8", "350 dripping bodies on 300 places", before="/livez, /readyz and every route 503")
def test_one_address_takes_half_and_probes_are_answered_whoever_holds_the_rest(few: Any, record_property: Any) -> None:
    connect, server = few
    first = [connect(1, DRIP) for _ in range(20)]
    wait_until(lambda: busy(server) == 20)
    assert status_of(connect(1, DRIP)) == 503  # it has its half
    assert status_of(connect(2, MODELS)) == 200
    others = [connect(3 + number // 10, DRIP) for number in range(20)]
    wait_until(lambda: busy(server) == 40)
    silent = [connect(9) for _ in range(2 * PROBE_PLACES)]
    seen = {path: status_of(connect(1, ASK % (path, b""))) for path in (b"/livez", b"/readyz", b"/v1/models")}
    record_property("after", ", ".join(f"{path.decode()} {status}" for path, status in seen.items()))
    assert list(seen.values()) == [200, 200, 503]
    assert status_of(silent[0]) == 503  # the longest guest made room
    assert len(server.server_state.connections) <= 40 + PROBE_PLACES
    for connection in (*first, *others):
        connection.close()
    wait_until(lambda: busy(server) == 0)
    assert status_of(connect(1, MODELS)) == 200


@pytest.mark.fault("F8", "350 event streams on 300 places", before="/livez 503")
async def test_a_share_counts_what_goes_on_and_not_what_has_ended(record_property: Any) -> None:
    let_go = asyncio.Event()

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await let_go.wait()

    share, answers = RequestShare(stream, places=60), []

    async def ask(address: str, path: str = "/v1/videos/x/events") -> None:
        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answers.append(message["status"])

        await share({"type": "http", "path": path, "client": (address, 1)}, None, send)  # type: ignore[arg-type]

    asked = [asyncio.create_task(ask(f"2001:db8::{number:x}")) for number in range(40)]  # one customer's network
    asked += [asyncio.create_task(ask("192.0.2.1")), asyncio.create_task(ask("192.0.2.1", "/livez"))]
    for _ in range(10):
        await asyncio.sleep(0)
    assert answers == [503] * 10
    assert dict(share.going_on) == {"2001:db8::/64": 30, "192.0.2.1": 1}
    let_go.set()
    await asyncio.gather(*asked)
    assert share.going_on == {}
    record_property("after", "30 of 60 places for one address, others and probes are answered")


@pytest.mark.fault("absolute form", "GET http://other/ against Host: localhost", before="the Host header decided: 200")
@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://evil.example/v1/models", 403),
        (b"http://localhost/v1/models", 200),
        (b"HTTP://127.0.0.1:80/v1/models", 200),
        (b"http://[::1]:80/v1/models", 200),
        (b"http://user@localhost/v1/models", 400),
        (b"ftp://localhost/v1/models", 400),
        (b"http://localhost", 400),
        (b"localhost/v1/models", 400),
    ],
)
def test_the_host_of_the_request_line_is_the_one_that_is_checked(
    few: Any, target: bytes, status: int, record_property: Any
) -> None:
    connect, _ = few
    seen = status_of(connect(1, ASK % (target, b"")))
    assert seen == status
    other = b"GET %b HTTP/1.1\r\nHost: evil.example\r\n\r\n" % target
    assert status_of(connect(1, other)) == status
    record_property("after", f"{target.decode()}: {seen}")


def test_the_queue_counts_callers_as_the_doors_do():
    """One customer has a whole network of IPv6 addresses: a new one for each job is no new caller."""
    one, other = ("2001:db8:1:2::77", 1), ("2001:db8:1:2:ffff::1", 2)
    callers = {caller_of(Request({"type": "http", "client": client, "headers": []})) for client in (one, other)}
    assert callers == {"2001:db8:1:2::/64"}
