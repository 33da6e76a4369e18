"""kill -9 at every point of a job's life: nothing is lost, nothing half-done is ever seen, nothing runs for ever."""

import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from i2v import video
from i2v.jobs.job import Job
from i2v.jobs.queue import JobQueue
from i2v.settings import Settings
from tests.jobs.job_doubles import RunServer

pytestmark = pytest.mark.slow

# What the first job's attempts come to after one death at that point.
POINTS = {
    "claiming": 1,  # before the claim's commit: it never started
    "claimed": 2,
    "step": 2,
    "encoding": 2,
    "encoded": 2,
    "fsynced": 2,
    "renamed": 1,  # the file is complete: it is kept
    "committed": 1,
}


def read(outputs: Path) -> list[Job]:
    """The jobs in the order of arrival, as a server without an engine sees them."""
    queue = JobQueue(Settings(outputs=outputs))
    queue.start()
    try:
        return queue.list(order="asc", limit=100)
    finally:
        queue.stop()


@contextmanager
def watched(outputs: Path) -> Iterator[list[str]]:
    """Look at folder and table all the while; collects what should never be seen."""
    wrong: list[str] = []
    seen: set[str] = set()
    end = threading.Event()

    def look() -> None:
        for path in outputs.glob("*.mp4"):
            if path.name not in seen:
                seen.add(path.name)
                if video.probe(path).frames != 4:
                    wrong.append(f"{path.name} is not complete")
        table = outputs / "jobs.sqlite3"
        if table.exists():
            with sqlite3.connect(f"file:{table}?mode=ro", uri=True) as connection:
                done = connection.execute("SELECT file FROM i2v_jobs WHERE status = 'completed'").fetchall()
            wrong.extend(f"{file} is not there" for (file,) in done if not (outputs / file).exists())

    def watch() -> None:
        while not end.wait(0.005):
            try:
                look()
            except sqlite3.OperationalError:
                continue  # between two processes the table may be in recovery
            except Exception as error:
                wrong.append(repr(error))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield wrong
    finally:
        end.set()
        thread.join()


def leftovers(outputs: Path) -> list[str]:
    videos = {path.stem for path in outputs.glob("video_*.mp4")}
    return [path.name for path in outputs.glob("video_*") if path.suffix == ".part" or path.stem not in videos]


@pytest.mark.parametrize("point", POINTS)
def test_a_death_at_any_point_loses_no_job_and_shows_no_unfinished_video(
    run_server: RunServer, outputs: Path, point: str
) -> None:
    with watched(outputs) as wrong:
        assert run_server(outputs, point, "any", jobs=4) == -signal.SIGKILL
        assert run_server(outputs, "never") == 0
    jobs = read(outputs)
    assert [job.status for job in jobs] == ["completed"] * 4
    attempts = [job.attempt for job in jobs]
    assert (attempts[0], attempts[2:]) == (POINTS[point], [1, 1])
    assert attempts[1] in (1, 2), "the second may have been in the engine while the first was written"
    assert [job.request.seed for job in jobs] == [0, 1, 2, 3]
    started = [job.started_at for job in jobs if job.started_at is not None]
    assert started == sorted(started), "the one in flight runs first"
    assert len(list(outputs.glob("*.mp4"))) == 4
    assert leftovers(outputs) == []
    assert wrong == []


def test_a_second_run_gives_the_video_that_the_first_would_have_given(
    run_server: RunServer, outputs: Path, tmp_path: Path
) -> None:
    assert run_server(outputs, "fsynced", "any", jobs=1) == -signal.SIGKILL
    assert run_server(outputs, "never") == 0
    assert run_server(tmp_path, "never", jobs=1) == 0
    frames = [video.read_frames(next(folder.glob("*.mp4"))) for folder in (outputs, tmp_path)]
    assert (frames[0] == frames[1]).all()


def test_a_job_that_kills_the_process_each_time_is_interrupted_and_the_others_run(
    run_server: RunServer, outputs: Path
) -> None:
    assert run_server(outputs, "step", "job 1", jobs=3) == -signal.SIGKILL
    assert run_server(outputs, "step", "job 1") == -signal.SIGKILL
    assert run_server(outputs, "step", "job 1") == 0
    jobs = read(outputs)
    assert [job.status for job in jobs] == ["completed", "interrupted", "completed"], "nobody else pays for it"
    assert (jobs[1].attempt, jobs[1].error_code) == (2, "interrupted")


def test_six_deaths_in_a_row_at_different_points_still_end_with_every_job_done_or_named(
    run_server: RunServer, outputs: Path
) -> None:
    with watched(outputs) as wrong:
        for number, point in enumerate(["claimed", "renamed", "encoded", "committed", "fsynced", "claiming"]):
            run_server(outputs, point, "any", jobs=2 if number < 3 else 0)
        assert run_server(outputs, "never") == 0
    jobs = read(outputs)
    assert len(jobs) == 6
    assert {job.status for job in jobs} <= {"completed", "interrupted"}
    assert all(job.attempt == 2 for job in jobs if job.status == "interrupted")
    assert len(list(outputs.glob("*.mp4"))) == sum(job.status == "completed" for job in jobs)
    assert (leftovers(outputs), wrong) == ([], [])
