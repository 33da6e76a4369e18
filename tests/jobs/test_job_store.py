"""The store on SQLite and on a real PostgreSQL server: what is asked for happens, or an error says that it cannot."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import inspect, select

from i2v.errors import Conflict, NotFound, QueueFull, TooManyJobs
from i2v.jobs import database
from i2v.jobs.job import FINAL, Claim, InvalidTransition, Job, JobResult, NewJob, PendingWebhook
from i2v.jobs.schema import SCHEMA_VERSION, DataError, meta, open_database
from i2v.jobs.store import JobStore
from tests.jobs.job_doubles import SMALL, Clock

RESULT = JobResult(
    file="video_20260102_030405_abcdef.mp4",
    bytes=123,
    seed=7,
    guidance_scale=9.0,
    model="fake",
    model_title="Fake",
    device="cpu",
    seconds=1.5,
    stage_seconds={"denoise": 1.5},
    peak_memory_mb=None,
    plan=None,
    notes=("a note",),
    warnings=(),
)


def new(number: int = 0, **fields: object) -> NewJob:
    request = SMALL.model_copy(update={"seed": number, "prompt": f"prompt {number}"})
    return NewJob(**{"id": f"video_{number:024x}", "request": request, "png": b"png", "door": "videos", **fields})


def add(store: JobStore, number: int = 0, **fields: object) -> Job:
    return store.insert(new(number, **fields), capacity=1000)[0]


def start(store: JobStore, slot: int = 0) -> Claim:
    found = store.claim(slot)
    assert found is not None
    return found[1]


ENDS: dict[str, Callable[[JobStore, Claim], None]] = {
    "completed": lambda store, claim: store.complete(claim, RESULT),
    "failed": lambda store, claim: store.fail(claim, "generation_failed", "it broke"),
    "cancelled": lambda store, claim: store.cancel_running(claim),
    "interrupted": lambda store, claim: [store.recover(1, lambda _file: None)],
}
SAME_AGAIN = {("completed", "complete"), ("cancelled", "cancel a running one")}  # the end it has already
CHANGES: dict[str, Callable[[JobStore, Claim], object]] = {
    "complete": lambda store, claim: store.complete(claim, RESULT),
    "fail": lambda store, claim: store.fail(claim, "x", "y"),
    "cancel a running one": lambda store, claim: store.cancel_running(claim),
    "cancel a queued one": lambda store, claim: store.cancel_queued(claim.id),
    "requeue": lambda store, claim: store.requeue(claim, count=True),
    "begin to write": lambda store, claim: store.begin_write(claim, RESULT.file, RESULT),
}


def test_a_job_comes_back_as_it_was_put_in(store: JobStore, clock: Clock) -> None:
    added = add(store, 5)
    assert store.get(added.id) == added
    assert (added.status, added.door, added.attempt, added.created_at) == ("queued", "videos", 0, clock.now)
    assert added.request.seed == 5
    assert store.png(added.id) == b"png"


def test_a_full_life_keeps_times_attempt_and_result(store: JobStore, clock: Clock) -> None:
    add(store)
    clock.move(seconds=10)
    claim = start(store)
    started = store.get(claim.id)
    assert (started.status, started.stage, started.attempt, started.started_at) == (
        "in_progress",
        "encode",
        1,
        clock.now,
    )
    store.begin_write(claim, RESULT.file, RESULT)
    assert store.get(claim.id).stage == "write"
    clock.move(seconds=5)
    store.complete(claim, RESULT)
    done = store.get(claim.id)
    assert (done.status, done.result, done.completed_at, done.stage) == ("completed", RESULT, clock.now, None)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("end", ENDS)
def test_a_finished_row_never_changes(store: JobStore, end: str, change: str) -> None:
    add(store)
    claim = start(store)
    ENDS[end](store, claim)
    before = store.get(claim.id)
    assert before.status == end
    if (end, change) in SAME_AGAIN:
        CHANGES[change](store, claim)
    else:
        with pytest.raises(InvalidTransition):
            CHANGES[change](store, claim)
    assert store.get(claim.id) == before


@pytest.mark.parametrize("change", [name for name in CHANGES if name != "cancel a queued one"])
@pytest.mark.parametrize("stranger", ["another boot", "an earlier attempt"])
def test_a_running_job_is_changed_only_by_the_boot_and_attempt_that_run_it(
    store: JobStore, change: str, stranger: str
) -> None:
    add(store)
    claim = start(store)
    other = replace(claim, boot="boot-0") if stranger == "another boot" else replace(claim, attempt=0)
    before = store.get(claim.id)
    with pytest.raises(InvalidTransition):
        CHANGES[change](store, other)
    assert store.get(claim.id) == before


def test_the_order_is_that_of_arrival_whatever_the_clock_says(store: JobStore, clock: Clock) -> None:
    for number in range(4):
        add(store, number)
        clock.move(hours=-1)
    assert [job.id[-1] for job in store.waiting()] == ["0", "1", "2", "3"]
    ran = []
    for _ in range(4):
        claim = start(store)
        ran.append(claim.id[-1])
        store.cancel_running(claim)
    assert ran == ["0", "1", "2", "3"]
    assert store.claim() is None


def test_an_engine_is_given_one_job_at_a_time(store: JobStore) -> None:
    add(store, 1)
    add(store, 2)
    claim = start(store)
    with pytest.raises(InvalidTransition):
        store.claim()
    store.begin_write(claim, RESULT.file, RESULT)  # the engine is free, the file is not there yet
    assert start(store).id == new(2).id
    assert store.counts() == {"in_progress": 2}


def test_claims_from_many_threads_start_each_job_once(store: JobStore) -> None:
    for number in range(20):
        add(store, number)

    def claim(slot: int) -> str:
        return start(store, slot).id

    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(claim, range(20)))
    assert sorted(claimed) == [new(number).id for number in range(20)]


def test_the_queue_is_bounded_also_for_callers_at_once(store: JobStore) -> None:
    barrier = threading.Barrier(32)

    def submit(number: int) -> bool:
        barrier.wait()
        try:
            store.insert(new(number), capacity=8)
        except QueueFull:
            return False
        return True

    with ThreadPoolExecutor(32) as pool:
        taken = list(pool.map(submit, range(32)))
    assert sum(taken) == 8
    assert len(store.waiting()) == 8


def test_one_callers_share_does_not_touch_the_others(store: JobStore) -> None:
    store.insert(new(1, caller="a"), capacity=9, per_caller=1)
    with pytest.raises(TooManyJobs):
        store.insert(new(2, caller="a"), capacity=9, per_caller=1)
    store.insert(new(3, caller="b"), capacity=9, per_caller=1)
    store.insert(new(4), capacity=9, per_caller=1)
    assert len(store.waiting()) == 3


def test_a_key_names_one_job_and_another_body_is_a_conflict(store: JobStore) -> None:
    first, replayed = store.insert(new(1, idempotency_key="k", fingerprint="f"), capacity=1)
    assert not replayed
    again, replayed = store.insert(new(2, idempotency_key="k", fingerprint="f"), capacity=1)
    assert (again, replayed) == (first, True), "and a full queue does not stand in the way of a replay"
    with pytest.raises(Conflict):
        store.insert(new(3, idempotency_key="k", fingerprint="other"), capacity=9)
    assert len(store.waiting()) == 1


def test_32_callers_with_one_key_at_once_make_one_job(store: JobStore) -> None:
    barrier = threading.Barrier(32)

    def submit(number: int) -> str:
        barrier.wait()
        return store.insert(new(number, idempotency_key="k", fingerprint="f"), capacity=99)[0].id

    with ThreadPoolExecutor(32) as pool:
        ids = set(pool.map(submit, range(32)))
    assert len(ids) == 1
    assert len(store.waiting()) == 1


def test_pages_follow_each_other_without_gap_or_repeat_in_both_orders(store: JobStore) -> None:
    for number in range(7):
        add(store, number)
    for order, expected in (("asc", "0123456"), ("desc", "6543210")):
        seen, after = "", None
        while page := store.list(after=after, limit=3, order=order):  # type: ignore[arg-type]
            seen += "".join(job.id[-1] for job in page)
            after = page[-1].id
        assert seen == expected


def test_a_list_can_be_narrowed_by_state_and_by_words(store: JobStore) -> None:
    for number in range(3):
        add(store, number)
    add(store, 9, request=SMALL.model_copy(update={"prompt": "100% _wool_ Ärger", "seed": 1}))
    claim = start(store)
    assert [job.id for job in store.list(status="in_progress")] == [claim.id]
    assert [job.id[-1] for job in store.list(search="PROMPT 2")] == ["2"]
    assert [job.id[-1] for job in store.list(search="0% _WOOL")] == ["9"]
    assert not store.list(search="0%_wool"), "wildcards are only characters"
    assert not store.list(search="\ud800x\0")


def test_an_unknown_job_is_not_found_whatever_its_name(store: JobStore) -> None:
    for name in (new(1).id, "", "video_", "'; drop table i2v_jobs", "\0", "\ud800", "x" * 10_000, "../../etc/passwd"):
        for ask in (store.get, store.png, store.cancel_queued, store.delete):
            with pytest.raises(NotFound) as caught:
                ask(name)
            assert len(caught.value.message) < 80
        with pytest.raises(NotFound):
            store.list(after=name)


def test_only_finished_jobs_are_deleted_and_their_photo_with_them(store: JobStore) -> None:
    add(store)
    with pytest.raises(InvalidTransition):
        store.delete(new().id)
    claim = start(store)
    with pytest.raises(InvalidTransition):
        store.delete(claim.id)
    store.complete(claim, RESULT)
    store.delete(claim.id)
    for ask in (store.get, store.png):
        with pytest.raises(NotFound):
            ask(claim.id)


def test_a_deleted_jobs_place_in_the_order_is_not_given_again(store: JobStore) -> None:
    """A page that starts behind the newest job must not lose the next one because it inherited a number."""
    add(store, 1)
    add(store, 2)
    store.cancel_queued(new(2).id)
    store.delete(new(2).id)
    add(store, 3)
    assert [job.id for job in store.list(after=new(1).id, order="asc")] == [new(3).id]
    assert [job.id for job in store.list(order="asc")] == [new(1).id, new(3).id]


def test_stopping_gives_the_attempt_back_and_dying_does_not(store: JobStore) -> None:
    add(store)
    store.requeue(start(store), count=False)
    assert store.get(new().id).attempt == 0
    store.requeue(start(store), count=True)
    job = store.get(new().id)
    assert (job.status, job.attempt, job.started_at, job.stage) == ("queued", 1, None, None)


def test_after_a_death_the_running_job_runs_once_more_in_its_old_place_then_is_interrupted(
    url: str, clock: Clock
) -> None:
    first = JobStore(url, "boot-1", clock)
    add(first, 1)
    add(first, 2)
    start(first)
    first.close()
    clock.move(hours=-1)  # recovery must not look at it
    second = JobStore(url, "boot-2", clock)
    assert second.recover(2, lambda _file: None) == {new(1).id: "queued"}
    assert [job.id for job in second.waiting()] == [new(1).id, new(2).id]
    assert start(second) == Claim(new(1).id, "boot-2", 2)
    second.close()
    third = JobStore(url, "boot-3", clock)
    assert third.recover(2, lambda _file: None) == {new(1).id: "interrupted"}
    job = third.get(new(1).id)
    assert (job.status, job.error_code, job.attempt) == ("interrupted", "interrupted", 2)
    assert [found.id for found in third.list(status="failed")] == [job.id]
    assert third.recover(2, lambda _file: None) == {}
    third.close()


def test_a_video_that_was_complete_when_the_process_died_is_kept(store: JobStore) -> None:
    add(store, 1)
    claim = start(store)
    store.begin_write(claim, RESULT.file, replace(RESULT, bytes=0))
    assert store.recover(1, {RESULT.file: 456}.get) == {claim.id: "completed"}
    job = store.get(claim.id)
    assert job.result == replace(RESULT, bytes=456)


def test_a_completed_row_whose_file_vanished_says_so(store: JobStore) -> None:
    add(store)
    claim = start(store)
    store.complete(claim, RESULT)
    store.mark_lost(claim.id)
    job = store.get(claim.id)
    assert (job.status, job.error_code, job.result) == ("failed", "video_lost", None)
    with pytest.raises(InvalidTransition):
        store.mark_lost(claim.id)


def test_retention_sees_finished_videos_but_for_those_another_job_still_needs(store: JobStore, clock: Clock) -> None:
    for number in range(3):
        add(store, number)
        store.complete(start(store), replace(RESULT, bytes=10))
        clock.move(days=1)
    add(store, 7, extends=new(0).id)
    assert [video.id[-1] for video in store.videos()] == ["0", "1", "2"]
    assert [video.id[-1] for video in store.videos(removable=True)] == ["1", "2"]
    assert [video.id[-1] for video in store.videos(before=clock.now.replace(day=4))] == ["0", "1"]
    assert store.videos_total() == (3, 30)
    assert store.continued(new(0).id)
    store.cancel_queued(new(7).id)
    assert not store.continued(new(0).id)


def test_rows_without_a_video_are_bounded_and_others_untouched(store: JobStore) -> None:
    for number in range(10):
        add(store, number)
        store.cancel_running(start(store)) if number % 2 else store.complete(start(store), RESULT)
    add(store, 11)
    assert store.forget_failures(2) == 3
    assert store.forget_failures(2) == 0
    assert store.counts() == {"completed": 5, "cancelled": 2, "queued": 1}
    assert [job.id[-1] for job in store.list(status="cancelled")] == ["9", "7"]


def test_a_reader_sees_a_change_as_soon_as_it_was_made(store: JobStore) -> None:
    """Rows are kept in memory between writes; a write has to end that."""
    add(store)
    assert store.get(new().id).status == "queued"
    claim = start(store)
    assert store.get(new().id).status == "in_progress"
    store.fail(claim, "x", "y")
    assert store.get(new().id).status == "failed"


def test_every_state_but_the_first_two_is_final() -> None:
    assert set(ENDS) == FINAL


@pytest.mark.parametrize("end", ENDS)
def test_how_a_job_ended_is_owed_to_its_address_even_when_the_job_is_gone(
    store: JobStore, clock: Clock, end: str
) -> None:
    job = add(store, webhook="https://example.com/")
    add(store, 1)
    assert store.pending_webhooks() == []
    claim = start(store)
    assert store.pending_webhooks() == []
    clock.move(seconds=5)
    ENDS[end](store, claim)
    pending = [PendingWebhook(job.id, "https://example.com/", end, clock())]
    assert store.pending_webhooks() == pending
    store.delete(job.id)
    assert store.pending_webhooks() == pending
    store.forget_webhook(job.id)
    assert store.pending_webhooks() == []


def test_addresses_of_before_they_said_how_their_job_ended_are_owed_after_the_upgrade(url: str, clock: Clock) -> None:
    before = JobStore(url, "boot-1", clock)
    ended, gone, waiting = (add(before, number, webhook="https://example.com/") for number in range(3))
    before.cancel_queued(ended.id)
    before.cancel_queued(gone.id)
    before.delete(gone.id)
    with before._database.writing() as connection:
        for column in ("status", "ended_at"):
            connection.exec_driver_sql(f"ALTER TABLE i2v_webhooks DROP COLUMN {column}")
    before.close()
    store = JobStore(url, "boot-2", clock)
    assert store.pending_webhooks() == [PendingWebhook(ended.id, "https://example.com/", "cancelled", clock())]
    clock.move(seconds=5)
    store.cancel_queued(waiting.id)
    assert [pending.job_id for pending in store.pending_webhooks()] == [ended.id, waiting.id]
    store.close()


# As version 1 made its tables.
OLD_TABLES = """
CREATE TABLE i2v_meta (key VARCHAR(40) NOT NULL, value TEXT NOT NULL, PRIMARY KEY (key));
CREATE TABLE i2v_jobs (
    seq {serial}, id VARCHAR(40) NOT NULL, status VARCHAR(16) NOT NULL, priority INTEGER NOT NULL,
    door VARCHAR(16) NOT NULL, caller TEXT, request TEXT NOT NULL, prompt TEXT NOT NULL,
    created_at {real} NOT NULL, started_at {real}, completed_at {real}, attempt INTEGER NOT NULL,
    boot_id VARCHAR(40), slot INTEGER, stage VARCHAR(16), step INTEGER NOT NULL, error_code VARCHAR(40),
    error_message TEXT, file TEXT, bytes BIGINT, result TEXT, idempotency_key TEXT, fingerprint VARCHAR(64),
    extends VARCHAR(40), UNIQUE (id), UNIQUE (slot), UNIQUE (idempotency_key)
);
CREATE INDEX i2v_jobs_by_order ON i2v_jobs (status, priority, seq);
CREATE TABLE i2v_inputs (
    job_id VARCHAR(40) NOT NULL, png {blob} NOT NULL, PRIMARY KEY (job_id),
    FOREIGN KEY (job_id) REFERENCES i2v_jobs (id) ON DELETE CASCADE
);
CREATE TABLE i2v_webhooks (
    job_id VARCHAR(40) NOT NULL, url TEXT NOT NULL, status VARCHAR(16), ended_at {real}, PRIMARY KEY (job_id)
);
INSERT INTO i2v_meta VALUES ('schema', '1');
INSERT INTO i2v_jobs (id, status, priority, door, request, prompt, created_at, attempt, step, slot, boot_id) VALUES
    ('video_{zero:024x}', 'queued', 0, 'videos', '{request}', 'the sea', 1767323045.0, 0, 0, NULL, NULL),
    ('video_{one:024x}', 'in_progress', 0, 'videos', '{request}', 'the sea', 1767323046.0, 1, 3, 0, 'boot-0');
