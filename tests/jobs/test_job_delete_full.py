"""DELETE on a disk that is full to the last byte, and where the table fails in the middle: all is gone, or nothing."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from i2v.errors import I2VError, NotFound, StorageFull, Unavailable
from i2v.jobs import outputs as folder_of
from i2v.jobs.job import Job
from i2v.jobs.queue import JobQueue
from tests.jobs.job_doubles import SMALL, MakeQueue, final
from tests.small_disk import fill, small_disk

FAULT = pytest.mark.fault(
    "F15", "DELETE on a disk that is full to the last byte", before="507, the video gone, the row completed"
)


@pytest.fixture
def outputs(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB."""
    with small_disk(tmp_path / "disk", 24) as folder:
        yield folder


def completed(queue: JobQueue, count: int) -> list[Job]:
    noise = np.random.default_rng(1).integers(0, 255, (600, 600, 3), np.uint8)  # a photo of 1 MB in the table
    return [final(queue, queue.submit(SMALL, Image.fromarray(noise), door="videos")) for _ in range(count)]


def is_whole(queue: JobQueue, outputs: Path, job: Job) -> bool:
    """The job is there with its video. False when both are gone; AssertionError for anything between."""
    assert job.result is not None
    files = [path for path in outputs.iterdir() if path.stem == Path(job.result.file).stem]
    try:
        row = queue.get(job.id)
    except NotFound:
        assert files == []
        return False
    assert row.status == "completed"
    assert queue.video_path(row).stat().st_size > 0
    assert [path.suffix for path in files if path.suffix != ".json"] == [".mp4"]
    return True


@FAULT
@pytest.mark.slow
@pytest.mark.parametrize("room", [True, False])
def test_a_delete_on_a_full_disk_is_whole(
    make_queue: MakeQueue, outputs: Path, room: bool, record_property: Callable[[str, str], None]
) -> None:
    queue = make_queue(settings={"min_free_mb": 0})
    jobs = completed(queue, 4)
    if not room:  # somebody has removed it
        (outputs / folder_of.ROOM_NAME).unlink()
    said = []
    for job in jobs:
        with contextlib.closing(sqlite3.connect(outputs / "jobs.sqlite3")) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # else a change has room in what was written before
        full = fill(outputs)
        try:
            queue.delete(job.id)
            said.append("deleted")
        except I2VError as error:
            said.append(f"{error.status}, nothing gone")
        assert is_whole(queue, outputs, job) == (said[-1] != "deleted")
        if room:
            assert said[-1] == "deleted"
    full.unlink()
    for job in jobs:
        with contextlib.suppress(NotFound):
            queue.delete(job.id)
        assert not is_whole(queue, outputs, job)
    queue.delete(completed(queue, 1)[0].id)
    assert (outputs / folder_of.ROOM_NAME).stat().st_size == folder_of.ROOM_BYTES
    record_property("after", f"{'with' if room else 'without'} the room that is kept: {', '.join(said)}")


class TestInjected:
    """The same where the table refuses at a point of our choice, on any disk."""

    @pytest.fixture
    def outputs(self, tmp_path: Path) -> Path:
        return tmp_path / "outputs"

    @pytest.mark.parametrize("error", [StorageFull("full"), Unavailable("away")])
    def test_a_change_that_is_not_kept_leaves_the_video(
        self, make_queue: MakeQueue, outputs: Path, error: I2VError, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        queue = make_queue()
        (job,) = completed(queue, 1)
        store = queue._opened().data.store
        delete = store.delete

        def refused(id: str, *, take: Callable[[], None], put_back: Callable[[], None], **_: bool) -> None:
            def taken() -> None:
                take()
                raise error

            delete(id, take=taken, put_back=put_back)

        with monkeypatch.context() as patched:
            patched.setattr(store, "delete", refused)
            with pytest.raises(type(error)):
                queue.delete(job.id)
        assert is_whole(queue, outputs, job)
        queue.delete(job.id)
        assert not is_whole(queue, outputs, job)

    def test_a_change_that_was_kept_without_its_answer_takes_the_video_too(
        self, make_queue: MakeQueue, outputs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        queue = make_queue()
        (job,) = completed(queue, 1)
        store = queue._opened().data.store
        delete = store.delete

        def lost(id: str, *, take: Callable[[], None], put_back: Callable[[], None], **_: bool) -> None:
            delete(id, take=take, put_back=put_back)
            put_back()
            raise Unavailable("the connection broke")

        monkeypatch.setattr(store, "delete", lost)
        queue.delete(job.id)
        assert not is_whole(queue, outputs, job)

    @pytest.mark.parametrize("kept", [True, False])
    def test_a_death_in_the_middle_is_put_right_at_the_next_start(
        self, make_queue: MakeQueue, outputs: Path, kept: bool
    ) -> None:
        queue = make_queue()
        (job,) = completed(queue, 1)
        video = queue.video_path(job)
        video.replace(video.with_suffix(".del"))
        if kept:
            queue._opened().data.store.delete(job.id)
        queue.stop()
        again = make_queue()
        assert is_whole(again, outputs, job) != kept
