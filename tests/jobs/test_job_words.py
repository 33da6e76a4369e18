"""The summary of a job in words, and how long jobs are said to take."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from test_job_store import RESULT

from i2v.jobs.eta import SHAPES_KEPT, Pace
from i2v.jobs.job import Job
from i2v.jobs.summary import summary
from tests.jobs.job_doubles import SMALL

JOB = Job(
    id="video_" + "0" * 24,
    status="completed",
    request=SMALL.model_copy(update={"seed": 7, "negative_prompt": "blur"}),
    door="predict",
    created_at=datetime(2026, 1, 2, tzinfo=UTC),
    result=replace(RESULT, guidance_scale=1.2, plan="resident", peak_memory_mb=812.4, warnings=("little motion",)),
)


def test_a_summary_names_what_was_asked_and_what_was_used() -> None:
    lines = summary(JOB).splitlines()
    assert lines[0] == "Prompt: the sea at night"
    for words in (
        "Negative prompt: blur",
        "64x64, 4 frames at 8 fps (0.5 s)",
        "guidance scale: 1.2",
        "Seed: 7",
        "Model: Fake (fake) on cpu",
        "Time: 1.5 s (denoise 1.5 s)",
        "Peak memory: 812 MB",
        "Memory plan: resident",
        "Note: a note",
        "Warning: little motion",
    ):
        assert any(words in line for line in lines), words


def test_a_summary_of_a_failure_says_what_happened() -> None:
    failed = replace(JOB, status="failed", result=None, error_code="out_of_memory", error_message="too large")
    assert "Error: too large (out_of_memory)" in summary(failed)


def test_progress_is_whole_only_when_completed() -> None:
    assert JOB.progress == 100
    assert replace(JOB, status="in_progress", step=4).progress == 28  # of 4 steps, and decoding counts as 10
    assert replace(JOB, status="in_progress", step=1).progress == 7


def test_the_pace_of_a_shape_follows_what_was_measured_for_it() -> None:
    pace = Pace()
    assert (pace.seconds(SMALL), pace.average) == (None, 0.0)
    pace.record(SMALL, 10.0)
    assert pace.seconds(SMALL) == 10.0
    for _ in range(30):
        pace.record(SMALL, 20.0)
    assert pace.seconds(SMALL) == pytest.approx(20.0, abs=0.1)


def test_a_shape_never_run_is_guessed_from_the_last_one_by_its_work() -> None:
    pace = Pace()
    pace.record(SMALL, 10.0)
    assert pace.seconds(SMALL.model_copy(update={"steps": 8})) == pytest.approx(20.0)
    assert pace.seconds(SMALL.model_copy(update={"num_frames": 2})) == pytest.approx(5.0)
    assert pace.seconds(SMALL.model_copy(update={"guidance_scale": 1.0})) == pytest.approx(5.0)


def test_the_memory_of_shapes_is_bounded() -> None:
    pace = Pace()
    for steps in range(1, SHAPES_KEPT + 100):
        pace.record(SMALL.model_copy(update={"steps": steps}), 1.0)
    assert len(pace._by_shape) == SHAPES_KEPT