INSERT INTO i2v_inputs SELECT id, {photo} FROM i2v_jobs;
"""
OLD_TYPES = {
    "sqlite": {"serial": "INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT", "real": "DOUBLE", "blob": "BLOB"},
    "postgresql": {"serial": "BIGSERIAL NOT NULL PRIMARY KEY", "real": "DOUBLE PRECISION", "blob": "BYTEA"},
}


@pytest.fixture
def old_url(url: str) -> str:
    """A database of version 1 with a job that waits and one that ran when its server died."""
    engine = open_database(url)
    types, request = OLD_TYPES[engine.dialect.name], SMALL.with_seed().model_dump_json()
    photo = "X'706e67'" if engine.dialect.name == "sqlite" else "'png'::bytea"
    statements = OLD_TABLES.format(**types, zero=0, one=1, request=request, photo=photo)
    with engine.begin() as connection:
        for statement in statements.split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)
    engine.dispose()
    return url


def test_a_database_of_the_first_version_is_taken_over_with_its_jobs(old_url: str, clock: Clock) -> None:
    """Its jobs had a priority, which each new row had to give."""
    store = JobStore(old_url, "boot-1", clock)
    assert store.recover(2, lambda _file: None) == {new(1).id: "queued"}
    added = add(store, 2)
    assert [job.id for job in store.waiting()] == [new(0).id, new(1).id, added.id]
    assert store.png(new(1).id) == b"png"
    for _ in range(3):
        store.complete(start(store), RESULT)
    store.delete(new(0).id)
    store.close()
    again = JobStore(old_url, "boot-2", clock)
    assert again.counts() == {"completed": 2}
    with again._database.reading() as connection:
        indexes = [(index["name"], index["column_names"]) for index in inspect(connection).get_indexes("i2v_jobs")]
        assert ("i2v_jobs_by_order", ["status", "seq"]) in indexes
        assert connection.scalar(select(meta.c.value).where(meta.c.key == "schema")) == str(SCHEMA_VERSION)
    again.close()


def test_a_database_that_another_server_uses_is_not_upgraded_under_it(
    postgres_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "START_WAIT_S", 0.0)
    first = JobStore(postgres_url, "boot-1", clock)
    with first._database.writing() as connection:
        for name in ("priority", "stage"):
            connection.exec_driver_sql(f"ALTER TABLE i2v_jobs ADD COLUMN {name} INTEGER")
    with pytest.raises(DataError):
        JobStore(postgres_url, "boot-2", clock)
    with first._database.reading() as connection:
        assert "priority" in [column["name"] for column in inspect(connection).get_columns("i2v_jobs")]
    first.close()


def test_a_request_is_parsed_only_where_it_is_not_known_and_few_are_kept(
    store: JobStore, url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("i2v.jobs.store.CACHED", 2)
    added = [add(store, number) for number in range(3)]
    found = store.claim()
    assert found is not None
    assert found[0].request == added[0].request
    assert found[0].request is not added[0].request, "forgotten for newer ones, and read from its row"
    assert store.get(added[2].id).request is added[2].request
    assert [job.request for job in store.waiting()] == [job.request for job in added[1:]]
    assert len(store._requests) == 2
