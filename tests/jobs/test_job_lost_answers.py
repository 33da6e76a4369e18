"""A change that the database keeps and whose answer is lost with the connection: made once, it counts as made."""

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_job_store import ENDS, RESULT, add, start

from i2v.engine.fake import FakeEngine
from i2v.errors import FatalEngineError, GenerationFailed, I2VError, NotFound, Unavailable
from i2v.jobs import settle
from i2v.jobs.job import FINAL, InvalidTransition
from i2v.jobs.schema import sqlite_url
from i2v.jobs.store import JobStore
from tests.jobs.job_doubles import DEADLINE_S, SMALL, Gate, MakeQueue, final, until


class Wire:
    """Between a store and its database: loses the answer to the next commit of the thread that asks for it.

    The commit itself is kept, and the connection breaks.
    """

    def __init__(self, store: JobStore) -> None:
        self.lost = 0
        self._thread: int | None = None
        dialect = store._database._engine.dialect
        broken: type[Exception] = dialect.loaded_dbapi.OperationalError
        real = dialect.do_commit

        def do_commit(connection: Any) -> None:
            real(connection)
            if self._thread == threading.get_ident():
                self._thread = None
                self.lost += 1
                if dialect.name == "postgresql":  # a server that goes takes its sessions with it
                    connection.dbapi_connection.close()
                raise broken("the connection was lost")

        dialect.do_commit = do_commit  # type: ignore[method-assign]

    def lose(self) -> None:
        self._thread = threading.get_ident()


@pytest.fixture
def wire(store: JobStore) -> Wire:
    return Wire(store)


@pytest.mark.parametrize("end", sorted(FINAL - {"interrupted"}))
def test_an_end_that_is_told_twice_is_one_end(store: JobStore, wire: Wire, end: str) -> None:
    add(store)
    claim = start(store)
    wire.lose()
    with pytest.raises(Unavailable):
        ENDS[end](store, claim)
    kept = store.get(claim.id)
    assert kept.status == end
    ENDS[end](store, claim)
    assert store.get(claim.id) == kept


def test_an_end_is_ours_only_with_the_same_file_boot_and_attempt(store: JobStore) -> None:
    add(store)
    claim = start(store)
    store.complete(claim, RESULT)
    others = [
        (claim, replace(RESULT, file="video_20260102_030405_zzzzzz.mp4")),
        (replace(claim, boot="boot-0"), RESULT),
        (replace(claim, attempt=2), RESULT),
    ]
    for other, result in others:
        with pytest.raises(InvalidTransition):
            store.complete(other, result)
    with pytest.raises(InvalidTransition):
        store.fail(claim, "generation_failed", "it broke")


def test_a_claim_whose_answer_was_lost_is_found_again(store: JobStore, wire: Wire) -> None:
    """The engine counted as taken by somebody else, and the server had to start again."""
    first, second = add(store, 1), add(store, 2)
    wire.lose()
    with pytest.raises(Unavailable):
        store.claim()
    assert store.get(first.id).status == "in_progress"
    found = store.claim()
    assert found is not None
    assert (found[0].id, found[0].attempt, found[0].status) == (first.id, 1, "in_progress")
    with pytest.raises(InvalidTransition):
        store.claim()
    store.complete(found[1], RESULT)
    assert start(store).id == second.id


def test_a_claim_that_was_not_kept_is_made_anew(store: JobStore) -> None:
    first = add(store)

    def die() -> None:
        raise RuntimeError("before the commit")

    with pytest.raises(RuntimeError):
        store.claim(before_commit=die)
    assert store.get(first.id).attempt == 0
    assert start(store).attempt == 1


# A whole queue


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    if request.param == "sqlite":
        return {"database": sqlite_url(tmp_path / "elsewhere.sqlite3")}
    return {"database": request.getfixturevalue("postgres_url")}


def test_a_video_whose_end_was_kept_without_an_answer_stays(
    make_queue: MakeQueue, database: dict[str, str], outputs: Path, dot: Image.Image
) -> None:
    """The second try read "settled by somebody else" and removed the file of a row that said completed."""
    wires: list[Wire] = []

    def failpoint(name: str) -> None:
        if name == "renamed":
            wires[0].lose()

    queue = make_queue(settings=database, failpoint=failpoint)
    wires.append(Wire(queue._opened().data.store))
    told: list[str] = []
    queue.on_final.append(lambda job: told.append(job.id))
    done = final(queue, queue.submit(SMALL, dot, door="cli"))
    queue.stop()
    assert (done.status, wires[0].lost, told) == ("completed", 1, [done.id])
    assert done.result is not None
    assert (outputs / done.result.file).is_file()
    assert (outputs / done.result.file).with_suffix(".json").is_file()


def fail_at_the_first_step(error: I2VError) -> Callable[[str, int], None]:
    def fault(_stage: str, _step: int) -> None:
        raise error

    return fault


