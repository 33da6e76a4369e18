"""A clock that is set while the server runs, hours forward and back.

What measures time must not see it: steps, waits, watchdogs. What says the time may.
"""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.qa.live_server import LiveServer, start
from tests.qa.waiting import create, until

CLOCKED = Path(__file__).with_name("clocked_server.py")
HOUR = 3600


class Clock:
    """The clock of one server; `set(seconds)` moves it against the machine's. Its monotonic clock stays."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "clock"
        self.seen = self.file.with_suffix(".seen")
        self.set(0)

    def set(self, seconds: int) -> None:
        """Returns once the server, if there is one, has the new time."""
        new = self.file.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self.file)
        if self.seen.exists():
            until(lambda: self.seen.read_text() == str(seconds))


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def begin(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., LiveServer]]:
    begun: list[LiveServer] = []

    def make(*flags: str) -> LiveServer:
        begun.append(start(tmp_path, "--no-ui", *flags, program=(str(CLOCKED), str(clock.file))))
        return begun[-1]

    yield make
    for server in begun:
        server.stop()


def jobs(server: LiveServer) -> list[dict]:
    query = {"limit": 100, "order": "asc"}
    return server.session.get(f"{server.url}/v1/videos", params=query, timeout=60).json()["data"]


@pytest.mark.parametrize("jump", [30 * 24 * HOUR, -30 * 24 * HOUR])
def test_a_clock_set_while_jobs_run_and_wait_changes_neither_their_order_nor_their_end(clock, begin, jump):
    server = begin("--fake-step-s", "0.1", "--queue-step-timeout-s", "60")
    prompts = ["one", "two", "three"]
    for prompt in prompts:
        assert create(server, prompt).status_code == 200
    until(lambda: [job["status"] for job in jobs(server)] == ["in_progress", "queued", "queued"])
    before = jobs(server)[0]["created_at"]
    clock.set(jump)
    assert create(server, "four").status_code == 200
    assert abs(jobs(server)[-1]["created_at"] - before - jump) < 600  # the jump did reach the server
    until(lambda: [job["status"] for job in jobs(server)] == ["completed"] * 4)
    assert [job["prompt"] for job in jobs(server)] == [*prompts, "four"]
    assert server.ready()
    assert "Traceback" not in server.log


@pytest.mark.fault("F16", "the clock is set back an hour in a predict call", before="a duration of -3598.9 s")
def test_a_clock_set_back_within_a_call_gives_no_negative_duration(clock, begin, record_property):
    server = begin("--fake-step-s", "0.1")
    answers = []
    for jump in (-HOUR, 0):
        clock.set(jump + HOUR)
        with_clock_set_back(server, clock, jump, answers)
    assert [answer.status_code for answer in answers] == [200, 200]
    durations = [answer.json()[name] for answer in answers for name in ("duration", "average_duration")]
    record_property("after", f"durations of {min(durations):.1f} to {max(durations):.1f} s")
    assert all(0.9 <= duration < HOUR / 2 for duration in durations)


def with_clock_set_back(server: LiveServer, clock: Clock, to: int, answers: list) -> None:
    """One call of /api/predict/, in the middle of which the clock is set to `to`."""
    begun = server.log.count("started, attempt")
    call = threading.Thread(target=lambda: answers.append(server.small_job()))
    call.start()
    until(lambda: server.log.count("started, attempt") > begun)
    clock.set(to)
    call.join(120)


def test_a_start_at_another_time_goes_on_with_what_waits(clock, begin):
    server = begin("--fake-step-s", "0.2")
    ids = [create(server, prompt).json()["id"] for prompt in ("one", "two")]
    until(lambda: [job["status"] for job in jobs(server)] == ["in_progress", "queued"])
    server.stop()
    clock.seen.unlink()
    clock.set(-30 * 24 * HOUR)
    again = begin()
    until(lambda: [job["status"] for job in jobs(again)] == ["completed"] * 2)
    assert [job["id"] for job in jobs(again)] == ids
