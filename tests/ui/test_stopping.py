"""The page polls: no tab keeps a connection busy, so a stop of the server has nobody to wait for."""

import gc
import logging
import weakref
from pathlib import Path

import httpx
import pytest

from i2v.settings import Settings
from tests.serving import serving
from tests.ui.conftest import servers


def test_a_page_keeps_no_stream_open_and_nobody_can_open_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The framework held one for each tab; a stop cut it off after five seconds, with a long traceback in the log."""
    settings = Settings(outputs=tmp_path / "outputs", model="fake", min_free_mb=0, port=0)
    with serving(settings) as (address, server), httpx.Client(base_url=address, timeout=60) as tab:
        assert tab.get("/config").json()["connect_heartbeat"] is False
        assert tab.get("/gradio_api/heartbeat/a-tab").status_code == 404
        server.should_exit = True
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_stopped_server_leaves_neither_its_page_nor_its_queue_in_memory(tmp_path: Path) -> None:
    with servers(tmp_path) as start:
        queue = weakref.ref(start().queue)
    del start
    gc.collect()
    assert queue() is None
