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
from i2v.jobs.schema import KEEPALIVES, POSTGRES_LOCK, DataError, complete_schema, open_database

log = logging.getLogger(__name__)

LOCK_WAIT_S = 60.0  # longer than the database needs to notice by `KEEPALIVES` that a session's host is gone
START_WAIT_S = 30.0  # for the lock at the start: the session of a server that was killed may still be ending
LOCK_POLL_S = 0.1


class Database:
    """Thread-safe. `on_write` is called after each writing transaction, whether it was kept or not."""

    def __init__(self, url: str, on_write: Callable[[], None]) -> None:
        self._on_write = on_write
        self._engine = open_database(url)
        self._write = threading.RLock()
        self._guard: Connection | None = None
        self._refused_at: float | None = None  # since when another session holds the lock that was ours
        try:
            self._take_lock(START_WAIT_S)
            complete_schema(self._engine)
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
    def writing(self) -> Iterator[Connection]:
        """A transaction of its own. Raises `Unavailable` or `StorageFull` where the database fails."""
        with self._write:
            try:
                with _translated(), self._engine.begin() as connection:
                    yield connection
            finally:
                self._on_write()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with _translated(), self._engine.connect().execution_options(i2v_readonly=True) as connection:
            yield connection

    def keep_lock(self) -> None:
        """A session that broke (the database was restarted, the network was cut) has lost its lock: take it again.

        Raises `Unavailable` while that fails, and `DataError` once another session has held it for `LOCK_WAIT_S`: the
        database may take that long to notice that the broken one is gone.
        """
        if self._engine.dialect.name != "postgresql":
            return
        with self._write:
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
        raise Unavailable("the job table cannot be read or written at the moment", retry_after=5) from error
