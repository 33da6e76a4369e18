"""What the tests of the job queue put into its seams: a clock, a gate, a quick writer; and how they wait."""

import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from i2v.jobs.job import Job
from i2v.jobs.queue import JobQueue
from i2v.request import GenerateRequest

MakeQueue = Callable[..., JobQueue]  # the fixture `make_queue`
RunServer = Callable[..., int]  # the fixture `run_server`

DEADLINE_S = 60  # how long anything may take before a test calls it lost
SMALL = GenerateRequest(prompt="the sea at night", width=64, height=64, num_frames=4, steps=4, fps=8)


class Clock:
    """Wall time that only moves when told."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, **time: float) -> None:
        self.now += timedelta(**time)


class Gate:
    """A fault for the fake engine that holds every job at one step until the gate is opened."""

    def __init__(self, step: int = 2) -> None:
        self.step = step
        self.reached = threading.Event()
        self._open = threading.Event()

    def __call__(self, stage: str, step: int) -> None:
        if stage == "denoise" and step == self.step and not self._open.is_set():
            self.reached.set()
            self._open.wait()  # the fixture opens it at the end, whatever happens

    def open(self) -> None:
        self._open.set()


def quick_write(
    frames: np.ndarray,
    path: Path,
    *,
    fps: int,
    metadata: dict[str, str],
    on_point: Callable[[str], None] | None = None,
) -> None:
    """A writer of the real one's shape that stores a few bytes: where a test is not about the file."""
    part = path.with_suffix(".0.part")
    try:
        part.write_bytes(frames[0, 0].tobytes())
        for point in ("encoded", "fsynced"):
            if on_point is not None:
                on_point(point)
        part.replace(path)
        if on_point is not None:
            on_point("renamed")
    finally:
        part.unlink(missing_ok=True)


def until(condition: Callable[[], bool]) -> None:
    """Look again and again, yielding to the other threads, until the condition holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition was never met"
        threading.Event().wait(0.002)


def final(queue: JobQueue, job: Job) -> Job:
    return queue.wait_sync(job.id, DEADLINE_S)


def memory() -> str | None:
    """A folder in memory, where there is one: for data that is written a lot and needed by nobody afterwards."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
