"""The listening socket where descriptors are few, with real sockets and a real limit."""

import contextlib
import errno
import logging
import os
import resource
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from i2v import serve
from i2v.serve import _listen
from i2v.server import listener as module
from i2v.server.listener import A_TURN, SPARE_FILES, Listener, places_within_limit
from i2v.settings import Settings


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = _listen(Settings(model="fake", port=0))
    made.setblocking(False)
    with made:
        yield made


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 20, hard))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(taken[0]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in taken:
            os.close(one)


@pytest.mark.fault("F7", "1,100 sockets under a limit of 1,024 descriptors", before="dead at 99% CPU, 2 MB/s of log")
def test_connections_without_a_descriptor_are_closed_and_said_in_one_line(
    listener: Listener, caplog: pytest.LogCaptureFixture, record_property: Any
) -> None:
    address = listener.getsockname()[:2]
    with contextlib.ExitStack() as stack, caplog.at_level(logging.WARNING):
        clients = [stack.enter_context(socket.create_connection(address, timeout=30)) for _ in range(5)]
        with no_descriptor_left():
            for _ in clients:
                with pytest.raises(BlockingIOError):
                    listener.accept()
        assert [client.recv(1) for client in clients] == [b""] * 5
        assert len(caplog.records) == 1
        stack.enter_context(socket.create_connection(address, timeout=30))
        listener.accept()[0].close()
    record_property("after", f"{len(clients)} closed, {len(caplog.records)} line; a real server: 5% CPU, /livez 200")


def test_a_turn_of_the_loop_takes_a_few_connections(listener: Listener) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(A_TURN + 1):
            stack.enter_context(socket.create_connection(listener.getsockname()[:2], timeout=30))
        for _ in range(A_TURN):
            stack.enter_context(listener.accept()[0])
        with pytest.raises(BlockingIOError):
            listener.accept()
        stack.enter_context(listener.accept()[0])


@pytest.mark.fault("F7", "max_connections beyond the hard limit", before="1000 places, 1024 descriptors")
@pytest.mark.parametrize(
    ("limits", "wanted", "places"),
    [
        ((1024, 1024), 1000, 1024 - SPARE_FILES),
        ((1024, 4096), 1000, 1000),
        ((256, 256), 1000, 128),
        ((1024, resource.RLIM_INFINITY), 30_000, 30_000),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 1000, 1000),
        ((1024, 1024), 8, 8),
    ],
)
def test_there_are_as_many_places_as_there_are_descriptors(
    limits: tuple[int, int],
    wanted: int,
    places: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    record_property: Any,
) -> None:
    monkeypatch.setattr(module.resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(module.resource, "setrlimit", lambda *_: None)
    assert places_within_limit(wanted) == places
    assert len(caplog.records) == (places < wanted)
    record_property("after", f"{places} of {wanted} places under {limits[1]}")


def test_the_server_goes_by_the_places_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def listen(settings: Settings) -> None:
        seen.append(settings.max_connections)
        raise OSError(errno.EADDRINUSE, "stop here")

    monkeypatch.setattr(serve, "configure_logging", lambda *_, **__: None)  # of this process
    monkeypatch.setattr(serve, "SWITCH_S", sys.getswitchinterval())
    monkeypatch.setattr(serve, "places_within_limit", lambda wanted: wanted // 2)
    monkeypatch.setattr(serve, "_listen", listen)
    settings = Settings(outputs=tmp_path / "outputs", model="fake", ui=False, max_connections=80)
    assert serve.serve(settings) == serve.EXIT_FAILED
    assert seen == [40]
