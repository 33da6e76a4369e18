"""A table that lies elsewhere, and an outputs folder whose disk is not mounted: no video is taken for lost."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import delete

from i2v.engine.fake import FakeEngine
from i2v.errors import NotFound, Unavailable
from i2v.jobs.job import Job
from i2v.jobs.outputs import MARK_NAME
from i2v.jobs.queue import JobQueue
from i2v.jobs.schema import DataError, meta, sqlite_url
from tests.jobs.job_doubles import DEADLINE_S, SMALL, Gate, MakeQueue, final, until

Start = Callable[..., JobQueue]
Unmount = Callable[[], Callable[[], None]]


@pytest.fixture(params=["sqlite", "postgresql"])
def start(request: pytest.FixtureRequest, make_queue: MakeQueue, tmp_path: Path) -> Start:
    """Starts a queue whose table does not lie in its outputs folder."""
    url = sqlite_url(tmp_path / "elsewhere.sqlite3")
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    return lambda **settings: make_queue(settings={"database": url, **settings})


@pytest.fixture
def unmount(outputs: Path) -> Unmount:
    """Puts an empty folder in the place of the outputs, as a mount point shows; returns what mounts them again."""

    def away() -> Callable[[], None]:
        disk = outputs.with_name(outputs.name + "-disk")
        outputs.rename(disk)
        outputs.mkdir()

        def back() -> None:
            for left in outputs.iterdir():
                left.unlink()
            outputs.rmdir()
            disk.rename(outputs)

        return back

    return away


def made(queue: JobQueue, dot: Image.Image) -> Job:
    return final(queue, queue.submit(SMALL, dot, door="cli"))


def test_a_start_without_the_disk_is_refused_and_costs_no_video(
    start: Start, unmount: Unmount, dot: Image.Image
) -> None:
    """Every video was marked as lost, for good, because its file was not in the empty mount point."""
    queue = start()
    done = made(queue, dot)
    queue.stop()
    mount = unmount()
    with pytest.raises(DataError, match="mount its disk"):
        start()
    mount()
    again = start()
    assert again.get(done.id) == done
    assert again.video_path(done).is_file()


def test_a_disk_that_goes_while_the_server_runs_costs_no_video(
    start: Start, unmount: Unmount, dot: Image.Image
) -> None:
    queue = start()
    done = made(queue, dot)
    mount = unmount()
    assert "not be mounted" in (queue.storage_problem() or "")
    asked: list[Callable[[], object]] = [
        lambda: queue.video_path(done),
        lambda: queue.submit(SMALL, dot, door="cli"),
        lambda: queue.delete(done.id),
    ]
    for ask in asked:
        with pytest.raises(Unavailable, match="not be mounted"):
            ask()
    assert queue.get(done.id) == done
    mount()
    assert queue.storage_problem() is None
    assert queue.video_path(done).is_file()


def test_videos_that_are_gone_for_good_are_given_up_as_the_sentence_says(
    start: Start, unmount: Unmount, dot: Image.Image
) -> None:
    queue = start()
    done = made(queue, dot)
    queue.stop()
    unmount()
    with pytest.raises(DataError) as refused:
        start()
    found = re.search(r"echo (\w+) > (\S+)$", str(refused.value))
    assert found is not None
    Path(found[2]).write_text(f"{found[1]}\n")
    assert start().get(done.id).error_code == "video_lost"


def test_a_file_that_was_deleted_is_still_noticed(start: Start, dot: Image.Image) -> None:
    queue = start()
    done = made(queue, dot)
    queue.video_path(done).unlink()
    with pytest.raises(NotFound):
        queue.video_path(done)
    assert queue.get(done.id).error_code == "video_lost"


def test_a_table_without_videos_takes_any_folder(
    start: Start, outputs: Path, unmount: Unmount, dot: Image.Image
) -> None:
    queue = start()
    queue.delete(made(queue, dot).id)
    queue.stop()
    unmount()
    assert made(start(), dot).status == "completed"
    assert (outputs / MARK_NAME).is_file()


def forget_the_word(queue: JobQueue) -> None:
    """As in a table of before there were words."""
    store = queue._opened().data.store
    with store._database.writing() as connection:
        connection.execute(delete(meta).where(meta.c.key == "outputs"))


def test_a_first_mark_that_cannot_be_written_does_not_make_the_next_start_refuse_the_right_folder(
    start: Start, outputs: Path, dot: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table had its copy of the word before the folder had the word itself."""
    queue = start()
    done = made(queue, dot)
    forget_the_word(queue)
    queue.stop()
    (outputs / MARK_NAME).unlink()

    def die(_file: int) -> None:
        raise OSError(errno.EIO, "the machine stops")

    with monkeypatch.context() as dying:
        dying.setattr(os, "fsync", die)
        with pytest.raises(DataError):
            start()
    assert list(outputs.glob(".i2v.outputs*")) == []
    assert start().get(done.id) == done


def test_a_table_that_knows_no_word_is_not_started_on_a_folder_without_any_of_its_videos(
    start: Start, unmount: Unmount, outputs: Path, dot: Image.Image
) -> None:
    """The first start with a word took an empty mount point for the folder, and every video for lost."""
    queue = start()
    done = made(queue, dot)
    forget_the_word(queue)
    queue.stop()
    (outputs / MARK_NAME).unlink()
    mount = unmount()
    refused = []
    for _ in range(2):
        with pytest.raises(DataError, match="mount its disk") as error:
            start()
        refused.append(str(error.value))
    assert refused[0] == refused[1]
    assert not (outputs / MARK_NAME).exists()
    found = re.search(r"echo (\w+) > (\S+)$", refused[0])
    assert found is not None
    mount()
    again = start()
    assert again.video_path(again.get(done.id)).is_file()
    forget_the_word(again)
    again.stop()
    unmount()
    Path(found[2]).write_text(f"{found[1]}\n")
    assert start().get(done.id).error_code == "video_lost"


