"""Starting on a data folder: what is refused in a readable sentence, and what is put right."""

import errno
import fcntl
import logging
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from PIL import Image
from sqlalchemy.exc import OperationalError

from i2v.engine.fake import FakeEngine
from i2v.errors import FatalEngineError, Unavailable
from i2v.jobs import database, folder_lock
from i2v.jobs import outputs as outputs_folder
from i2v.jobs.queue import JobQueue
from i2v.jobs.schema import (
    KEEPALIVES,
    LOCK_WAIT_MS,
    POSTGRES_LOCK,
    SCHEMA_VERSION,
    DataError,
    open_database,
    sqlite_url,
)
from i2v.jobs.store import JobStore
from i2v.mutex import GpuMutex
from i2v.settings import Settings
from tests.jobs.job_doubles import DEADLINE_S, SMALL, Clock, MakeQueue, RunServer, final, quick_write, until
from tests.qa import live_server

ROOT = Path(__file__).resolve().parents[2]
NAME = "video_20260102_030405_abc123"


def start(outputs: Path, **fields: object) -> JobQueue:
    queue = JobQueue(Settings(outputs=outputs, **fields), write_video=quick_write)  # type: ignore[arg-type]
    queue.attach(FakeEngine(), GpuMutex())
    queue.start()
    return queue


