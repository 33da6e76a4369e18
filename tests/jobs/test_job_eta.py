"""The time left of a running job: from the average of other jobs at first, then from the job's own steps."""

from datetime import UTC, datetime

import pytest

from i2v.engine.protocol import Progress
from i2v.jobs.job import Job
from i2v.jobs.line import UNKNOWN_PACE_S, Line
from i2v.jobs.live import Board, Live
from i2v.jobs.pace import Pace
from i2v.jobs.store import Claim
from i2v.request import GenerateRequest

STEPS = 20
REQUEST = GenerateRequest(prompt="the sea at night", width=64, height=64, num_frames=4, steps=STEPS, fps=8, seed=1)


class Run:
    """A job whose steps take what the test says, in seconds of its own clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        job = Job("video_" + "0" * 24, "in_progress", REQUEST, "v1", datetime(2026, 1, 2, tzinfo=UTC))
        self.live = Live(job, Claim(job.id, "boot", 1), clock=lambda: self.now)

    def steps(self, first: int, last: int, seconds: float) -> None:
        for step in range(first, last + 1):
            self.now += seconds
            self.live.report(Progress("denoise", step, STEPS, None))

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
        assert steps_left < left <= 1.3 * steps_left + 40  # and some for decoding


def test_the_time_left_falls_between_two_steps_and_never_below_zero() -> None:
    run = Run()
    run.steps(1, 10, 10.0)
    before = run.eta(50.0)
    run.now += 4
    after = run.eta(50.0)
    assert before is not None
    assert after == pytest.approx(before - 4)
    run.now += 10_000
    assert run.eta(50.0) == 0.0


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
    run, board = Run(), Board()
    line = Line(list, board, Pace())
    assert line.retry_after() == UNKNOWN_PACE_S
    board.add(run.live)
    assert line.retry_after() == UNKNOWN_PACE_S
    run.steps(1, 4, 10.0)
    assert 160 <= line.retry_after() <= 240  # 16 steps of 10 s, and some for decoding
