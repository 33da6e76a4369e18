"""The page polls: no tab keeps a connection busy, so a stop of the server has nobody to wait for."""

import logging
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from i2v.settings import Settings
from tests.conftest import ROOT
from tests.serving import serving

pytestmark = pytest.mark.slow


def test_a_page_keeps_no_stream_open_and_nobody_can_open_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The framework held one for each tab; a stop cut it off after five seconds, with a long traceback in the log."""
    settings = Settings(outputs=tmp_path / "outputs", model="fake", min_free_mb=0, port=0)
    with serving(settings) as (address, server), httpx.Client(base_url=address, timeout=60) as tab:
        assert tab.get("/config").json()["connect_heartbeat"] is False
        assert tab.get("/gradio_api/heartbeat/a-tab").status_code == 404
        server.should_exit = True
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


STOPPED = """
import gc, pathlib, sys, time, weakref
from tests.ui.conftest import servers
with servers(pathlib.Path(sys.argv[1])) as start:
    queue = weakref.ref(start().queue)
del start
end = time.monotonic() + 60  # a thread may hold on to the last thing that it did for some seconds
while queue() is not None and time.monotonic() < end:
    gc.collect()
    time.sleep(0.1)
print(queue() is None)
"""


def test_a_stopped_server_leaves_neither_its_page_nor_its_queue_in_memory(tmp_path: Path) -> None:
    """In a process of its own: what other tests have left in this one may hold on to what it likes."""
    command = [sys.executable, "-c", STOPPED, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
