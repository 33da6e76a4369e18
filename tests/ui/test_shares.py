"""What many clicks at once may decode: as much as many requests at once."""

import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import requests

from i2v.decoding_room import DECODING
from i2v.server.video_extension import last_frame
from i2v.ui import desk, history
from i2v.ui.mount.gate import EVENT
from i2v.video import write_video
from tests.conftest import ASSETS
from tests.ui.conftest import Site, servers

pytestmark = pytest.mark.slow

FRAMES = 249


class Counted:
    """A function that knows how many calls of it ran at once."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.now, self.most, self.calls = function, 0, 0, 0
        self.lock = threading.Lock()

    def __call__(self, *given: Any) -> Any:
        with self.lock:
            self.now, self.calls = self.now + 1, self.calls + 1
            self.most = max(self.most, self.now)
        try:
            return self.function(*given)
        finally:
            with self.lock:
                self.now -= 1


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with one finished video, which has become a long one."""
    with servers(tmp_path_factory.mktemp("shares")) as start:
        site = start(queue={"length": 16})
        photo = (ASSETS / "coffee.jpg").read_bytes()
        form = {"prompt": "a clip", "size": "256x256", "num_frames": "8", "steps": "10"}
        sent = requests.post(f"{site.url}/v1/videos", data=form, files={"input_reference": photo}, timeout=60)
        job = site.queue.wait_sync(sent.json()["id"], 60)
        frames = np.random.default_rng(0).integers(0, 255, (FRAMES, 16, 16, 3), np.uint8)
        path = site.queue.video_path(job)
        write_video(frames.repeat(8, 1).repeat(8, 2), path, fps=8, metadata={"request": "{}", "job": job.id})
        yield site


def many(site: Site, elem_id: str, event: str, values: list[Any], times: int) -> list[requests.Response]:
    """The same event of a component, so many times at once."""
    config = requests.get(f"{site.url}/config", timeout=30).json()
    (place,) = [part["id"] for part in config["components"] if part["props"].get("elem_id") == elem_id]
    (found,) = [d["id"] for d in config["dependencies"] if [place, event] in d["targets"] and d["backend_fn"]]
    body = {"fn_index": found, "session_hash": "many", "data": values}

    def post(_: int) -> requests.Response:
        return requests.post(f"{site.url}{EVENT}", json=body, timeout=120)

    with ThreadPoolExecutor(times) as callers:
        return list(callers.map(post, range(times)))


def newest(site: Site) -> str:
    return site.queue.list(status="completed", order="asc")[0].id


@pytest.mark.fault("F5", "ten clicks on extend of 249 frames", before="10 decoded at once, +4.2 GB")
def test_clicks_on_extend_wait_for_one_another(
    site: Site, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    counted = Counted(desk.last_frame)
    monkeypatch.setattr(desk, "last_frame", counted)
    site.gate.allow(0)
    answers = many(site, "extend", "click", [newest(site)], 10)
    for job in site.queue.list(status="queued") + site.queue.list(status="in_progress"):  # long to stitch
        site.queue.cancel(job.id, wait=False)
    site.gate.open()
    record_property("after", f"{counted.most} decoded at once")
    assert [answer.status_code for answer in answers] == [200] * 10
    assert (counted.most, counted.calls) == (1, 10)


@pytest.mark.fault("F5", "thirty restores at once", before="22 readers at once")
def test_restores_wait_for_one_another(
    site: Site, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    video = site.queue.video_path(site.queue.get(newest(site))).read_bytes()
    sent = requests.post(f"{site.url}/gradio_api/upload", files={"files": ("a.mp4", video)}, timeout=60)
    counted = Counted(history.read_metadata)
    monkeypatch.setattr(history, "read_metadata", counted)
    upload = {"path": sent.json()[0], "meta": {"_type": "gradio.FileData"}, "orig_name": "a.mp4"}
    answers = many(site, "restore", "change", [upload], 30)
    record_property("after", f"{counted.most} reader at once")
    assert [answer.status_code for answer in answers] == [200] * 30
    assert (counted.most, counted.calls) == (1, 30)


@pytest.mark.fault("F5", "memory of one extension of 249 frames", before="every frame, twice")
def test_the_last_frame_is_read_without_the_others(site: Site, record_property: Callable[[str, object], None]) -> None:
    job = site.queue.get(newest(site))
    one = 128 * 128 * 3
    tracemalloc.start()
    try:
        last = last_frame(site.queue, job)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    record_property("after", f"{peak / one:.1f} frames of {FRAMES}")
    assert last.size == (128, 128)
    assert peak < FRAMES * one / 4  # other threads of the test take some, too


@pytest.mark.fault("F5", "a click on generate with a full queue", before="the photo is decoded first")
def test_a_full_queue_is_noticed_before_a_photo_is_decoded(
    serve: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    site = serve(queue={"length": 1})
    photo = (ASSETS / "coffee.jpg").read_bytes()
    sent = requests.post(f"{site.url}/gradio_api/upload", files={"files": ("a.jpg", photo)}, timeout=60)
    upload = {"path": sent.json()[0], "meta": {"_type": "gradio.FileData"}, "orig_name": "a.jpg"}
    values = [upload, "a clip", "", "256x256", "crop", 8, 8, 8, 10, 9.0, "exact", ""]
    counted = Counted(desk.form.read_photo)
    monkeypatch.setattr(desk.form, "read_photo", counted)
    site.gate.allow(0)
    answers = many(site, "generate", "click", values, 8)
    site.gate.open()
    record_property("after", f"{counted.calls} of {len(answers)} photos decoded")
    taken = [answer for answer in answers if "video_" in answer.text]
    assert len(taken) < len(answers)
    assert counted.calls < len(answers)


@pytest.mark.parametrize(("button", "jobs"), [("generate", 1), ("sweep", 4)])
def test_no_place_for_decoding_is_held_while_the_table_is_waited_for(
    site: Site, monkeypatch: pytest.MonkeyPatch, button: str, jobs: int
) -> None:
    photo = (ASSETS / "coffee.jpg").read_bytes()
    sent = requests.post(f"{site.url}/gradio_api/upload", files={"files": ("a.jpg", photo)}, timeout=60)
    upload = {"path": sent.json()[0], "meta": {"_type": "gradio.FileData"}, "orig_name": "a.jpg"}
    values = [upload, "a clip", "", "256x256", "crop", 8, 8, 8, 10, 9.0, "exact", ""]
    enter, inside = site.queue.enter, []

    def entered(new: Any) -> Any:
        inside.append(getattr(DECODING._mine, "depth", 0))
        return enter(new)

    monkeypatch.setattr(site.queue, "enter", entered)
    assert many(site, button, "click", values, 1)[0].status_code == 200
    assert inside == [0] * jobs
