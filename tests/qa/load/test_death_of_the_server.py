"""kill -9 of a real server under work, seen from outside: by its folder and by its API, before and after a restart."""

import contextlib
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from i2v.errors import InvalidRequest
from i2v.video import probe
from tests.qa.live_server import LiveServer, small_photo, start
from tests.qa.waiting import until

FRAMES = 8
FINAL = {"completed", "failed", "cancelled"}


class Watcher:
    """Looks at the folder and at the API of whichever server runs; `wrong` collects what nobody may ever see."""

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs
        self.server: LiveServer | None = None
        self.wrong: list[str] = []
        self.looks = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(60)

    def _watch(self) -> None:
        while not self._end.wait(0.02):
            for path in self.outputs.glob("*.mp4"):
                self._check(path.name)
            with contextlib.suppress(requests.RequestException):  # the server is dead, or not there yet
                self._ask()
            self.looks += 1

    def _ask(self) -> None:
        if self.server is None:
            return
        for job in requests.get(f"{self.server.url}/v1/videos", timeout=10).json().get("data", []):
            if job["status"] == "completed":
                answer = requests.get(f"{self.server.url}/v1/videos/{job['id']}/content", timeout=10)
                if answer.status_code != 200:
                    self.wrong.append(f"{job['id']} is completed, but its content is a {answer.status_code}")
                else:
                    self._check(answer.headers["content-disposition"].partition('filename="')[2].rstrip('"'))

    def _check(self, name: str) -> None:
        try:
            if probe(self.outputs / name).frames != FRAMES:
                self.wrong.append(f"{name} is cut short")
        except InvalidRequest:
            self.wrong.append(f"{name} cannot be read")


def create(server: LiveServer, number: int) -> str:
    """The id of the new job."""
    body = {"prompt": f"job {number}", "size": "256x256", "num_frames": FRAMES, "steps": 10, "seed": number}
    body["input_reference"] = {"image_url": small_photo()}
    answer = requests.post(f"{server.url}/v1/videos", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def statuses(server: LiveServer) -> list[str]:
    query = {"order": "asc", "limit": 100}
    return [job["status"] for job in requests.get(f"{server.url}/v1/videos", params=query, timeout=30).json()["data"]]


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[LiveServer]]:
    """Servers on one data folder, one after the other; the last one is stopped in the end."""
    made: list[LiveServer] = []
    yield made
    for server in made:
        server.stop()


def test_one_running_and_some_queued_are_all_completed_after_a_kill_and_a_restart(tmp_path, servers):
    queued = 4

    def begin() -> LiveServer:
        servers.append(start(tmp_path, "--no-ui", "--fake-step-s", "0.1"))
        return servers[-1]

    with Watcher(tmp_path / "outputs") as watcher:
        server = watcher.server = begin()
        ids = [create(server, number) for number in range(1 + queued)]
        until(lambda: statuses(server) == ["in_progress"] + ["queued"] * queued)
        server.stop(signal.SIGKILL)
        server = watcher.server = begin()
        until(lambda: statuses(server) == ["completed"] * (1 + queued))
    assert watcher.wrong == []
    assert watcher.looks > 20
    jobs = requests.get(f"{server.url}/v1/videos", params={"order": "asc"}, timeout=30).json()["data"]
    assert [job["id"] for job in jobs] == ids
    assert [job["seed"] for job in jobs] == list(range(1 + queued))
    assert [job["completed_at"] for job in jobs] == sorted(job["completed_at"] for job in jobs)
    assert len(list((tmp_path / "outputs").glob("*.mp4"))) == 1 + queued
    assert not list((tmp_path / "outputs").glob("*.part"))
    assert "i2v_starts_after_death_total 1.0" in requests.get(f"{server.url}/metrics", timeout=30).text


@pytest.mark.parametrize(("seed", "kills"), [(1, 4), pytest.param(2, 60, marks=pytest.mark.long)])
def test_killed_at_random_moments_no_accepted_job_is_lost_or_made_twice(tmp_path, servers, seed, kills):
    chance = random.Random(seed)
    accepted: list[str] = []
    flags = ("--no-ui", "--queue-attempts", "10", "--queue-length", "1000")
    with Watcher(tmp_path / "outputs") as watcher:
        for _ in range(kills):
            servers.append(start(tmp_path, "--fake-step-s", "0.02", *flags))
            server = watcher.server = servers[-1]
            accepted += [create(server, len(accepted)) for _ in range(chance.randint(0, 3))]
            time.sleep(chance.uniform(0, 1))  # not a wait for anything: the moment of the kill
            server.stop(signal.SIGKILL)
        servers.append(start(tmp_path, *flags))
        server = watcher.server = servers[-1]
        until(lambda: {job["status"] for page in pages(server) for job in page} <= FINAL, limit_s=120)
    assert watcher.wrong == []
    everyone = [job for page in pages(server) for job in page]
    assert [job["id"] for job in everyone] == accepted
    assert {job["status"] for job in everyone} == {"completed"}
    assert len(list((tmp_path / "outputs").glob("*.mp4"))) == len(accepted)
    assert not list((tmp_path / "outputs").glob("*.part"))


def pages(server: LiveServer) -> Iterator[list[dict]]:
    """All jobs, oldest first, a hundred at a time."""
    query = {"order": "asc", "limit": 100}
    while True:
        answer = requests.get(f"{server.url}/v1/videos", params=query, timeout=30).json()
        yield answer["data"]
        if not answer["has_more"]:
            return
        query["after"] = answer["last_id"]
