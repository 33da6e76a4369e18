"""The tables of the job store and how a database is opened: SQLite with full durability, or PostgreSQL by URL.

Knows no job logic. `open_database` refuses, in a readable sentence, what it cannot serve: a newer schema, a file that
is no database, a folder that cannot be written. `complete_schema` creates the tables and upgrades older ones.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from sqlite3 import SQLITE_BUSY, SQLITE_LOCKED, DatabaseError
from typing import Any
from urllib.parse import quote

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Engine,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    delete,
    event,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from i2v.jobs.postgres import AnswerLimit, connector

log = logging.getLogger(__name__)

SCHEMA_VERSION = 2  # 1 had two more columns, `priority` and `stage`
LOCK_WAIT_MS = 800  # for a lock that another process holds (an sqlite3 shell, a VACUUM): callers hear of it in 2 s
KEEPALIVES = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3}  # a dead peer shows in 30 s
POOL: dict[str, Any] = {"pool_size": 8, "max_overflow": 24, "pool_timeout": 1.0}  # 32 connections; wait for one in s
POSTGRES_LOCK = 0x69327632  # advisory lock key, "i2v2"; one server per database

metadata = MetaData()
_Serial = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers only INTEGER PRIMARY KEY by itself

meta = Table("i2v_meta", metadata, Column("key", String(40), primary_key=True), Column("value", Text, nullable=False))

jobs = Table(
    "i2v_jobs",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),  # never reused: the order of arrival
    Column("id", String(40), nullable=False, unique=True),
    Column("status", String(16), nullable=False),
    Column("door", String(16), nullable=False),
    Column("caller", Text),
    Column("request", Text, nullable=False),  # GenerateRequest as JSON, seed set
    Column("prompt", Text, nullable=False),  # for search
    Column("created_at", Double, nullable=False),  # seconds since 1970, UTC, as are all times
    Column("started_at", Double),
    Column("completed_at", Double),
    Column("attempt", Integer, nullable=False),  # how often it was started
    Column("boot_id", String(40)),  # the server process that runs it
    Column("slot", Integer, unique=True),  # the engine it occupies; the database itself refuses two jobs in one
    Column("step", Integer, nullable=False),  # how far a job came that failed or was cancelled
    Column("error_code", String(40)),
    Column("error_message", Text),
    Column("file", Text),  # name inside the outputs folder, known before it is written
    Column("bytes", BigInteger),
    Column("result", Text),  # JobResult as JSON, known before the file is written
    Column("idempotency_key", Text, unique=True),
    Column("fingerprint", String(64)),
    Column("extends", String(40)),  # the job whose video this one continues
    sqlite_autoincrement=True,
)
by_order = Index("i2v_jobs_by_order", jobs.c.status, jobs.c.seq)

inputs = Table(
    "i2v_inputs",
    metadata,
    Column("job_id", String(40), ForeignKey(jobs.c.id, ondelete="CASCADE"), primary_key=True),
    Column("png", LargeBinary, nullable=False),
)

webhooks = Table(
    "i2v_webhooks",  # a row goes when the address has been told or given up; it outlives a job that is deleted at once
    metadata,
    Column("job_id", String(40), primary_key=True),
    Column("url", Text, nullable=False),
    Column("status", String(16)),  # how the job ended, and when; empty before
    Column("ended_at", Double),
)


class DataError(RuntimeError):
    """The data folder or the database cannot be used; the message says why and what to do. Ends the start."""


class TableLocked(DataError):
    """Another process holds the job table at the moment: trying again may help."""


def sqlite_url(file: Path) -> str:
    """The URL of the default store."""
    return URL.create("sqlite", database=str(file)).render_as_string()


def open_database(url: str) -> Engine:
    """Connect and check what is there; changes nothing. Raises `DataError`."""
    engine = _engine(url)
    with _opening(engine) as shown:
        _make_private(engine.url)
        with engine.connect().execution_options(i2v_readonly=True) as connection:
            _check_version(connection, shown)
            _check_file(connection, shown)
    return engine


def complete_schema(engine: Engine) -> None:
    """Create missing tables and upgrade those of an earlier version. Only for whoever holds the database's lock.

    Raises `DataError`.
    """
    with _opening(engine), engine.begin() as connection:
        metadata.create_all(connection)
        _complete_webhooks(connection)
        _drop_columns(connection)
        if not connection.execute(
            update(meta).where(meta.c.key == "schema").values(value=str(SCHEMA_VERSION))
        ).rowcount:
            connection.execute(insert(meta).values(key="schema", value=str(SCHEMA_VERSION)))


@contextmanager
def _opening(engine: Engine) -> Iterator[str]:
    """Yields the database's URL without its password; an error becomes a `DataError` that names it."""
    shown = engine.url.render_as_string(hide_password=True)
    try:
        yield shown
    except (SQLAlchemyError, DatabaseError, OSError) as error:  # what a connect listener meets comes unwrapped
        engine.dispose()
        cause = getattr(error, "orig", None) or error
        if _is_locked(cause):
            raise TableLocked(f"the job table {shown} is locked by {_holder(engine.url)}") from None
        reason = getattr(error, "strerror", None) or str(cause).strip().splitlines()[0]
        raise DataError(
            f"the job table {shown} cannot be opened: {reason}. If the file is damaged, move it away: "
            "the videos stay, the list of jobs starts anew"
        ) from None
    except DataError:
        engine.dispose()
        raise


