"""The page in a server of its own process, as an operator starts it: its temporary folder, what it takes idle."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import requests

from tests.qa.live_server import LiveServer, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for temporary files in which the framework's own cannot be made."""
    folder = tmp_path_factory.mktemp("temporary")
    (folder / "gradio").write_text("no folder")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, temporary: Path) -> Iterator[LiveServer]:
    server = start(tmp_path_factory.mktemp("server"), TMPDIR=str(temporary), GRADIO_TEMP_DIR="")
    yield server
    server.stop()


@pytest.mark.fault("F2", "/tmp/gradio belongs to somebody else", before="no start: NotADirectoryError, PermissionError")
def test_it_starts_where_the_frameworks_folder_cannot_be_made(
    server: LiveServer, temporary: Path, record_property: Callable[[str, object], None]
) -> None:
    """The framework reads the name of its folder while it is imported; it was set after that."""
    answer = requests.post(f"{server.url}/gradio_api/upload", files={"files": ("a.png", b"123")}, timeout=60)
    folder = Path(answer.json()[0]).parents[1]
    assert folder.parent == temporary
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.stat().st_uid == os.getuid()
    assert {path.name for path in temporary.iterdir()} <= {"gradio", folder.name}
    assert (temporary / "gradio").read_text() == "no folder"
    record_property("after", f"starts, uploads in {folder.name[:12]}*, mode {folder.stat().st_mode & 0o777:o}")


@pytest.mark.fault("F2", "GRADIO_TEMP_DIR cannot be written", before="a traceback of forty lines")
def test_a_temporary_folder_that_cannot_be_made_is_one_sentence(
    tmp_path: Path, temporary: Path, record_property: Callable[[str, object], None]
) -> None:
    server = start(tmp_path, wait=False, GRADIO_TEMP_DIR=str(temporary / "gradio" / "below"))
    code = server.process.wait(90)
    server.stop()
    record_property("after", f"exit code {code}, {len(server.log.splitlines())} line")
    assert code == 1
    assert len(server.log.splitlines()) == 1
    assert "set TMPDIR" in server.log


def used(process: psutil.Process) -> float:
    """Seconds of processor time so far, of all its threads."""
    times = process.cpu_times()
    return times.user + times.system


@pytest.mark.fault("idle", "nobody is connected", before="5 to 7% of a core")
def test_an_idle_server_takes_hardly_any_processor_time(
    server: LiveServer, record_property: Callable[[str, object], None]
) -> None:
    """The framework's queue looked a thousand times a second whether somebody had come."""
    assert requests.get(server.url, timeout=30).status_code == 200
    process, seconds = psutil.Process(server.process.pid), 3.0
    shares: list[float] = []
    deadline = time.monotonic() + 60
    while not shares or (min(shares) >= 0.01 and time.monotonic() < deadline):  # what the start has left to do ends
        before, started = used(process), time.monotonic()
        time.sleep(seconds)
        shares.append((used(process) - before) / (time.monotonic() - started))
    record_property("after", f"{100 * min(shares):.2f}% of a core")
    assert min(shares) < 0.01
    look = {"fn_index": 0, "session_hash": "a", "data": []}
    assert requests.post(f"{server.url}/gradio_api/queue/join", json=look, timeout=30).status_code == 404


@pytest.mark.fault("stop", "SIGTERM to an idle server with a page", before="0.6 s of a core, with the demo model 1.7")
def test_a_stop_does_not_look_through_all_that_the_libraries_made(
    server: LiveServer, record_property: Callable[[str, object], None]
) -> None:
    """The last test of this file: it ends the server. What a process used can be read until it is waited for."""
    process = psutil.Process(server.process.pid)
    before = used(process)
    process.terminate()
    deadline = time.monotonic() + 60
    while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    took = used(process) - before
    record_property("after", f"{took:.2f} s of a core")
    assert server.process.wait(60) == 0
    assert took < 0.4
