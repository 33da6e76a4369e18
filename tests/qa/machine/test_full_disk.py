"""A disk that is full to its last byte or cannot be written: a real one of a few megabytes, mounted for the test."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from i2v.video import probe
from tests.qa.live_server import LiveServer, assert_refusal, start
from tests.qa.waiting import create, until
from tests.small_disk import fill, small_disk

MEGABYTES = 8


@pytest.fixture
def mount() -> Iterator[Callable[..., Path]]:
    """`mount(folder, "ro")`: an empty disk of `MEGABYTES` there, until the test has ended."""
    with contextlib.ExitStack() as stack:
        yield lambda folder, *options: stack.enter_context(small_disk(folder, MEGABYTES, *options))


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., LiveServer]]:
    """`begin(*flags)`: a server on `tmp_path`, stopped before the disk goes."""
    begun: list[LiveServer] = []

    def make(*flags: str, wait: bool = True) -> LiveServer:
        begun.append(start(tmp_path, "--no-ui", *flags, wait=wait))
        return begun[-1]

    yield make
    for server in begun:
        server.stop()


def states(server: LiveServer) -> list[str]:
    query = {"limit": 100, "order": "asc"}
    return [
        job["status"] for job in server.session.get(f"{server.url}/v1/videos", params=query, timeout=60).json()["data"]
    ]


def test_with_a_full_disk_no_job_is_taken_everything_is_read_and_all_goes_on_with_room(tmp_path, mount, begin):
    disk = mount(tmp_path / "outputs")
    server = begin()
    assert server.small_job().status_code == 200
    filler = fill(disk)
    for answer in (create(server, "one"), server.small_job()):
        assert_refusal(answer, 507)
    job = server.session.get(f"{server.url}/v1/videos", timeout=60).json()["data"][0]
    content = server.session.get(f"{server.url}/v1/videos/{job['id']}/content", timeout=60)
    assert content.status_code == 200
    for route in ("/livez", "/metrics", f"/v1/videos/{job['id']}"):
        assert server.session.get(server.url + route, timeout=60).status_code == 200
    filler.unlink()
    until(server.ready)
    assert server.small_job().status_code == 200
    assert states(server) == ["completed"] * 2


@pytest.mark.fault(
    "real disk",
    "a disk that fills up while a job runs, seen on a real one",
    before="the job failed as generation_failed, with a traceback of 15 lines: the file of its settings came first",
)
def test_a_disk_that_fills_up_while_a_job_runs_costs_that_job_alone_and_leaves_no_half_video(
    tmp_path, mount, begin, record_property
):
    disk = mount(tmp_path / "outputs")
    server = begin("--fake-step-s", "0.2", "--database", f"sqlite:///{tmp_path}/jobs.sqlite3")
    id = create(server, "runs while the disk fills up").json()["id"]
    until(lambda: states(server) == ["in_progress"])
    filler = fill(disk)
    until(lambda: states(server) == ["failed"])
    filler.unlink()
    job = server.session.get(f"{server.url}/v1/videos/{id}", timeout=60).json()
    assert job["error"]["code"] == "storage_full"
    assert server.small_job().status_code == 200
    assert all(probe(path).frames == 8 for path in disk.glob("*.mp4"))
    assert not list(disk.glob("*.part"))
    assert "Traceback" not in server.log
    record_property("after", f"{job['error']['code']}: {job['error']['message']}")


@pytest.mark.parametrize("place", ["table", "outputs"])
def test_a_table_that_cannot_write_down_the_end_of_a_job_does_so_once_it_has_room(tmp_path, mount, begin, place):
    disk = mount(tmp_path / place)
    server = begin("--fake-step-s", "0.2", "--database", f"sqlite:///{disk}/jobs.sqlite3")
    create(server, "its end cannot be written down at first")
    until(lambda: states(server) == ["in_progress"])
    filler = fill(disk)
    assert_refusal(create(server, "has no place"), 503, 507)
    until(lambda: server.session.get(f"{server.url}/readyz", timeout=60).status_code == 503)
    assert states(server) == ["in_progress"]
    assert server.session.get(f"{server.url}/livez", timeout=60).status_code == 200
    filler.unlink()
    until(lambda: states(server) == ["completed"])
    assert server.small_job().status_code == 200


def test_a_folder_on_a_disk_that_cannot_be_written_is_one_sentence_at_the_start(tmp_path, mount, begin):
    mount(tmp_path / "outputs", "ro")
    server = begin(wait=False)
    assert server.process.wait(90) in (1, 2)
    assert "outputs" in server.log
    assert "Traceback" not in server.log