def test_a_table_without_videos_leaves_the_word_of_another_table(
    start: Start, make_queue: MakeQueue, outputs: Path, tmp_path: Path, dot: Image.Image
) -> None:
    """It overwrote the word, and the folder's own table was refused from then on."""
    queue = start()
    done = made(queue, dot)
    queue.stop()
    elsewhere = {"database": sqlite_url(tmp_path / "empty.sqlite3")}
    make_queue(settings={**elsewhere, "outputs": tmp_path / "other"}).stop()  # it knows the word of another folder
    make_queue(settings=elsewhere).stop()
    assert start().get(done.id) == done


def test_a_file_in_the_place_of_the_mark_that_is_none_of_ours_is_not_overwritten(start: Start, outputs: Path) -> None:
    (outputs / MARK_NAME).write_bytes(b"\xff my notes")
    with pytest.raises(DataError, match="remove it"):
        start()
    assert (outputs / MARK_NAME).read_bytes() == b"\xff my notes"


def test_a_table_in_the_folder_needs_no_mark(make_queue: MakeQueue, outputs: Path, dot: Image.Image) -> None:
    queue = make_queue()
    assert not (outputs / MARK_NAME).exists()
    done = made(queue, dot)
    (outputs / "jobs.sqlite3").rename(outputs / "hidden")
    with pytest.raises(Unavailable, match="not be mounted"):
        queue.submit(SMALL, dot, door="cli")
    (outputs / "hidden").rename(outputs / "jobs.sqlite3")
    assert queue.video_path(done).is_file()


@pytest.fixture(params=["the table in the folder", "the table elsewhere", "the table in PostgreSQL"])
def begin(request: pytest.FixtureRequest, make_queue: MakeQueue, tmp_path: Path) -> Start:
    """Starts a queue on the outputs folder, with its table in each place there is."""
    url = {
        "the table in the folder": lambda: None,
        "the table elsewhere": lambda: sqlite_url(tmp_path / "elsewhere.sqlite3"),
        "the table in PostgreSQL": lambda: request.getfixturevalue("postgres_url"),
    }[request.param]()
    return lambda engine=None, **seams: make_queue(engine, settings={"database": url}, **seams)


def test_a_disk_that_goes_while_a_job_runs_gets_its_video_when_it_is_back(
    begin: Start, unmount: Unmount, gate: Gate, outputs: Path, dot: Image.Image
) -> None:
    """The video was written into the empty mount point, and was not there once the disk was back."""
    queue = begin(FakeEngine(fault=gate))
    first, second = (queue.submit(SMALL, dot, door="cli") for _ in range(2))
    assert gate.reached.wait(DEADLINE_S)
    mount = unmount()
    gate.open()
    until(lambda: not queue._running.all() or not queue._opened().outcomes.storage_works)
    assert list(outputs.iterdir()) == []
    assert queue.storage_problem() is not None
    mount()
    done = [final(queue, job) for job in (first, second)]
    assert [job.status for job in done] == ["completed", "completed"]
    assert all(queue.video_path(job).is_file() for job in done)
    assert (done[1].attempt, list(outputs.glob("*.part"))) == (1, [])


@pytest.mark.parametrize("point", ["encoding", "encoded", "fsynced"])
def test_a_disk_that_goes_while_a_video_is_written_leaves_nothing_in_the_strange_folder(
    begin: Start, unmount: Unmount, outputs: Path, dot: Image.Image, point: str
) -> None:
    mounts: list[Callable[[], None]] = []

    def failpoint(name: str) -> None:
        if name == point and not mounts:
            mounts.append(unmount())
            (outputs / "strange").touch()

    queue = begin(failpoint=failpoint)
    job = queue.submit(SMALL, dot, door="cli")
    until(lambda: bool(mounts) and (not queue._running.all() or not queue._opened().outcomes.storage_works))
    assert [path.name for path in outputs.iterdir()] == ["strange"]
    mounts[0]()
    assert final(queue, job).status == "completed"
    assert queue.video_path(queue.get(job.id)).is_file()


def test_a_disk_that_goes_in_the_middle_of_a_claim_costs_the_job_no_attempt(
    begin: Start, unmount: Unmount, dot: Image.Image
) -> None:
    """A job that was put back was claimed again by a worker that had seen the disk a moment before, and failed."""
    mounts: list[Callable[[], None]] = []

    def failpoint(name: str) -> None:
        if name == "claiming" and not mounts:
            mounts.append(unmount())

    queue = begin(failpoint=failpoint)
    job = queue.submit(SMALL, dot, door="cli")
    until(lambda: bool(mounts) and not queue._opened().outcomes.storage_works)
    mounts[0]()
    done = final(queue, job)
    assert (done.status, done.attempt) == ("completed", 1)


def test_a_disk_that_goes_at_each_attempt_fails_the_job_with_the_reason(
    make_queue: MakeQueue, outputs: Path, tmp_path: Path, dot: Image.Image
) -> None:
    """It would otherwise run for ever."""
    word = outputs / MARK_NAME
    away = outputs / "away"

    def failpoint(name: str) -> None:
        if name == "encoding":
            word.rename(away)

    queue = make_queue(settings={"database": sqlite_url(tmp_path / "elsewhere.sqlite3")}, failpoint=failpoint)
    job = queue.submit(SMALL, dot, door="cli")
    until(lambda: away.exists() and queue.counts().get("queued") == 1)
    away.rename(word)
    failed = final(queue, job)
    assert (failed.status, failed.attempt, failed.error_code) == ("failed", 2, "unavailable")
    assert "not be mounted" in (failed.error_message or "")
