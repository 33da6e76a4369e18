"""Fixtures around `live_server`: servers that are stopped after the module, and a check of health after each test.

Before they are stopped, each server must have given back what the module's tests made it take.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.qa.footprint import Footprint, group_of, look_again
from tests.qa.live_server import LiveServer, start

LEFT = pytest.StashKey[list[tuple[str, ...]]]()


@pytest.fixture(scope="module")
def start_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., LiveServer]]:
    """`start_server("--queue-length", "8", I2V_API_TOKEN="...")`; every server is stopped after the module."""
    started: list[tuple[LiveServer, Footprint]] = []
    with contextlib.ExitStack() as stack:

        def make(*flags: str, wait: bool = True, **variables: str) -> LiveServer:
            server = start(tmp_path_factory.mktemp("server"), *flags, wait=wait, **variables)
            stack.callback(server.stop, signal.SIGKILL)  # its good end is a test of its own
            if token := variables.get("I2V_API_TOKEN"):
                server.session.headers["Authorization"] = f"Bearer {token}"
            if wait:
                started.append((server, Footprint.of(server)))
            return server

        yield make
        living = [(server, before) for server, before in started if server.process.poll() is None]
        rows = [look_again(server, before, group_of(request.module)) for server, before in living]
        request.node.stash[LEFT] = rows


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """The report of a module's end carries what its servers hold, for the table at the end of the run."""
    report = yield
    module = item.getparent(pytest.Module)
    if call.when == "teardown" and module is not None and (rows := module.stash.get(LEFT, None)):
        report.user_properties.append(("group", rows))
    return report


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
