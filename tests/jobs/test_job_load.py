"""Many jobs through one process: nothing grows. The long form, with 20,000, is bench/soak.py."""

import gc
import threading
from pathlib import Path

import psutil
import pytest
from PIL import Image

from i2v.errors import QueueFull
from i2v.jobs import store
from i2v.jobs.queue import JobQueue
from tests.jobs.job_doubles import SMALL, MakeQueue, until

KEPT = 20


def run(queue: JobQueue, dot: Image.Image, number: int) -> None:
    """Submit as fast as there is room, and wait for the last one."""
    done = threading.Semaphore(0)
    queue.on_final.append(lambda _job: done.release())
    submitted = 0
    while submitted < number:
        try:
            queue.submit(SMALL, dot, door="cli")
            submitted += 1
        except QueueFull:
            done.acquire()
            done.release()
            threading.Event().wait(0.01)
    until(lambda: queue.queue_length == 0 and not queue._running.all())
    queue.on_final.clear()


@pytest.mark.slow
def test_hundreds_of_jobs_leave_memory_threads_files_and_rows_where_they_were(
    make_queue: MakeQueue, dot: Image.Image, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "CACHED", KEPT)  # what may grow has its full size after a hundred jobs
    queue = make_queue(settings={"retention": {"count": KEPT}, "queue": {"length": 50}})
    process = psutil.Process()

    def weigh() -> tuple[int, int, int, int]:
        gc.collect()
        return len(gc.get_objects()), process.memory_info().rss, threading.active_count(), process.num_fds()

    run(queue, dot, 100)
    objects, memory, threads, files = weigh()
    run(queue, dot, 500)
    until(lambda: sum(queue.counts().values()) <= KEPT)
    objects_after, memory_after, threads_after, files_after = weigh()
    assert objects_after < objects + 300
    assert memory_after < memory + 15_000_000
    assert threads_after <= threads
    assert files_after <= files + 2
    assert len(list(outputs.glob("*.mp4"))) == KEPT
    assert (outputs / "jobs.sqlite3").stat().st_size < 1_000_000
