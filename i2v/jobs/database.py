"""One open database: transactions that read or write, its errors in words of ours, and the lock of a shared server.

Knows no jobs. Reads run side by side, writes one after the other.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from i2v.errors import StorageFull, Unavailable
from i2v.jobs.schema import KEEPALIVES, POSTGRES_LOCK, DataError, complete_schema, limit_answers, open_database

log = logging.getLogger(__name__)

LOCK_WAIT_S = 60.0  # longer than the database needs to notice by `KEEPALIVES` that a session's host is gone
START_WAIT_S = 30.0  # for the lock at the start: the session of a server that was killed may still be ending
LOCK_POLL_S = 0.1
TURN_S = 0.7  # for one's turn among the writers of this process, counted from when writing began to fail
ANSWER_S = 1.2  # for one answer of PostgreSQL; with `TURN_S` a caller hears in 2 s that a server hangs
SLOW_S = 0.5  # a read that failed and took so long stands for those that come in the next `PAUSE_S`
PAUSE_S = 1.0
AWAY = "the job table cannot be read or written at the moment"


class Database:
    """Thread-safe. `on_write` is called after each writing transaction, whether it was kept or not.

    Nobody waits long for a database that is locked or hangs: one thread at a time tries to write, and those that wait
    for their turn give up once writing has failed for `TURN_S`; after a slow failure to read, others fail at once.
    """

    def __init__(self, url: str, on_write: Callable[[], None]) -> None:
        self._on_write = on_write
        self._engine = open_database(url)
        self._write = threading.Lock()
        self._failing_since: float | None = None  # when the first write began that did not succeed
        self._silent_until = 0.0  # reads fail at once until then
        self._guard: Connection | None = None
        self._refused_at: float | None = None  # since when another session holds the lock that was ours
        try:
            self._take_lock(START_WAIT_S)
            complete_schema(self._engine)
            limit_answers(self._engine, ANSWER_S)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """The lock is free when this returns; the session that held it may take longer to end."""
        if self._guard is not None:
            with suppress(SQLAlchemyError):  # a session that broke has lost it already
                self._guard.scalar(select(func.pg_advisory_unlock(POSTGRES_LOCK)))
            self._drop_guard()
        self._engine.dispose()

    @contextmanager
    def writing(self, undo: Callable[[], None] | None = None) -> Iterator[Connection]:
        """A transaction of its own. Raises `Unavailable` or `StorageFull` where the database fails.

        `undo()` is called where it was not kept, or nobody knows, before the next one begins.
        """
        with self._turn():
            try:
                with self._engine.begin() as connection:
                    yield connection
            except BaseException:
                if undo is not None:
                    undo()
                raise
            finally:
                self._on_write()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Waits for no writer. Raises `Unavailable` where the database fails."""
        began = time.monotonic()
        if began < self._silent_until:
            raise Unavailable(AWAY, retry_after=5)
        try:
            with _translated(), self._engine.connect().execution_options(i2v_readonly=True) as connection:
                yield connection
        except _Failed:
            now = time.monotonic()
            if now - began >= SLOW_S:
                self._silent_until = now + PAUSE_S
            raise

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One thread at a time. Errors of the database are translated; any other one shows that it answers."""
        while not self._write.acquire(timeout=TURN_S / 10):
            since = self._failing_since
            if since is not None and time.monotonic() - since >= TURN_S:
                raise Unavailable(AWAY, retry_after=5)
        failing_since = self._failing_since or time.monotonic()
        self._failing_since = failing_since
        try:
            with _translated():
                yield
        except _Failed:
            raise
        except BaseException:
            self._failing_since = None
            raise
        else:
            self._failing_since = None
        finally:
            self._write.release()

    def keep_lock(self) -> None:
        """A session that broke (the database was restarted, the network was cut) has lost its lock: take it again.

        Raises `Unavailable` while that fails, and `DataError` once another session has held it for `LOCK_WAIT_S`: the
        database may take that long to notice that the broken one is gone.
        """
        if self._engine.dialect.name != "postgresql":
            return
        with self._turn():
            if self._guard is not None:
                try:
                    self._guard.scalar(select(1))
                    return
                except SQLAlchemyError:
                    log.warning("the session that holds the lock of the database has broken")
                    self._drop_guard()
            try:
                self._take_lock()
                self._refused_at = None
            except DataError as error:
                now = time.monotonic()
                self._refused_at = now if self._refused_at is None else self._refused_at
                if now - self._refused_at >= LOCK_WAIT_S:
                    raise
                raise Unavailable("the lock of the job table is held by another session", retry_after=5) from error

    def _take_lock(self, wait_s: float = 0.0) -> None:
        """PostgreSQL can be reached from many folders; the session lock goes when this process does.

        Waits up to `wait_s` seconds. Raises `DataError` when another session still holds it then, `Unavailable`.
        """
        if self._engine.dialect.name != "postgresql":
            return
        with _translated():
            self._guard = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            try:
                for name, value in KEEPALIVES.items():  # the server's side: it frees the lock of a host that is gone
                    self._guard.exec_driver_sql(f"SET tcp_{name} = {value}")
                taken = self._try_lock(self._guard, wait_s)
            except BaseException:
                self._drop_guard()
                raise
        if not taken:
            self._drop_guard()
            raise DataError("another i2v server uses this PostgreSQL database. Stop it first, or give each its own")

    def _try_lock(self, guard: Connection, wait_s: float) -> bool:
        attempt = select(func.pg_try_advisory_lock(POSTGRES_LOCK))
        if guard.scalar(attempt):
            return True
        deadline = time.monotonic() + wait_s
        if wait_s:
            log.warning(
                "waits up to %.0f s for the lock of the job table: another session holds it, "
                "perhaps that of a server which has just ended",
                wait_s,
            )
        while time.monotonic() < deadline:
            time.sleep(LOCK_POLL_S)
            if guard.scalar(attempt):
                return True
        return False

    def _drop_guard(self) -> None:
        """End the session, not only its use: one that goes back to the pool would keep the lock for nobody."""
        guard, self._guard = self._guard, None
        if guard is not None:
            with suppress(SQLAlchemyError):
                guard.invalidate()
            with suppress(SQLAlchemyError):
                guard.close()


class _Failed(Unavailable):
    """The database cannot be read or written at the moment."""


@contextmanager
def _translated() -> Iterator[None]:
    """A database that fails is the server's trouble of the moment, told without its words: they hold paths and SQL."""
    try:
        yield
    except IntegrityError:
        raise
    except (DBAPIError, PoolTimeout) as error:
        reason = str(getattr(error, "orig", error))
        log.error("the job table: %s", reason)
        if "full" in reason or "No space" in reason:
            raise StorageFull("the disk is full; the job table takes no change") from error
        raise _Failed(AWAY, retry_after=5) from error
