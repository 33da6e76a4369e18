"""What may go wrong while a job runs, and what it costs: that job at most."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from i2v.engine.fake import FakeEngine
from i2v.engine.interface import Progress
from i2v.errors import (
    FatalEngineError,
    I2VError,
    InvalidOutput,
    NotReady,
    OutOfMemory,
    StorageFull,
    Unavailable,
)
from i2v.jobs.job import Job
from i2v.jobs.queue import JobQueue
from i2v.jobs.worker import Worker
from i2v.mutex import GpuMutex
from tests.jobs.job_doubles import DEADLINE_S, SMALL, Gate, MakeQueue, final, quick_write, until

SECRET = "/home/somebody/weights.bin of prompt 'the sea'"


def once(error: BaseException, step: int = 2, stage: str = "denoise") -> Callable[[str, int], None]:
    """A fault that raises `error` the first time that step is reached."""
    left = [error]

    def fault(at: str, number: int) -> None:
        if (at, number) == (stage, step) and left:
            raise left.pop()

    return fault


@pytest.mark.parametrize(
    ("error", "code", "stage", "step"),
    [
        (OutOfMemory("768x768 does not fit; 512x512 would"), "out_of_memory", "denoise", 2),
        (OutOfMemory("768x768 does not fit; 512x512 would"), "out_of_memory", "decode", 1),
        (InvalidOutput("the frames are black"), "invalid_output", "decode", 1),
        (MemoryError(), "out_of_memory", "denoise", 1),
        (RuntimeError(SECRET), "generation_failed", "denoise", 4),
        (ValueError(SECRET), "generation_failed", "decode", 1),
    ],
)
def test_an_error_of_the_engine_costs_that_job_alone(
    make_queue: MakeQueue, dot: Image.Image, error: Exception, code: str, stage: str, step: int
) -> None:
    queue = make_queue(FakeEngine(fault=once(error, step, stage)))
    broken, following = (queue.submit(SMALL, dot, door="cli") for _ in range(2))
    failed = final(queue, broken)
    assert (failed.status, failed.error_code) == ("failed", code)
    assert failed.error_message
    assert SECRET not in failed.error_message
    assert final(queue, following).status == "completed"
    assert queue.state == "ready"


def test_a_job_that_is_cancelled_while_the_server_stops_and_claims_it_stays_cancelled(
    make_queue: MakeQueue, dot: Image.Image
) -> None:
    """It went back to the queue, and ran after the next start."""
    claimed, go_on = threading.Event(), threading.Event()

    def failpoint(name: str) -> None:
        if name == "claimed":
            claimed.set()
            assert go_on.wait(DEADLINE_S)

    queue = make_queue(failpoint=failpoint)
    job = queue.submit(SMALL, dot, door="ui")
    assert claimed.wait(DEADLINE_S)
    queue.cancel(job.id, wait=False)
    stopping = threading.Thread(target=queue.stop)
    stopping.start()
    until(lambda: queue.state == "stopping")
    go_on.set()
    stopping.join(DEADLINE_S)
    assert make_queue().get(job.id).status == "cancelled"


def test_out_of_memory_three_times_in_a_row_still_leaves_a_working_server(
    make_queue: MakeQueue, dot: Image.Image
) -> None:
    left = [1, 2, 3]

    def fault(_stage: str, _step: int) -> None:
        if left:
            left.pop()
            raise OutOfMemory("too large")

    queue = make_queue(FakeEngine(fault=fault))
    jobs = [final(queue, queue.submit(SMALL, dot, door="cli")) for _ in range(4)]
    assert [job.status for job in jobs] == ["failed"] * 3 + ["completed"]


def test_a_lost_engine_gives_the_job_one_more_attempt_wakes_every_waiter_and_asks_for_a_restart(
    make_queue: MakeQueue, gate: Gate, dot: Image.Image
) -> None:
    def fault(stage: str, step: int) -> None:
        gate(stage, step)
        raise FatalEngineError("the GPU is lost")

    gate.step = 1
    queue = make_queue(FakeEngine(fault=fault))
    asked = threading.Event()
    queue.on_fatal = asked.set
    running = queue.submit(SMALL, dot, door="predict")
    waiting = queue.submit(SMALL, dot, door="predict")
    answers: list[BaseException] = []

    def wait(job: Job) -> None:
        try:
            queue.wait_sync(job.id, DEADLINE_S)
        except NotReady as error:
            answers.append(error)

    threads = [threading.Thread(target=wait, args=(job,)) for job in (running, waiting)]
    for thread in threads:
        thread.start()
    until(lambda: len(queue._watchers) == 2)
    gate.open()
    assert asked.wait(DEADLINE_S)
    for thread in threads:
        thread.join(DEADLINE_S)
    assert len(answers) == 2
    assert queue.state == "dead"
    with pytest.raises(NotReady):
        queue.submit(SMALL, dot, door="predict")
    assert [(queue.get(job.id).status, queue.get(job.id).attempt) for job in (running, waiting)] == [
        ("queued", 1),
        ("queued", 0),
    ]
    queue.stop()
    again = make_queue()
    assert {final(again, job).status for job in (running, waiting)} == {"completed"}


def test_a_job_that_loses_the_engine_each_time_is_failed_in_the_end(make_queue: MakeQueue, dot: Image.Image) -> None:
    def fault(_stage: str, _step: int) -> None:
        raise FatalEngineError("the GPU is lost")

    job: Job | None = None
    for attempt in (1, 2):
        asked = threading.Event()
        queue = make_queue(None) if attempt == 0 else make_queue(FakeEngine(fault=fault))
        queue.on_fatal = asked.set
        job = job or queue.submit(SMALL, dot, door="cli")
        until(lambda queue=queue: queue.state == "dead")  # type: ignore[misc]
        found = queue.get(job.id)
        assert (found.status, found.attempt) == ("queued" if attempt == 1 else "failed", attempt)
        queue.stop()
    assert found.error_code == "engine_lost"


def test_a_step_that_never_ends_fails_its_job_and_asks_for_a_restart(
    make_queue: MakeQueue, gate: Gate, dot: Image.Image
) -> None:
    queue = make_queue(FakeEngine(fault=gate), settings={"queue": {"step_timeout_s": 0.2}})
    asked = threading.Event()
    queue.on_fatal = asked.set
    hung = queue.submit(SMALL, dot, door="cli")
    waiting = queue.submit(SMALL, dot, door="cli")
    assert asked.wait(DEADLINE_S)
    job = queue.get(hung.id)
    assert (job.status, job.error_code) == ("failed", "generation_failed")
    assert "time limit" in (job.error_message or "")
    assert queue.state == "dead"
    assert queue.get(waiting.id).status == "queued"
    gate.open()  # the thread comes back after all: it must not touch the settled row
    queue._opened().worker._thread.join(DEADLINE_S)
    queue.stop()
    again = make_queue()
    assert again.get(hung.id) == job
    assert final(again, waiting).status == "completed"


def test_steps_that_end_in_time_never_wake_the_watchdog(make_queue: MakeQueue, dot: Image.Image) -> None:
    queue = make_queue(FakeEngine(step_s=0.05), settings={"queue": {"step_timeout_s": 5}})
    request = SMALL.model_copy(update={"steps": 20})
    assert final(queue, queue.submit(request, dot, door="cli")).status == "completed"
    assert queue.state == "ready"


def test_the_file_of_one_job_is_written_while_the_next_one_is_denoised(
    make_queue: MakeQueue, gate: Gate, dot: Image.Image
) -> None:
    write_now = threading.Event()

    def slow_write(frames: np.ndarray, path: Path, **rest: object) -> None:
        assert write_now.wait(DEADLINE_S)
        quick_write(frames, path, **rest)  # type: ignore[arg-type]

    seen: list[int] = []
    second_runs = threading.Event()

    def fault(stage: str, step: int) -> None:
        if (stage, step) == ("denoise", 1):
            seen.append(step)
            if len(seen) == 2:
                second_runs.set()
                gate("denoise", 2)

    queue = make_queue(FakeEngine(fault=fault), write_video=slow_write)
    first, second = (queue.submit(SMALL, dot, door="cli") for _ in range(2))
    assert second_runs.wait(DEADLINE_S)
    until(lambda: queue.get(first.id).stage == "write")
    assert queue.get(second.id).status == "in_progress"
    assert queue.get(first.id).progress == 99
    write_now.set()
    assert final(queue, first).status == "completed"
    gate.open()
    assert final(queue, second).status == "completed"


def test_results_never_pile_up_before_a_slow_disk(make_queue: MakeQueue, dot: Image.Image) -> None:
    write_now = threading.Event()
    started: list[str] = []

    def slow_write(frames: np.ndarray, path: Path, **rest: object) -> None:
        assert write_now.wait(DEADLINE_S)
        quick_write(frames, path, **rest)  # type: ignore[arg-type]

    def fault(stage: str, _step: int) -> None:
        if stage == "decode":
            started.append(stage)

    queue = make_queue(FakeEngine(fault=fault), write_video=slow_write)
    jobs = [queue.submit(SMALL, dot, door="cli") for _ in range(6)]
    until(lambda: len(started) == 2)
    until(lambda: queue.counts().get("in_progress") == 2)
    assert queue.queue_length == 4, "one is written, one waits for its turn, the engine rests"
    write_now.set()
    assert {final(queue, job).status for job in jobs} == {"completed"}


@pytest.mark.parametrize("point", ["encoded", "fsynced"])
def test_a_job_cancelled_while_its_file_is_written_leaves_no_file(
    make_queue: MakeQueue, dot: Image.Image, outputs: Path, point: str
) -> None:
    queue: JobQueue

    def failpoint(name: str) -> None:
        if name == "encoding":
            (live,) = queue._running.all()
            live.cancelled = True

    queue = make_queue(failpoint=failpoint)
    job = final(queue, queue.submit(SMALL, dot, door="cli"))
    assert job.status == "cancelled"
    assert not [path for path in outputs.iterdir() if path.name.startswith("video_")]


@pytest.mark.parametrize(
    ("error", "code"),
    [(StorageFull("the disk is full"), "storage_full"), (OSError(5, "I/O error"), "generation_failed")],
)
def test_a_file_that_cannot_be_written_costs_that_job_alone(
    make_queue: MakeQueue, dot: Image.Image, outputs: Path, error: Exception, code: str
) -> None:
    failures = [error]

    def write(frames: np.ndarray, path: Path, **rest: object) -> None:
        if failures:
            path.with_suffix(".json").stat()  # the sidecar is there first
            raise failures.pop()
        quick_write(frames, path, **rest)  # type: ignore[arg-type]

    queue = make_queue(write_video=write)
    job = final(queue, queue.submit(SMALL, dot, door="cli"))
    assert (job.status, job.error_code, job.result) == ("failed", code, None)
    assert not [path for path in outputs.iterdir() if path.name.startswith("video_")]
    assert final(queue, queue.submit(SMALL, dot, door="cli")).status == "completed"


def test_a_preview_that_fails_does_not_cost_the_job(
    make_queue: MakeQueue, dot: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    class Blind(FakeEngine):
        def generate(self, request, image, noise=None, on_step=None):  # type: ignore[no-untyped-def]
            def broken() -> np.ndarray:
                raise RuntimeError("no picture")

            def report(progress: Progress) -> None:
                assert on_step is not None
                on_step(Progress(progress.stage, progress.step, progress.steps, broken))

            return super().generate(request, image, noise, report)

    queue = make_queue(Blind())
    with caplog.at_level(logging.ERROR, "i2v.jobs"):
        assert final(queue, queue.submit(SMALL, dot, door="cli")).status == "completed"
    assert "no preview" in caplog.text


@pytest.mark.parametrize(("end", "step", "progress"), [("failed", 30, 60), ("cancelled", 31, 62)])
def test_a_job_that_ends_early_keeps_its_step_and_no_step_is_written_before(
    make_queue: MakeQueue, dot: Image.Image, end: str, step: int, progress: int
) -> None:
    writes: list[str] = []
    seen: dict[int, int] = {}

    def fault(stage: str, number: int) -> None:
        seen.setdefault(number, len(writes))
        if (stage, number) == ("denoise", 31):
            if end == "failed":
                raise InvalidOutput("the frames are black")
            queue._running.cancel(queue._running.all()[0].job.id)

    queue = make_queue(FakeEngine(fault=fault))
    database = queue._opened().data.store._database
    on_write = database._on_write

    def counted() -> None:
        writes.append("a transaction")
        on_write()

    database._on_write = counted
    done = final(queue, queue.submit(SMALL.model_copy(update={"steps": 40}), dot, door="cli"))
    assert (done.status, done.step, done.progress) == (end, step, progress)
    assert seen[31] == seen[1]


def test_a_fast_preset_that_runs_fewer_steps_still_ends_at_the_full_scale(
    make_queue: MakeQueue, gate: Gate, dot: Image.Image
) -> None:
    class Halving(FakeEngine):
        def generate(self, request, image, noise=None, on_step=None):  # type: ignore[no-untyped-def]
            return super().generate(request.model_copy(update={"steps": 4}), image, noise, on_step)

    gate.step = 3
    queue = make_queue(Halving(fault=gate))
    job = queue.submit(SMALL.model_copy(update={"steps": 40}), dot, door="cli")
    assert gate.reached.wait(DEADLINE_S)
    assert (queue.get(job.id).step, queue.get(job.id).progress) == (20, 40)  # decoding counts as 10 steps
    gate.open()
    final(queue, job)


def test_a_database_that_refuses_for_a_while_loses_no_result(
    make_queue: MakeQueue, dot: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = make_queue()
    store = queue._opened().data.store
    original = store.complete
    refusals: list[I2VError] = [Unavailable("locked"), StorageFull("full")]

    def complete(*args: object) -> None:
        if refusals:
            raise refusals.pop()
        original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "complete", complete)
    job = queue.submit(SMALL, dot, door="cli")
    until(lambda: not refusals)
    assert final(queue, job).status == "completed"
    until(queue.storage_ok)


def test_a_mutex_held_elsewhere_makes_the_job_wait_and_can_be_cancelled(
    make_queue: MakeQueue, dot: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "i2v.jobs.worker")
    mutex = GpuMutex()
    queue = make_queue(mutex=mutex)
    with mutex.hold():
        job = queue.submit(SMALL, dot, door="cli")
        until(lambda: "waits for another job of this server" in caplog.text)
        assert queue.cancel(job.id).status == "cancelled"


def test_a_defect_of_the_worker_itself_ends_in_a_restart_not_in_a_standstill(
    make_queue: MakeQueue, dot: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: Worker, _live: object) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(Worker, "_serve", broken)
    queue = make_queue()
    asked = threading.Event()
    queue.on_fatal = asked.set
    job = queue.submit(SMALL, dot, door="cli")
    assert asked.wait(DEADLINE_S)
    assert queue.state == "dead"
    queue.stop()
    monkeypatch.undo()
    assert final(make_queue(), job).status == "completed"
