"""Fixtures around `live_server`: servers that are stopped after the module, and a check of health after each test."""

import contextlib
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.qa.live_server import LiveServer, start


@pytest.fixture(scope="module")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., LiveServer]]:
    """`start_server("--queue-length", "8", I2V_API_TOKEN="...")`; every server is stopped after the module."""
    with contextlib.ExitStack() as stack:

        def make(*flags: str, wait: bool = True, **variables: str) -> LiveServer:
            server = start(tmp_path_factory.mktemp("server"), *flags, wait=wait, **variables)
            stack.callback(server.stop, signal.SIGKILL)  # its good end is a test of its own
            return server

        yield make


@pytest.fixture(scope="module")
def server(start_server: Callable[..., LiveServer]) -> LiveServer:
    """One server for a module; a module with other wishes has its own fixture of this name."""
    return start_server("--no-ui")


@pytest.fixture
def healthy(server: LiveServer) -> Iterator[LiveServer]:
    """The module's server, which after the test must be ready, tidy and able to run a small job."""
    yield server
    assert server.ready()
    assert server.small_job().status_code == 200
    left = [path.name for path in server.outputs.iterdir() if path.suffix == ".part"]
    assert left == []
