"""What photos cost the machine while they wait for a place in the queue, and when there is none."""

import asyncio
import base64
import io
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fastapi import FastAPI
from PIL import Image

from i2v import images
from i2v.decoding_room import give_back
from i2v.engine.fake import FakeEngine
from i2v.jobs.queue import JobQueue
from i2v.settings import Settings

FIELDS = {"prompt": "the scene at sunset", "size": "256x256", "num_frames": "8", "steps": "10"}
MB = 1_000_000


def ways_in(client: httpx.AsyncClient, photo: bytes, video_id: str) -> dict[str, Any]:
    """Every route that makes a job of something which has to be decoded."""
    url = "data:image/png;base64," + base64.b64encode(photo).decode()
    numbers = {"num_frames": 8, "steps": 10}
    extension = {"prompt": "x", "seconds": 1, "video": {"id": video_id}}
    post = client.post
    return {
        "predict": partial(post, "/api/predict/", json={"data": [url, "the scene at sunset", 256, 8, 8, 10, 7.5]}),
        "json": partial(post, "/v1/videos", json=FIELDS | numbers | {"input_reference": {"image_url": url}}),
        "form": partial(post, "/v1/videos", data=FIELDS, files={"input_reference": ("a.png", photo, "image/png")}),
        "extension": partial(post, "/v1/videos/extensions", json=extension),
        "remix": partial(post, f"/v1/videos/{video_id}/remix", json={"prompt": "x"}),
    }


class Peak:
    """The most memory that this process held while the block ran, sampled by a thread, beyond what it began with."""

    def __enter__(self) -> "Peak":
        give_back()
        self._process, self._end = psutil.Process(os.getpid()), threading.Event()
        self.start = self.most = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._end.wait(0.005):
            self.most = max(self.most, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self.left = self._process.memory_info().rss

    @property
    def more(self) -> float:
        return (self.most - self.start) / MB

    @property
    def stays(self) -> float:
        return (self.left - self.start) / MB


@pytest.mark.slow
@pytest.mark.fault(
    "F3", "photos at the pixel limit at once", before="48: 3.8 to 7.2 GB more at the peak, 2.0 to 2.5 stay"
)
async def test_photos_at_the_pixel_limit_take_the_memory_of_one(
    client: httpx.AsyncClient, settings: Settings, record_property: Any
) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8000, settings.max_image_pixels // 8000)).save(file, "PNG")
    photo = file.getvalue()
    with Peak() as memory:
        ways = ways_in(client, photo, "none")
        answers = await asyncio.gather(*(ways[door]() for door in ("predict", "json", "form") for _ in range(2)))
        assert [answer.status_code for answer in answers] == [200] * 6
    record_property("after", f"6 at once: {memory.more:.0f} MB more at the peak, {memory.stays:.0f} stay")
    assert memory.more < 600
    assert memory.stays < 200


class TestAFullQueue:
    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        return Settings(outputs=tmp_path / "outputs", model="fake", ui=False, min_free_mb=0, queue={"length": 1})

    @pytest.fixture
    def held(self, engine: FakeEngine) -> Iterator[threading.Event]:
        """Set when a job runs, which waits for the end of the test. The first one is let through."""
        running, go_on, jobs = threading.Event(), threading.Event(), []

        def fault(stage: str, step: int) -> None:
            if (stage, step) == ("denoise", 2):
                jobs.append(step)
            if len(jobs) == 2:
                running.set()
                assert go_on.wait(60)

        engine.fault = fault
        yield running
        go_on.set()

    @pytest.mark.fault("F3", "a photo for a full queue", before="decoded, then 503")
    async def test_it_is_said_at_every_door_before_anything_is_decoded(
        self,
        app: FastAPI,
        client: httpx.AsyncClient,
        queue: JobQueue,
        held: threading.Event,
        monkeypatch: pytest.MonkeyPatch,
        record_property: Any,
    ) -> None:
        file = io.BytesIO()
        Image.new("RGB", (64, 64)).save(file, "PNG")
        first = ways_in(client, file.getvalue(), "none")
        done = (await first["json"]()).json()["id"]
        await queue.wait(done)
        await first["form"]()
        assert await asyncio.to_thread(held.wait, 60)
        key = {"Idempotency-Key": "waiting"}
        waiting = {"data": FIELDS, "files": {"input_reference": ("a.png", file.getvalue(), "image/png")}}
        assert (await client.post("/v1/videos", headers=key, **waiting)).status_code == 200

        decoded: list[str] = []
        load, frames = Image.Image.load, "i2v.server.video_extension.read_frames"
        monkeypatch.setattr(images, "_check_size", lambda *_: decoded.append("photo"))
        monkeypatch.setattr(Image.Image, "load", lambda picture: decoded.append("picture") or load(picture))
        monkeypatch.setattr(frames, lambda *_, **__: decoded.append("video"))
        places = app.state.context.decoding
        async with asyncio.timeout(60), places, places:  # both places are taken: a full queue is told without one
            refused = {door: await ask() for door, ask in ways_in(client, file.getvalue(), done).items()}
        record_property("after", f"503 at {len(refused)} doors, {len(decoded)} decoded")
        assert {door: answer.status_code for door, answer in refused.items()} == dict.fromkeys(refused, 503)
        assert all("Retry-After" in answer.headers for answer in refused.values())
        assert (await client.post("/v1/videos", headers={"Idempotency-Key": "new"}, **waiting)).status_code == 503
        assert decoded == []
        monkeypatch.undo()
        again = await client.post("/v1/videos", headers=key, **waiting)
        assert (again.status_code, again.headers["Idempotent-Replayed"]) == (200, "true")