def _is_locked(error: BaseException) -> bool:
    """Whether a database error says that somebody else holds what was wanted."""
    code = getattr(error, "sqlite_errorcode", 0) or 0
    return code & 0xFF in (SQLITE_BUSY, SQLITE_LOCKED) or getattr(error, "sqlstate", None) == "55P03"


def _holder(url: URL) -> str:
    """Who may hold the lock, in words: the processes that have a lock on SQLite's files, as far as Linux tells."""
    if url.get_backend_name() != "sqlite":
        return "another session of the database (see pg_locks)"
    found = []
    with suppress(OSError, ValueError, IndexError):
        files = {str(Path(f"{url.database}{end}").stat().st_ino) for end in ("", "-shm") if _exists(url, end)}
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        pids = sorted({int(line[-4]) for line in lines if line[-3].rpartition(":")[2] in files} - {os.getpid()})
        found = [f"{pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})" for pid in pids]
    return (
        f"another process, probably {' or '.join(found)}" if found else "another process (a backup, an sqlite3 shell?)"
    )


def _exists(url: URL, end: str) -> bool:
    return Path(f"{url.database}{end}").exists()


def limit_answers(engine: Engine, seconds: float) -> None:
    """From now on PostgreSQL has `seconds` for each answer. SQLite asks nobody."""
    if (limit := engine.get_execution_options().get("i2v_limit")) is not None:
        limit.seconds = seconds


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise DataError(f"database {parsed.get_backend_name()!r} is not supported; use sqlite or postgresql")
        if parsed.get_backend_name() == "postgresql":
            alive = {name: value for name, value in KEEPALIVES.items() if name not in parsed.query}
            limit = AnswerLimit()
            engine = create_engine(
                parsed,
                pool_pre_ping=True,
                connect_args=alive,
                execution_options={"i2v_limit": limit},
                **POOL,
            )
            event.listen(engine, "do_connect", connector(limit, LOCK_WAIT_MS))
            return engine
        engine = create_engine(parsed, connect_args={"timeout": LOCK_WAIT_MS / 1000}, **POOL)
    except ArgumentError:
        raise DataError("the setting `database` is no SQLAlchemy URL, such as postgresql://user@host/name") from None
    except ModuleNotFoundError:
        raise DataError("PostgreSQL needs one more package: pip install 'i2v[postgres]'") from None
    event.listen(engine, "do_connect", _open_existing)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_private(url: URL) -> None:
    """The table holds prompts and photos: nobody but the server's own user reads them. SQLite's side files follow."""
    if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
        os.close(os.open(str(url.database), os.O_RDWR | os.O_CREAT, 0o600))


