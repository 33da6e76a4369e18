"""The time left of a running job: from the average of other jobs at first, then from the job's own steps."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from i2v.engine.interface import Progress
from i2v.jobs.eta import UNKNOWN_PACE_S, Pace, Positions
from i2v.jobs.job import DECODE_STEPS, Claim, Job, Status
from i2v.jobs.running import LEAST_S, RunningJob, RunningJobs
from i2v.request import GenerateRequest

STEPS = 20
REQUEST = GenerateRequest(prompt="the sea at night", width=64, height=64, num_frames=4, steps=STEPS, fps=8, seed=1)


class Run:
    """A job whose steps take what the test says, in seconds of its own clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        job = Job("video_" + "0" * 24, "in_progress", REQUEST, "v1", datetime(2026, 1, 2, tzinfo=UTC))
        self.live = RunningJob(job, Claim(job.id, "boot", 1), clock=lambda: self.now)

    def steps(self, first: int, last: int, seconds: float) -> None:
        for step in range(first, last + 1):
            self.now += seconds
            self.live.report(Progress("denoise", step, STEPS, None))

    def decode(self, chunk: int, chunks: int, seconds: float) -> None:
        self.now += seconds
        self.live.report(Progress("decode", chunk, chunks, None))

    def eta(self, average: float | None) -> float | None:
        return self.live.snapshot(average).eta_s


def test_before_its_second_step_a_job_is_taken_for_an_average_one() -> None:
    run = Run()
    assert run.eta(100.0) == 100.0
    assert run.eta(None) is None
    run.steps(1, 1, 30.0)
    assert run.eta(100.0) == 70.0
    assert run.eta(None) is None


@pytest.mark.parametrize("average", [1.0, 50.0, 5000.0, None], ids=["quick", "alike", "slow", "none"])
def test_from_a_quarter_of_the_steps_on_the_jobs_own_pace_counts_whatever_others_took(average: float | None) -> None:
    run = Run()
    for first in range(1, STEPS, 5):
        run.steps(first, first + 4, 10.0)
        steps_left = 10.0 * (STEPS - first - 4)
        left = run.eta(average)
        assert left is not None
        assert left == pytest.approx(steps_left + 10.0 * DECODE_STEPS)


def test_the_time_left_falls_between_two_steps_and_says_a_second_however_late() -> None:
    run = Run()
    run.steps(1, 10, 10.0)
    before = run.eta(50.0)
    run.now += 4
    after = run.eta(50.0)
    assert before is not None
    assert after == pytest.approx(before - 4)
    run.now += 10_000
    assert run.eta(50.0) == LEAST_S


def test_the_average_gives_way_to_the_own_pace_without_a_jump() -> None:
    run = Run()
    lefts = []
    for step in range(1, 6):
        run.steps(step, step, 10.0)
        lefts.append(run.eta(20.0))
    assert lefts == sorted(lefts, key=lambda left: left or 0.0)  # a slow machine is noticed step by step
    assert lefts[-1] is not None
    assert lefts[-1] > 150


def test_the_first_job_of_all_already_tells_when_a_place_will_be_free() -> None:
    """Until a job had finished, callers of a full queue were told 5 s, however long its steps took."""
    run, board = Run(), RunningJobs()
    line = Positions(list, board, Pace())
    assert line.retry_after() == UNKNOWN_PACE_S
    board.add(run.live)
    assert line.retry_after() == UNKNOWN_PACE_S
    run.steps(1, 4, 10.0)
    assert line.retry_after() == 160 + 10 * DECODE_STEPS  # 16 steps of 10 s, and decoding


def test_decoding_has_its_own_part_of_the_time_and_of_the_bar() -> None:
    """A CPU's job showed 99 % and no time left after its last step, and then decoded for two thirds of the wait."""
    run, decode_steps = Run(), 60.0
    run.steps(1, STEPS, 1.0)
    run.decode(0, 4, 0.0)
    began = run.live.snapshot(None, decode_steps)
    assert (began.stage, began.progress, began.eta_s) == ("decode", 25, 60.0)
    run.now += 6.0
    assert (run.live.snapshot(None, decode_steps).progress, run.live.snapshot(None, decode_steps).eta_s) == (32, 54.0)
    run.decode(1, 4, 2.0)  # 8 s a chunk: quicker than foreseen
    assert run.live.snapshot(None, decode_steps).eta_s == 24.0
    run.decode(4, 4, 24.0)
    ended = run.live.snapshot(None, decode_steps)
    assert (ended.progress, ended.eta_s) == (99, LEAST_S)
    run.live.writing()
    assert (run.live.snapshot(None).progress, run.live.snapshot(None).eta_s) == (99, LEAST_S)


def test_progress_takes_nothing_back_when_the_estimate_changes_or_memory_runs_out() -> None:
    run = Run()
    run.steps(1, STEPS, 1.0)
    seen = [run.live.snapshot(None, 5.0).progress]
    for chunk, chunks in ((0, 1), (0, 4), (1, 4), (2, 4), (3, 4), (4, 4)):
        run.decode(chunk, chunks, 3.0)
        seen.append(run.live.snapshot(None, 50.0).progress)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (80, 99)


def test_what_decoding_takes_is_learnt_from_earlier_jobs_in_steps_of_the_request() -> None:
    pace = Pace()
    assert pace.decode_steps(REQUEST) == DECODE_STEPS
    pace.record(REQUEST, 40.0, {"denoise": 10.0, "decode": 30.0})
    assert pace.decode_steps(REQUEST) == pytest.approx(60.0)
    assert pace.decode_steps(REQUEST.model_copy(update={"steps": 5})) == pytest.approx(60.0)
    assert pace.decode_steps(REQUEST.model_copy(update={"guidance_scale": 1.0})) == pytest.approx(120.0)


@pytest.mark.parametrize("status", ["cancelled", "failed"])
def test_a_job_that_ended_before_decoding_did_is_not_shown_as_nearly_done(status: Status) -> None:
    ended = replace(Run().live.job, status=status, step=STEPS)
    assert ended.progress == int(100 * STEPS / (STEPS + DECODE_STEPS))
