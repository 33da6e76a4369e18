"""What a stop means for the pages that are open."""

import logging
from pathlib import Path

import httpx
import pytest

from i2v.settings import Settings
from tests.serving import serving


def test_a_stop_ends_the_stream_of_an_open_page_without_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was cut off after five seconds, with a traceback of 7 kB in the log."""
    settings = Settings(outputs=tmp_path / "outputs", model="fake", min_free_mb=0, port=0)
    with (
        serving(settings) as (address, server),
        httpx.stream("GET", f"{address}/gradio_api/heartbeat/a-tab", timeout=60) as answer,
    ):
        lines = answer.iter_lines()
        assert "ALIVE" in next(lines)
        server.should_exit = True
        assert all(not line or "ALIVE" in line for line in lines)  # to an end of its own, not broken off
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
