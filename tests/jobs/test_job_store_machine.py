"""Any order of operations on the store: each does what was asked or says that it cannot; no job is lost.

A model in plain Python plays along: the state, attempt and place of every job. Deaths (a new boot) come at any point.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from test_job_store import RESULT, new

import tests.jobs.postgres_server as postgres
from i2v.errors import NotFound, QueueFull
from i2v.jobs.job import FINAL, Claim, InvalidTransition
from i2v.jobs.schema import sqlite_url
from i2v.jobs.store import JobStore
from tests.jobs.job_doubles import Clock, memory

CAPACITY = 4
ATTEMPTS = 2
ALL = st.integers(0, 9)  # picks one of the jobs there ever were, gone ones included


@dataclass
class Expected:
    number: int
    status: str = "queued"
    attempt: int = 0
    in_engine: bool = False
    published: bool = False  # its file is complete, its row is not
    boot: int = 0
    ended: tuple[Claim, str] | None = None  # by whom, and how


class StoreMachine(RuleBasedStateMachine):
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.boot = 1
        self.count = 0
        self.model: dict[str, Expected] = {}
        self.gone: set[str] = set()
        self.claims: list[Claim] = []
        self.store = self.open()

    def open(self) -> JobStore:
        return JobStore(self.url, f"boot-{self.boot}", self.clock)

    def pick(self, number: int) -> str:
        known = sorted({*self.model, *self.gone})
        return known[number % len(known)] if known else new(999).id

    def line(self) -> list[str]:
        waiting = [(job.number, id) for id, job in self.model.items() if job.status == "queued"]
        return [id for _number, id in sorted(waiting)]

    def holds(self, claim: Claim) -> Expected | None:
        """The job, when this claim is the one that may change it."""
        job = self.model.get(claim.id)
        current = job is not None and (job.status, job.attempt) == ("in_progress", claim.attempt)
        return job if current and claim.boot == f"boot-{self.boot}" else None

    @rule(back=st.booleans())
    def insert(self, back: bool) -> None:
        self.clock.move(hours=-1 if back else 1)
        job = new(self.count)
        if len(self.line()) >= CAPACITY:
            with pytest.raises(QueueFull):
                self.store.insert(job, capacity=CAPACITY)
            return
        self.store.insert(job, capacity=CAPACITY)
        self.model[job.id] = Expected(self.count)
        self.count += 1

    @rule()
    def claim(self) -> None:
        if any(job.in_engine for job in self.model.values()):
            with pytest.raises(InvalidTransition):
                self.store.claim()
            return
        found = self.store.claim()
        line = self.line()
        assert (found is None) == (not line)
        if found is not None:
            job, claim = found
            assert job.id == line[0]
            expected = self.model[job.id]
            expected.status, expected.in_engine, expected.boot = "in_progress", True, self.boot
            expected.attempt += 1
            assert job.attempt == expected.attempt
            self.claims.append(claim)

    @rule(
        number=ALL,
        change=st.sampled_from(["complete", "fail", "cancel", "requeue", "give back", "write", "publish"]),
    )
    def change(self, number: int, change: str) -> None:
        if not self.claims:
            return
        claim = self.claims[number % len(self.claims)]
        act: Callable[[], Any] = {
            "complete": lambda: self.store.complete(claim, RESULT),
            "fail": lambda: self.store.fail(claim, "generation_failed", "it broke"),
            "cancel": lambda: self.store.cancel_running(claim),
            "requeue": lambda: self.store.requeue(claim, count=True),
            "give back": lambda: self.store.requeue(claim, count=False),
            "write": lambda: self.store.begin_write(claim, RESULT.file, RESULT),
            "publish": lambda: self.store.begin_write(claim, f"{claim.id}.mp4", RESULT),
        }[change]
        job, known = self.holds(claim), self.model.get(claim.id)
        if job is None and known is not None and known.ended == (claim, change):
            assert act().is_final  # its answer may have been lost: once more is no error, and changes nothing
            return
        back = ("queued", claim.attempt - (change == "give back"))
        if job is None and change in ("requeue", "give back") and known and (known.status, known.attempt) == back:
            assert act().status == "queued"  # it is where it should go, whoever put it there: nothing changes
            return
        if job is None:
            with pytest.raises(InvalidTransition if known else NotFound):
                act()
            return
        act()
        if change in ("write", "publish"):
            job.in_engine, job.published = False, change == "publish"
        else:
            states = {"complete": "completed", "fail": "failed", "cancel": "cancelled"}
            job.status, job.in_engine, job.published = states.get(change, "queued"), False, False
            job.attempt -= change == "give back"
            job.ended = (claim, change) if job.status in FINAL else None

    @rule(number=ALL)
    def cancel_queued(self, number: int) -> None:
        id = self.pick(number)
        job = self.model.get(id)
        if job is not None and job.status == "queued":
            assert self.store.cancel_queued(id).status == "cancelled"
            job.status = "cancelled"
        else:
            with pytest.raises(InvalidTransition if job else NotFound):
                self.store.cancel_queued(id)

    @rule(number=ALL)
    def delete(self, number: int) -> None:
        id = self.pick(number)
        job = self.model.get(id)
        if job is not None and job.status in FINAL:
            self.store.delete(id)
            del self.model[id]
            self.gone.add(id)
        else:
            with pytest.raises(InvalidTransition if job else NotFound):
                self.store.delete(id)

    @rule()
    def die(self) -> None:
        """The process is killed and started again; complete files are those that were renamed."""
        self.store.close()
        self.boot += 1
        self.store = self.open()
        decided = self.store.recover(
            ATTEMPTS, lambda file: 1 if file.startswith("video_0") and len(file) > 33 else None
        )
        running = {id: job for id, job in self.model.items() if job.status == "in_progress"}
        assert set(decided) == set(running)
        for id, job in running.items():
            again = "queued" if job.attempt < ATTEMPTS else "interrupted"
            job.status = "completed" if job.published else again
            job.in_engine = job.published = False
            assert decided[id] == job.status

    @invariant()
    def the_table_is_what_the_model_says(self) -> None:
        stored = {job.id: (job.status, job.attempt) for job in self.store.list(limit=1000)}
        assert stored == {id: (job.status, job.attempt) for id, job in self.model.items()}
        assert [job.id for job in self.store.waiting()] == self.line()

    @invariant()
    def never_two_in_the_engine(self) -> None:
        running = self.store.list(limit=1000, status="in_progress")
        assert sum(job.stage != "write" for job in running) <= 1

    @invariant()
    def a_result_exactly_when_completed(self) -> None:
        for job in self.store.list(limit=1000):
            assert (job.result is not None) == (job.status == "completed")
            assert (job.completed_at is not None) == job.is_final

    def teardown(self) -> None:
        self.store.close()


SETTINGS = settings(
    stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)


@pytest.mark.slow
def test_any_order_of_operations_on_sqlite_keeps_every_promise() -> None:
    folder = Path(tempfile.mkdtemp(dir=memory()))

    class Machine(StoreMachine):
        def open(self) -> JobStore:
            return JobStore(sqlite_url(folder / "jobs.sqlite3"), f"boot-{self.boot}", self.clock)

        def teardown(self) -> None:
            super().teardown()
            for file in folder.iterdir():
                file.unlink()

    try:
        run_state_machine_as_test(Machine, settings=settings(SETTINGS, max_examples=40))
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
def test_any_order_of_operations_on_postgresql_keeps_every_promise(postgres_url: str) -> None:
    class Machine(StoreMachine):
        url = postgres_url

        def teardown(self) -> None:
            super().teardown()
            postgres.empty(postgres_url)

    run_state_machine_as_test(Machine, settings=settings(SETTINGS, max_examples=8))
