"""What a stop means for the pages that are open."""

import logging
import threading
from pathlib import Path

import httpx
import pytest

from i2v.engine.fake import FakeEngine
from i2v.jobs.queue import JobQueue
from i2v.serve import Server, _listen
from i2v.server.app import create_app
from i2v.settings import Settings
from i2v.ui import mount_ui


def test_a_stop_ends_the_stream_of_an_open_page_without_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was cut off after five seconds, with a traceback of 7 kB in the log."""
    settings = Settings(outputs=tmp_path / "outputs", model="fake", min_free_mb=0, port=0)
    listener = _listen(settings)
    queue = JobQueue(settings, engine=FakeEngine())
    server = Server(settings, mount_ui(create_app(settings, queue), settings, queue), "here")
    up = threading.Event()
    server.once_listening = up.set
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert up.wait(60)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/gradio_api/heartbeat/a-tab"
        with httpx.stream("GET", address, timeout=60) as answer:
            lines = answer.iter_lines()
            assert "ALIVE" in next(lines)
            server.should_exit = True
            assert all(not line or "ALIVE" in line for line in lines)  # to an end of its own, not broken off
    finally:
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
