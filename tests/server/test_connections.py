"""The connections of the server as `i2v serve` opens them."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from i2v.server.protocol import BoundedProtocol, bounded_protocol
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
