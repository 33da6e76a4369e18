"""Jobs of the attacks' tests: how they are sent, and how one waits for what has to come."""

import time
from collections.abc import Callable

import requests

from tests.qa.live_server import LiveServer, small_photo


def create(server: LiveServer, prompt: str, **more: object) -> requests.Response:
    """POST /v1/videos with a small job; `more` are its other fields."""
    sent = {"prompt": prompt, "size": "256x256", "num_frames": 8, "steps": 10, **more}
    sent["input_reference"] = {"image_url": small_photo()}
    return requests.post(f"{server.url}/v1/videos", json=sent, timeout=60)


def until(condition: Callable[[], object], limit_s: float = 60) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)
