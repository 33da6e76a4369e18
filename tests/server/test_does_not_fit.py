"""A job that memory cannot hold, asked for at every door of a server with a real engine on a pretended small card."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from i2v.engine import Engine
from i2v.jobs.queue import JobQueue

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def loaded() -> Engine:
    return Engine.load("demo", device="cpu", max_vram_gb=1)


@pytest.fixture
def engine(loaded: Engine) -> Engine:
    return loaded


async def test_what_cannot_fit_is_refused_with_the_largest_that_would(
    client: httpx.AsyncClient, queue: JobQueue, small_url: str
) -> None:
    asked = {"prompt": "night falls", "size": "1280x704", "num_frames": 32}
    answer = await client.post("/v1/videos", json={**asked, "input_reference": {"image_url": small_url}})
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error["code"] == "does_not_fit"
    assert error["param"] in ("num_frames", "width")
    assert "1280x704 with 32 frames needs about" in error["message"]
    assert "the largest that fits is" in error["message"]
    assert queue.list() == []


async def test_predict_refuses_it_alike(predict: Callable[..., Any], small_url: str) -> None:
    answer = await predict([small_url, "night falls", 768, 32, 8, 10, 7.5])
    assert answer.status_code == 422, answer.text
    (problem,) = answer.json()["detail"]
    assert problem["type"] == "does_not_fit"
    assert "the largest that fits is" in problem["msg"]
