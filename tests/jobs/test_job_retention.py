"""What is kept and what goes, by age, number and size; and that nothing goes which is still needed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from i2v import video
from i2v.engine.fake import FakeEngine
from i2v.errors import Conflict, NotFound
from i2v.jobs import outputs as outputs_folder
from i2v.jobs import worker
from i2v.jobs.clock import STEADY_S, WatchedClock
from i2v.jobs.job import Job
from i2v.jobs.queue import JobQueue
from i2v.notes import say
from i2v.request import GenerateRequest
from tests.jobs.job_doubles import SMALL, Clock, Gate, MakeQueue, final, until

BYTES = 10_000


def write_10_kb(frames: np.ndarray, path: Path, **_rest: object) -> None:
    path.write_bytes(b"\0" * BYTES)


def run(queue: JobQueue, dot: Image.Image, number: int) -> list[Job]:
    return [final(queue, queue.submit(SMALL, dot, door="cli")) for _ in range(number)]


def kept(queue: JobQueue, outputs: Path) -> list[str]:
    """Completed jobs, oldest first, after checking that rows and files agree."""
    jobs = queue.list(order="asc", limit=100, status="completed")
    files = {job.result.file for job in jobs if job.result is not None}
    assert {path.name for path in outputs.glob("*.mp4")} == files
    stems = {name.removesuffix(".mp4") for name in files}
    until(lambda: {path.stem for path in outputs.glob("*.json")} == stems)  # a sidecar goes right after its row
    return [job.id for job in jobs]


@pytest.mark.parametrize("limits", [{"count": 3}, {"gigabytes": 3.5 * BYTES / 1e9}], ids=["by number", "by size"])
def test_the_oldest_videos_go_first(
    make_queue: MakeQueue, outputs: Path, dot: Image.Image, limits: dict[str, float]
) -> None:
    queue = make_queue(settings={"retention": limits}, write_video=write_10_kb)
    jobs = run(queue, dot, 5)
    until(lambda: len(queue.list(status="completed")) == 3)
    assert kept(queue, outputs) == [job.id for job in jobs[2:]]
    with pytest.raises(NotFound):
        queue.get(jobs[0].id)


def test_videos_older_than_the_limit_go(make_queue: MakeQueue, outputs: Path, dot: Image.Image, clock: Clock) -> None:
    queue = make_queue(settings={"retention": {"days": 7}}, clock=clock)
    old = run(queue, dot, 2)
    clock.move(days=6)
    young = run(queue, dot, 1)
    assert kept(queue, outputs) == [job.id for job in old + young]
    clock.move(days=2)
    newest = run(queue, dot, 1)
    until(lambda: len(queue.list(status="completed")) == 2)
    assert kept(queue, outputs) == [job.id for job in young + newest]


@pytest.mark.fault(
    "wrong clock",
    "a start with a clock ten years ahead, retention by age",
    before="every video was deleted at the start",
)
def test_a_wrong_clock_at_a_start_removes_nothing(
    make_queue: MakeQueue,
    outputs: Path,
    dot: Image.Image,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, str], None],
) -> None:
    limits = {"retention": {"days": 7}}
    seconds = 0.0

    def restart() -> JobQueue:
        monkeypatch.setattr("i2v.jobs.queue.WatchedClock", lambda now: WatchedClock(now, lambda: seconds))
        return make_queue(settings=limits, clock=clock)

    queue = restart()
    jobs = run(queue, dot, 3)
    queue.stop()
    clock.move(days=3650)
    queue = restart()
    jobs += run(queue, dot, 1)
    queue._opened().publisher.drain()  # the look for old ones ends before the clock is moved
    assert kept(queue, outputs) == [job.id for job in jobs]
    seconds += STEADY_S - 1  # a time server puts it right
    clock.move(seconds=STEADY_S - 1, days=-3650)
    jobs += run(queue, dot, 1)
    queue._opened().publisher.drain()  # the look for old ones ends before the clock is moved
    assert kept(queue, outputs) == [job.id for job in jobs]
    clock.move(days=3650)  # a jump of a running server, and seven days that pass at an even pace
    jobs += run(queue, dot, 1)
    queue._opened().publisher.drain()  # the look for old ones ends before the clock is moved
    survivors = kept(queue, outputs)
    assert survivors == [job.id for job in jobs]
    seconds += STEADY_S
    clock.move(seconds=STEADY_S)
    newest = run(queue, dot, 1)
    until(lambda: len(queue.list(status="completed")) == 3)
    assert kept(queue, outputs) == [jobs[3].id, jobs[5].id, newest[0].id]
    record_property("after", f"{len(survivors)} of {len(jobs)} videos stay until the clock has gone evenly for an hour")


def test_a_server_without_jobs_removes_what_becomes_too_old(
    make_queue: MakeQueue, outputs: Path, dot: Image.Image, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "IDLE_S", 0.05)
    queue = make_queue(settings={"retention": {"days": 7}}, clock=clock)
    run(queue, dot, 2)
    clock.move(days=8)
    until(lambda: not queue.list())
    assert kept(queue, outputs) == []


def test_limits_hold_from_the_start(make_queue: MakeQueue, outputs: Path, dot: Image.Image) -> None:
    queue = make_queue()
    jobs = run(queue, dot, 4)
    queue.stop()
    again = make_queue(settings={"retention": {"count": 1}})
    assert kept(again, outputs) == [jobs[-1].id]


def test_without_limits_everything_stays(make_queue: MakeQueue, outputs: Path, dot: Image.Image, clock: Clock) -> None:
    queue = make_queue(clock=clock)
    jobs = run(queue, dot, 3)
    clock.move(days=10_000)
    jobs += run(queue, dot, 1)
    assert kept(queue, outputs) == [job.id for job in jobs]


def test_a_clock_that_jumps_back_an_hour_removes_nothing_and_keeps_the_order(
    make_queue: MakeQueue, outputs: Path, dot: Image.Image, clock: Clock
) -> None:
    queue = make_queue(settings={"retention": {"days": 1}}, clock=clock)
    first = run(queue, dot, 1)
    clock.move(hours=-1)
    second = run(queue, dot, 1)
    assert kept(queue, outputs) == [job.id for job in first + second]


def test_a_video_that_is_being_sent_stays_readable_to_its_reader(
    make_queue: MakeQueue, outputs: Path, dot: Image.Image
) -> None:
    queue = make_queue(settings={"retention": {"count": 1}}, write_video=write_10_kb)
    (first,) = run(queue, dot, 1)
    with queue.video_path(first).open("rb") as reader:
        assert len(reader.read(1000)) == 1000
        run(queue, dot, 1)
        until(lambda: len(queue.list(status="completed")) == 1)
        assert len(reader.read()) == BYTES - 1000


def test_a_video_another_job_continues_stays_until_that_one_is_done(
    make_queue: MakeQueue, outputs: Path, photo: Image.Image, gate: Gate
) -> None:
    request = GenerateRequest(prompt="on it goes", width=64, height=64, num_frames=4, steps=2, fps=8, seed=3)
    queue = make_queue(settings={"retention": {"count": 1}}, write_video=None)
    first = final(queue, queue.submit(request, photo, door="videos"))
    source = video.read_frames(queue.video_path(first))
    engine = queue._engine
    assert isinstance(engine, FakeEngine)
    engine.fault = gate
    longer = queue.submit(request, Image.fromarray(source[-1]), door="videos", extends=first.id)
    assert gate.reached.wait(60)
    with pytest.raises(Conflict):
        queue.delete(first.id)
    assert outputs_folder.enforce(queue._opened().data.store, outputs, queue._settings.retention, queue._clock()) == []
    gate.open()
    done = final(queue, longer)
    assert done.status == "completed"
    assert done.extends == first.id
    stitched = video.read_frames(queue.video_path(done))
    assert len(stitched) == 4 + 3
    assert np.abs(stitched[:4].astype(int) - source).mean() < 6, "it begins with the first clip"
    until(lambda: len(queue.list(status="completed")) == 1)
    assert kept(queue, outputs) == [longer.id]


def test_only_a_finished_video_can_be_continued(make_queue: MakeQueue, dot: Image.Image, gate: Gate) -> None:
    queue = make_queue(FakeEngine(fault=gate))
    running = queue.submit(SMALL, dot, door="videos")
    with pytest.raises(Conflict):
        queue.submit(SMALL, dot, door="videos", extends=running.id)
    with pytest.raises(NotFound):
        queue.submit(SMALL, dot, door="videos", extends="video_" + "0" * 24)


def test_rows_without_a_video_are_bounded(
    make_queue: MakeQueue, dot: Image.Image, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs_folder, "FAILURES_KEPT", 5)
    queue = make_queue(FakeEngine(fault=gate), settings={"queue": {"length": 100}})
    queue.submit(SMALL, dot, door="cli")
    assert gate.reached.wait(60)
    for _ in range(20):
        queue.cancel(queue.submit(SMALL, dot, door="cli").id)
    gate.open()
    run(queue, dot, 1)
    until(lambda: queue.counts().get("cancelled", 0) == 5)


def test_the_settings_lie_beside_the_video_and_in_it(make_queue: MakeQueue, photo: Image.Image) -> None:
    queue = make_queue(write_video=None)
    request = GenerateRequest(prompt="Schnee fällt 雪", width=64, height=48, num_frames=5, steps=2, fps=6, seed=42)
    done = final(queue, queue.submit(request, photo, door="cli"))
    path = queue.video_path(done)
    facts = video.probe(path)
    assert (facts.frames, facts.fps, facts.width, facts.height) == (5, 6.0, 64, 48)
    beside = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert GenerateRequest.model_validate_json(json.dumps(beside["request"])) == request
    assert (beside["id"], beside["result"]["seed"], beside["result"]["model"]) == (done.id, 42, "fake")
    assert beside["result"]["notes"] == [say(note) for note in done.result.notes]
    assert "fake engine" in " ".join(beside["result"]["notes"])
    inside = video.read_metadata(path)
    assert GenerateRequest.model_validate_json(inside["request"]) == request
    assert (inside["job"], inside["seed"], inside["prompt"]) == (done.id, "42", request.prompt)