def _open_existing(_dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
    """A later connection makes no new, empty table where the folder of the first one is not mounted any more."""
    if arguments and Path(arguments[0]).is_absolute():
        arguments[0] = f"file:{quote(arguments[0])}?mode=rw"
        options["uri"] = True


def _text(data: bytes) -> str:
    """Bytes that are no UTF-8, on a damaged disk, cost their own row and not every row that is read with it."""
    return data.decode("utf-8", "replace")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.text_factory = _text
    connection.isolation_level = None  # the driver opens no transaction of its own; `_begin_sqlite` does
    connection.execute(f"PRAGMA busy_timeout = {LOCK_WAIT_MS}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA journal_size_limit = 16777216")


@contextmanager
def overwriting(connection: Connection, wanted: bool) -> Iterator[None]:
    """With `wanted` False, SQLite does not fill what is deleted in the block with zeros, as some builds do."""
    if wanted or connection.dialect.name != "sqlite":
        yield
        return
    usual = connection.exec_driver_sql("PRAGMA secure_delete").scalar()
    connection.exec_driver_sql("PRAGMA secure_delete = FAST")
    try:
        yield
    finally:
        with suppress(SQLAlchemyError):
            connection.exec_driver_sql(f"PRAGMA secure_delete = {('OFF', 'ON', 'FAST')[int(usual or 0)]}")


def _begin_sqlite(connection: Connection) -> None:
    # A write that starts as a read can fail on upgrade in the middle; IMMEDIATE takes the write lock at once.
    readonly = connection.get_execution_options().get("i2v_readonly", False)
    connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")


def _check_version(connection: Connection, shown: str) -> None:
    if not inspect(connection).has_table(meta.name):
        return
    found = connection.scalar(select(meta.c.value).where(meta.c.key == "schema"))
    if found is not None and not str(found).isdecimal():
        log.error("the job table %s does not say its version; its columns do, and it is put right by them", shown)
    elif found is not None and int(found) > SCHEMA_VERSION:
        raise DataError(
            f"the job table {shown} was written by a newer i2v (schema {found}; this version knows {SCHEMA_VERSION}). "
            "Upgrade i2v, or choose another folder with --outputs"
        )


def _complete_webhooks(connection: Connection) -> None:
    """Older rows do not say how their job ended: take it from the jobs that are still there, and delete the others."""
    known = {column["name"] for column in inspect(connection).get_columns(webhooks.name)}
    missing = [column for column in webhooks.columns if column.name not in known]
    for column in missing:
        kind = column.type.compile(connection.dialect)
        connection.exec_driver_sql(f"ALTER TABLE {webhooks.name} ADD COLUMN {column.name} {kind}")
    if missing:
        ended = select(jobs.c.status, jobs.c.completed_at).where(
            jobs.c.id == webhooks.c.job_id, jobs.c.completed_at.is_not(None)
        )
        status, when = (ended.with_only_columns(column).scalar_subquery() for column in ended.selected_columns)
        connection.execute(update(webhooks).values(status=status, ended_at=when))
        connection.execute(delete(webhooks).where(webhooks.c.job_id.not_in(select(jobs.c.id))))


def _drop_columns(connection: Connection) -> None:
    """Version 1: a priority that each row had to give, part of the index, and the stage, which only memory knows."""
    if all(column["name"] != "priority" for column in inspect(connection).get_columns(jobs.name)):
        return
    connection.exec_driver_sql(f"DROP INDEX IF EXISTS {by_order.name}")
    for name in ("priority", "stage"):
        connection.exec_driver_sql(f"ALTER TABLE {jobs.name} DROP COLUMN {name}")
    by_order.create(connection)


def _check_file(connection: Connection, shown: str) -> None:
    """Look for damage in the job table before anything is built on it; the photos are left out, they are large."""
    if connection.dialect.name != "sqlite" or not inspect(connection).has_table(jobs.name):
        return
    found = connection.exec_driver_sql(f"PRAGMA quick_check('{jobs.name}')").scalar()
    if found != "ok":
        raise DataError(f"the job table {shown} is damaged ({found}). Move it away: the videos stay")