def test_a_second_server_in_this_process_or_another_is_refused_and_told_who_to_stop(
    make_queue: MakeQueue, outputs: Path
) -> None:
    first = make_queue()
    with pytest.raises(DataError, match=f"process {os.getpid()}"):
        start(outputs)
    script = (
        "from i2v.jobs.queue import JobQueue; from i2v.settings import Settings; from pathlib import Path; import sys\n"
        "JobQueue(Settings(outputs=Path(sys.argv[1]))).start()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(outputs)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode != 0
    assert f"another i2v server (process {os.getpid()}) uses the folder" in done.stderr
    first.stop()
    start(outputs).stop()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start does not wait for a lock that another session holds."""
    monkeypatch.setattr(database, "START_WAIT_S", 0.0)


@pytest.mark.usefixtures("at_once")
def test_two_servers_on_one_postgresql_database_are_refused(postgres_url: str, outputs: Path, tmp_path: Path) -> None:
    first = start(outputs, database=postgres_url)
    with pytest.raises(DataError, match="another i2v server uses this PostgreSQL database"):
        start(tmp_path, database=postgres_url)
    first.stop()
    start(tmp_path, database=postgres_url).stop()


def cut_the_lock(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")


@pytest.mark.usefixtures("at_once")
def test_a_postgresql_restart_does_not_let_a_second_server_in(
    postgres_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = JobStore(postgres_url, "boot-1", clock)
    cut_the_lock(postgres_url)
    assert first.claim() is None  # and takes the lock again
    with pytest.raises(DataError):
        JobStore(postgres_url, "boot-2", clock)
    cut_the_lock(postgres_url)
    second = JobStore(postgres_url, "boot-2", clock)  # this one was quicker
    with pytest.raises(Unavailable):
        first.claim()
    monkeypatch.setattr(database, "LOCK_WAIT_S", 0.0)
    with pytest.raises(DataError):
        first.claim()
    first.close()
    second.close()


def is_away(store: JobStore) -> None:
    for _ in range(3):
        with pytest.raises(Unavailable):
            store.claim()


def is_back(store: JobStore, url: str, clock: Clock) -> None:
    """It works again, and holds the lock that keeps a second server out."""
    assert store.claim() is None
    with pytest.raises(DataError):
        JobStore(url, "boot-2", clock)
    store.close()


@pytest.mark.usefixtures("at_once")
def test_a_lock_that_the_database_still_holds_for_the_broken_session_is_waited_for(
    postgres_url: str, clock: Clock
) -> None:
    """The next look met a closed connection, and the worker died of it."""
    store = JobStore(postgres_url, "boot-1", clock)
    cut_the_lock(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as broken:
        broken.execute("SELECT pg_advisory_lock(%s)", (POSTGRES_LOCK,))
        is_away(store)
    is_back(store, postgres_url, clock)


@pytest.mark.usefixtures("at_once")
def test_a_database_that_is_away_for_several_looks_is_taken_up_again(
    postgres_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = JobStore(postgres_url, "boot-1", clock)
    with monkeypatch.context() as away:

        def refuse(*_arguments: object) -> None:
            raise OperationalError("connect", None, Exception("it starts up"))

        cut_the_lock(postgres_url)
        away.setattr(store._database._engine, "connect", refuse)
        is_away(store)
    is_back(store, postgres_url, clock)


def locks(url: str) -> list[int]:
    """The process ids of the database's sessions that hold an advisory lock."""
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted").fetchall()
    return [pid for (pid,) in rows]


def test_a_store_that_was_closed_holds_no_lock_though_its_session_has_not_ended(
    postgres_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock was left to the end of the session, which the next start met when it was quick."""
    store = JobStore(postgres_url, "boot-1", clock)
    engine = store._database._engine
    dialect_close = engine.dialect.do_close
    sessions: list[object] = []
    with monkeypatch.context() as slow:
        slow.setattr(engine.dialect, "do_close", sessions.append)
        slow.setattr(engine.dialect, "do_terminate", sessions.append)
        store.close()
    assert sessions
    assert locks(postgres_url) == []
    JobStore(postgres_url, "boot-2", clock).close()
    for session in sessions:
        dialect_close(session)  # type: ignore[arg-type]


@pytest.mark.fault("F18", "the lock file is deleted while a server runs", before="a second server starts on the folder")
@pytest.mark.parametrize("then", ["deleted", "replaced", "deleted with the process id"])
def test_a_second_server_is_kept_out_though_the_lock_file_is_gone(
    make_queue: MakeQueue,
    outputs: Path,
    then: str,
    dot: Image.Image,
    caplog: pytest.LogCaptureFixture,
    record_property: Callable[[str, str], None],
) -> None:
    first = make_queue()
    lock = outputs / folder_lock.LOCK_NAME
    lock.unlink()
    if then == "replaced":
        lock.touch()
    elif then != "deleted":
        (outputs / folder_lock.PID_NAME).unlink()
    with pytest.raises(DataError, match=r"another i2v server.* uses the folder") as refusal:
        start(outputs)
    assert first.storage_problem() is None
    assert "was deleted while the server runs; it is there again" in caplog.text
    assert lock.exists()
    with pytest.raises(DataError, match="another i2v server"):
        start(outputs)
    assert final(first, first.submit(SMALL, dot, door="cli")).status == "completed"
    first.stop()
    start(outputs).stop()
    record_property("after", f"refused: {str(refusal.value).partition(' uses')[0]}; the first one says so and heals it")


def test_a_server_whose_lock_was_taken_says_so_and_takes_no_job(
    make_queue: MakeQueue, outputs: Path, dot: Image.Image
) -> None:
    """By a server of an older version, which locks the file alone."""
    first = make_queue()
    lock = outputs / folder_lock.LOCK_NAME
    lock.unlink()
    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert first.storage_problem() == folder_lock.TAKEN
        with pytest.raises(Unavailable, match="two servers"):
            first.submit(SMALL, dot, door="cli")
    assert first.storage_problem() is None


def test_a_folder_that_is_moved_away_is_not_made_anew(make_queue: MakeQueue, outputs: Path) -> None:
    queue = make_queue()
    moved = outputs.with_name(f"{outputs.name}-moved")
    outputs.rename(moved)
    assert queue.storage_problem() is not None
    assert not outputs.exists()
    moved.rename(outputs)
    assert queue.storage_problem() is None


def test_where_folders_cannot_be_locked_the_file_is(
    make_queue: MakeQueue, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def refuse(descriptor: int, how: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", refuse)
    make_queue()
    with pytest.raises(DataError, match="another i2v server"):
        start(outputs)


@pytest.fixture
def waits(caplog: pytest.LogCaptureFixture) -> Callable[[], bool]:
    """Whether a start has said that it waits for the lock."""
    caplog.set_level(logging.WARNING, "i2v.jobs.database")
    return lambda: "waits up to 30 s for the lock of the job table" in caplog.text


def test_a_start_waits_for_the_session_of_an_earlier_server_and_says_so(
    postgres_url: str, clock: Clock, waits: Callable[[], bool]
) -> None:
    """It gave up at once."""
    with ThreadPoolExecutor() as pool, psycopg.connect(postgres_url, autocommit=True) as earlier:
        earlier.execute("SELECT pg_advisory_lock(%s)", (POSTGRES_LOCK,))
        opening = pool.submit(JobStore, postgres_url, "boot-2", clock)
        until(lambda: waits() or opening.done())
        earlier.close()
        opening.result(DEADLINE_S).close()


def test_a_server_that_was_killed_and_starts_again_at_once_waits_for_its_old_session(
    postgres_url: str, outputs: Path, waits: Callable[[], bool]
) -> None:
    """It gave up: the database may need a moment to see that the process is gone. Here its session is held still."""
    script = (
        "from i2v.jobs.queue import JobQueue; from i2v.settings import Settings; from pathlib import Path; import sys\n"
        "queue = JobQueue(Settings(outputs=Path(sys.argv[1]), database=sys.argv[2])); queue.start()\n"
        "print('started', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(outputs), postgres_url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"started\n"
        (session,) = locks(postgres_url)
        os.kill(session, signal.SIGSTOP)
        server.kill()
    try:
        with ThreadPoolExecutor() as pool:
            starting = pool.submit(start, outputs, database=postgres_url)
            until(lambda: waits() or starting.done())
            os.kill(session, signal.SIGCONT)
            again = starting.result(DEADLINE_S)
    finally:
        with suppress(ProcessLookupError):
            os.kill(session, signal.SIGCONT)
    assert server.returncode == -signal.SIGKILL
    assert (again.starts.number, again.starts.after_death) == (2, 1)
    again.stop()


@pytest.mark.slow
@pytest.mark.fault(
    "restart",
    "kill -9 on PostgreSQL, started again at once",
    before='"another i2v server uses this PostgreSQL database", exit code 1',
)
def test_a_real_server_that_was_killed_serves_again_with_its_queue(
    postgres_url: str, outputs: Path, waits: Callable[[], bool], record_property: Callable[[str, object], None]
) -> None:
    flags = ("--no-ui", "--database", postgres_url, "--fake-step-s", "60")
    first = live_server.start(outputs, *flags)
    try:
        jobs = [live_server.post_video(first) for _ in range(3)]
        (session,) = locks(postgres_url)
        os.kill(session, signal.SIGSTOP)  # so that it ends late, as on a machine with much to do
        first.process.kill()
        again = live_server.start(outputs, *flags, wait=False)
        until(lambda: "waits up to" in again.log or again.process.poll() is not None)
        os.kill(session, signal.SIGCONT)
        again.port = live_server.port_of(again)
        found = again.session.get(f"{again.url}/v1/videos", timeout=60).json()["data"]
        again.stop(signal.SIGKILL)
    finally:
        first.stop(signal.SIGKILL)
    assert {job["id"] for job in found} == set(jobs)
    assert {job["status"] for job in found} <= {"queued", "in_progress"}
    record_property("after", f"waits for the session, then serves, with all {len(found)} jobs")


def test_the_session_that_holds_the_lock_ends_soon_after_its_host_is_gone(postgres_url: str, clock: Clock) -> None:
    store = JobStore(postgres_url, "boot-1", clock)
    guard = store._database._guard
    assert guard is not None
    found = [guard.exec_driver_sql(f"SHOW tcp_{name}").scalar() for name in KEEPALIVES]
    assert [int(value or 0) for value in found] == list(KEEPALIVES.values())
    assert guard.connection.dbapi_connection is not None
    kept = guard.connection.dbapi_connection.info.get_parameters()  # type: ignore[attr-defined]
    assert {name: int(kept[name]) for name in KEEPALIVES} == KEEPALIVES
    store.close()


def test_a_whole_job_runs_on_postgresql(postgres_url: str, make_queue: MakeQueue, dot: Image.Image) -> None:
    queue = make_queue(settings={"database": postgres_url})
    done = final(queue, queue.submit(SMALL, dot, door="cli"))
    assert done.status == "completed"
    assert queue.input_image(done.id).size == dot.size
    assert queue.storage_ok()
    queue.delete(done.id)
    assert queue.list() == []


def test_a_newer_schema_is_refused_and_left_as_it_is(url: str, clock: Clock) -> None:
    JobStore(url, "boot", clock).close()
    engine = open_database(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE i2v_meta SET value = '99' WHERE key = 'schema'")
    engine.dispose()
    for _ in range(2):
        with pytest.raises(DataError, match=f"newer i2v \\(schema 99; this version knows {SCHEMA_VERSION}\\)"):
            JobStore(url, "boot", clock)


@pytest.mark.parametrize("damage", ["no database", "half", "garbled"])
def test_a_damaged_table_is_named_with_what_to_do(
    make_queue: MakeQueue, outputs: Path, dot: Image.Image, damage: str
) -> None:
    queue = make_queue()
    for _ in range(20):
        final(queue, queue.submit(SMALL, dot, door="cli"))
    queue.stop()
    file = outputs / "jobs.sqlite3"
    data = file.read_bytes()
    assert len(data) > 16384
    broken = {"no database": b"hello" * 1000, "half": data[: len(data) // 2], "garbled": _garbled(data)}[damage]
    file.write_bytes(broken)
    with pytest.raises(DataError, match=r"jobs\.sqlite3.*[Mm]ove it away"):
        start(outputs)
    file.unlink()
    start(outputs).stop()


def _garbled(data: bytes) -> bytes:
    """Everything behind the first page overwritten."""
    return data[:4096] + b"\xa5" * (len(data) - 4096)


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("")
    with pytest.raises(DataError, match="cannot be used"):
        start(tmp_path / "outputs")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://localhost/x", "not supported"),
        ("nonsense", "SQLAlchemy URL"),
        ("postgresql://somebody:secret@127.0.0.1:1/x", "cannot be opened"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_without_its_password(outputs: Path, url: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        start(outputs, database=url)
    assert "secret" not in str(caught.value)
    start(outputs).stop()  # nothing was held


def test_folder_and_files_have_the_promised_permissions(make_queue: MakeQueue, outputs: Path, dot: Image.Image) -> None:
    old = os.umask(0o077)
    try:
        queue = make_queue(write_video=None, settings={"outputs": outputs / "new"})
        done = final(queue, queue.submit(SMALL, dot, door="cli"))
    finally:
        os.umask(old)
    path = queue.video_path(done)
    modes = {name: stat.S_IMODE((path.parent / name).stat().st_mode) for name in (".", path.name, f"{path.stem}.json")}
    assert modes == {".": 0o755, path.name: 0o644, f"{path.stem}.json": 0o644}
    assert stat.S_IMODE((path.parent / "jobs.sqlite3").stat().st_mode) == 0o600, "prompts and photos are private"


def test_the_table_is_written_through_to_the_disk(outputs: Path, clock: Clock) -> None:
    store = JobStore(sqlite_url(outputs / "jobs.sqlite3"), "boot", clock)
    with store._database.reading() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    store.close()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": LOCK_WAIT_MS}


def test_a_start_sweeps_what_a_death_left_and_touches_nothing_else(
    make_queue: MakeQueue, outputs: Path, dot: Image.Image
) -> None:
    queue = make_queue()
    kept, lost = (final(queue, queue.submit(SMALL, dot, door="cli")) for _ in range(2))
    queue.video_path(lost).unlink()
    queue.stop()
    ours = [f"{NAME}.deadbeef.part", f"{NAME}.json.part", f"{NAME}.json"]
    theirs = ["holiday.mp4", "video_.part", f"{NAME[:-1]}X.mp4.part", "notes.json", "x.part"]
    orphan = "video_20250102_030405_zzzzzz.mp4"  # complete, without a row: somebody removed the table
    for name in [*ours, *theirs, orphan]:
        (outputs / name).write_text("x")
    again = make_queue()
    left = {path.name for path in outputs.iterdir()}
    assert not left & set(ours)
    assert {*theirs, orphan} <= left
    assert again.get(kept.id) == kept
    assert (again.get(lost.id).status, again.get(lost.id).error_code) == ("failed", "video_lost")


def test_a_reader_that_holds_the_table_does_not_stop_jobs(
    make_queue: MakeQueue, outputs: Path, dot: Image.Image
) -> None:
    queue = make_queue()
    with sqlite3.connect(outputs / "jobs.sqlite3") as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM i2v_jobs").fetchone()
        assert final(queue, queue.submit(SMALL, dot, door="cli")).status == "completed"


def test_nothing_of_the_database_reaches_a_caller(make_queue: MakeQueue, outputs: Path, dot: Image.Image) -> None:
    from i2v.errors import Unavailable

    queue = make_queue()
    job = final(queue, queue.submit(SMALL, dot, door="cli"))
    with sqlite3.connect(outputs / "jobs.sqlite3") as other:
        other.execute("ALTER TABLE i2v_jobs RENAME TO elsewhere")
    queue._opened().data.store._cache.clear()
    for ask in (lambda: queue.get(job.id), queue.list, lambda: queue.submit(SMALL, dot, door="cli")):
        with pytest.raises(Unavailable) as caught:
            ask()  # type: ignore[operator]
        assert "SELECT" not in caught.value.message
        assert str(outputs) not in caught.value.message
    assert not queue.storage_ok()


def test_starts_are_counted_and_those_after_a_death_apart(
    make_queue: MakeQueue, outputs: Path, run_server: RunServer
) -> None:
    first = make_queue()
    assert (first.starts.number, first.starts.after_death) == (1, 0)
    first.stop()
    run_server(outputs, "claimed", "any", 1)
    after_death = make_queue()
    assert (after_death.starts.number, after_death.starts.after_death) == (3, 1)
    after_death.stop()
    last = make_queue()
    assert (last.starts.number, last.starts.after_death) == (4, 1)


def test_a_lost_engine_counts_as_a_death(make_queue: MakeQueue, dot: Image.Image) -> None:
    def fault(stage: str, step: int) -> None:
        raise FatalEngineError("the context is lost")

    queue = make_queue(FakeEngine(fault=fault))
    lost = threading.Event()
    queue.on_fatal = lost.set
    queue.submit(SMALL, dot, door="cli")
    assert lost.wait(DEADLINE_S)
    queue.stop()
    assert make_queue().starts.after_death == 1


def test_a_start_that_is_refused_or_cannot_be_counted_leaves_no_death_behind(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was counted before it could fail, in four steps, and the next start was taken for one after a death."""
    start(outputs).stop()

    def fail(*_arguments: object) -> None:
        raise Unavailable("not now")

    for place, name in ((outputs_folder, "sweep"), (JobStore, "set_notes")):
        with monkeypatch.context() as failing:
            failing.setattr(place, name, fail)
            with pytest.raises(DataError):
                start(outputs)
    again = start(outputs)
    assert (again.starts.number, again.starts.after_death) == (2, 0)
    again.stop()