@pytest.fixture
def only_a_stop_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that failed is not tried again before the server stops: the order that is seldom met by chance."""
    monkeypatch.setattr(settle, "RETRY_S", (DEADLINE_S * 10.0,))


@pytest.mark.usefixtures("only_a_stop_ends_the_wait")
@pytest.mark.parametrize("end", ["completed", "failed", "cancelled", "lost engine"])
def test_an_end_that_was_kept_without_an_answer_before_a_stop_is_told(
    make_queue: MakeQueue, database: dict[str, str], outputs: Path, dot: Image.Image, gate: Gate, end: str
) -> None:
    """The stop ended the wait for the next try, and the job was final without anybody being told."""
    faults: dict[str, Callable[[str, int], None]] = {
        "failed": fail_at_the_first_step(GenerationFailed("it broke")),
        "lost engine": fail_at_the_first_step(FatalEngineError("the context is lost")),
        "cancelled": gate,
    }
    settings = {**database, "queue": {"attempts": 1}, "predict": {"on_disconnect": "cancel"}}
    queue = make_queue(FakeEngine(fault=faults.get(end)), settings=settings)
    store, lost, told = queue._opened().data.store, threading.Event(), []
    wire = Wire(store)
    for name in ("complete", "fail", "cancel_running"):
        lose_first(store, name, wire, lost)
    queue.on_final.append(lambda job: told.append((job.id, job.status)))
    job = queue.submit(SMALL, dot, door="cli")
    if end == "cancelled":
        assert gate.reached.wait(DEADLINE_S)
        queue.abandon(job.id)
        gate.open()
    assert lost.wait(DEADLINE_S)
    queue.stop()
    status = {"lost engine": "failed"}.get(end, end)
    assert (told, wire.lost) == ([(job.id, status)], 1)
    assert len(list(outputs.glob("video_*.mp4"))) == (end == "completed")


def lose_first(store: JobStore, name: str, wire: Wire, lost: threading.Event) -> None:
    """Lose the answer to the first call of a method of the store, and say so once it has been lost."""
    method = getattr(store, name)

    def losing(*arguments: Any) -> Any:
        if not lost.is_set():
            wire.lose()
        try:
            return method(*arguments)
        finally:
            lost.set()

    setattr(store, name, losing)


@pytest.mark.usefixtures("only_a_stop_ends_the_wait")
def test_a_job_whose_start_was_kept_without_an_answer_before_a_stop_loses_no_attempt(
    make_queue: MakeQueue, database: dict[str, str], dot: Image.Image
) -> None:
    """It stayed in progress, and the next start took it for one that had run when its server died."""
    wires: list[Wire] = []
    lost = threading.Event()

    def failpoint(name: str) -> None:
        if name == "claiming" and not lost.is_set():
            wires[0].lose()
            lost.set()

    queue = make_queue(settings=database, failpoint=failpoint)
    store = queue._opened().data.store
    wires.append(Wire(store))
    job = queue.submit(SMALL, dot, door="cli")
    assert lost.wait(DEADLINE_S)
    until(lambda: wires[0].lost == 1)
    queue.stop()
    again = final(make_queue(settings=database), job)
    assert (again.status, again.attempt) == ("completed", 1)


def test_a_job_whose_start_was_kept_without_an_answer_runs_once_and_the_server_goes_on(
    make_queue: MakeQueue, database: dict[str, str], dot: Image.Image
) -> None:
    wires: list[Wire] = []
    points = itertools.count()

    def failpoint(name: str) -> None:
        if name == "claiming" and next(points) == 0:
            wires[0].lose()

    queue = make_queue(settings=database, failpoint=failpoint)
    wires.append(Wire(queue._opened().data.store))
    jobs = [queue.submit(SMALL, dot, door="cli") for _ in range(2)]
    done = [final(queue, job) for job in jobs]
    assert [(job.status, job.attempt) for job in done] == [("completed", 1)] * 2
    assert (wires[0].lost, queue.state) == (1, "ready")


def test_a_job_that_was_taken_without_an_answer_runs_when_its_key_comes_again(
    make_queue: MakeQueue, database: dict[str, str], dot: Image.Image
) -> None:
    """It waited in the queue until somebody else brought a job."""
    queue = make_queue(settings=database)
    store, rests = queue._opened().data.store, threading.Event()
    claim, wire = store.claim, Wire(store)

    def watched(**options: Any) -> Any:
        found = claim(**options)
        if found is None:
            rests.set()
        return found

    store.claim = watched  # type: ignore[method-assign]
    final(queue, queue.submit(SMALL, dot, door="cli"))
    rests.clear()
    queue._opened().worker.stir()
    until(lambda: rests.is_set() and not queue._opened().worker._stirred)
    wire.lose()
    with pytest.raises(Unavailable):
        queue.submit(SMALL, dot, door="cli", idempotency_key="k")
    again = queue.submit(SMALL, dot, door="cli", idempotency_key="k")
    assert (again.replayed, wire.lost) == (True, 1)
    assert final(queue, again).status == "completed"


def test_a_job_deleted_before_its_end_is_told_again_costs_nothing(
    make_queue: MakeQueue, database: dict[str, str], outputs: Path, dot: Image.Image
) -> None:
    """The row that was gone counted as a defect of the publisher, and the server had to start again."""
    wires: list[Wire] = []

    def failpoint(name: str) -> None:
        if name == "renamed" and not wires[0].lost:
            wires[0].lose()

    queue = make_queue(settings=database, failpoint=failpoint)
    store = queue._opened().data.store
    wires.append(Wire(store))
    complete = store.complete

    def then_deleted(claim: Any, result: Any) -> Any:
        try:
            return complete(claim, result)
        except Unavailable:
            queue.delete(claim.id)
            raise

    store.complete = then_deleted  # type: ignore[method-assign]
    job = queue.submit(SMALL, dot, door="cli")
    with pytest.raises(NotFound):
        final(queue, job)
    assert final(queue, queue.submit(SMALL, dot, door="cli")).status == "completed"
    assert (wires[0].lost, queue.state) == (1, "ready")
    assert len(list(outputs.glob("video_*.mp4"))) == 1
