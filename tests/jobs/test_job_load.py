"""Many jobs through one process: nothing grows. The long form, with 20,000, is bench/soak.py.

A process holds a little more or less at each look: statements are compiled once, other tests' threads end. So what
counts is what each round of jobs adds, and of the rounds the middle one.
"""

import gc
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil
import pytest
from PIL import Image

from i2v.decoding_room import give_back
from i2v.errors import QueueFull
from i2v.jobs import store
from i2v.jobs.queue import JobQueue
from tests.jobs.job_doubles import SMALL, MakeQueue, until

KEPT = 20
ROUNDS = 5
JOBS = 100  # a round


class Held(NamedTuple):
    """What this process holds. `memory` is the resident set in bytes, the other two are counts.

    `objects` are those that can hold others; `blocks` all pieces of memory that Python has given out, for strings, too.
    """

    objects: int
    blocks: int
    memory: int


MOST = Held(objects=JOBS // 2, blocks=JOBS // 2, memory=2_000_000)  # a round: half an object and 20 kB for each job


def weigh() -> Held:
    gc.collect()
    give_back()
    return Held(len(gc.get_objects()), sys.getallocatedblocks(), psutil.Process().memory_info().rss)


def too_much(weighed: list[Held]) -> dict[str, float]:
    """What the middle one of the rounds between these looks has added, where that is more than `MOST`."""
    columns = zip(*weighed, strict=True)
    added = [median(after - before for before, after in pairwise(column)) for column in columns]
    return {name: more for name, more, most in zip(Held._fields, added, MOST, strict=True) if more > most}


def run(queue: JobQueue, dot: Image.Image) -> None:
    """A round, submitted as fast as there is room. Ends once every job has, and what is too old is removed."""
    done = threading.Semaphore(0)
    queue.on_final.append(lambda _job: done.release())
    submitted = 0
    while submitted < JOBS:
        try:
            queue.submit(SMALL, dot, door="cli")
            submitted += 1
        except QueueFull:
            done.acquire()
    until(lambda: queue.counts() == {"completed": KEPT})
    queue.on_final.clear()


def look(queue: JobQueue) -> tuple[Held, int]:
    """What is held, and the open descriptors, while no connection to the table is open and nobody opens one.

    Python's SQLite keeps weak references to up to 200 cursors that are gone, with each connection that is open.
    """
    parts = queue._parts
    assert parts is not None
    parts.publisher.drain()
    engine = parts.data.store._database._engine
    seen: list[tuple[Held, int]] = []

    def nobody_came() -> bool:
        engine.dispose()
        seen[:] = [(weigh(), psutil.Process().num_fds())]
        return engine.pool.checkedin() + engine.pool.checkedout() == 0  # type: ignore[attr-defined]

    until(nobody_came)
    return seen[0]


@pytest.mark.slow
def test_hundreds_of_jobs_leave_memory_threads_files_and_rows_where_they_were(
    make_queue: MakeQueue, dot: Image.Image, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "CACHED", KEPT)  # what may grow has its full size after a round
    queue = make_queue(settings={"retention": {"count": KEPT}, "queue": {"length": 50}})
    weighed, threads, files = [], [], []
    for _ in range(1 + ROUNDS):
        run(queue, dot)
        held, descriptors = look(queue)
        weighed.append(held)
        files.append(descriptors)
        threads.append(set(threading.enumerate()))
    assert not too_much(weighed), weighed
    assert threads[-1] <= threads[0]
    assert files[-1] <= files[0], files
    assert len(list(outputs.glob("*.mp4"))) == KEPT
    assert (outputs / "jobs.sqlite3").stat().st_size < 1_000_000


@pytest.mark.parametrize(
    ("leak", "seen"),
    [
        (object, "blocks"),
        (lambda: {"a": 1}, "blocks"),
        (lambda: str(id(object())), "blocks"),
        (lambda: [object], "objects"),
        (lambda: b"p" * 50_000, "memory"),
    ],
)
def test_one_object_a_job_is_too_much(leak: Callable[[], object], seen: str) -> None:
    kept: list[object] = []
    weighed = [weigh()]
    for _ in range(ROUNDS):
        kept.extend([leak() for _ in range(JOBS)])
        weighed.append(weigh())
    assert seen in too_much(weighed)


def test_what_comes_once_is_not_too_much() -> None:
    weighed, kept = [weigh()], []
    for number in range(ROUNDS):
        if number == 1:
            kept = [[bytes(100)] for _ in range(100 * JOBS)]
        weighed.append(weigh())
    assert kept
    assert not too_much(weighed)
