"""One open database: transactions that read or write, its errors in words of ours, and the lock of a shared server.

Knows no jobs. Reads run side by side, writes one after the other.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from i2v.errors import StorageFull, Unavailable
from i2v.jobs.schema import POSTGRES_LOCK, DataError, open_database

log = logging.getLogger(__name__)


class Database:
    """Thread-safe. `on_write` is called after each writing transaction, whether it was kept or not."""

    def __init__(self, url: str, on_write: Callable[[], None]) -> None:
        self._on_write = on_write
        self._engine = open_database(url)
        self._write = threading.RLock()
        self._guard: Connection | None = None
        try:
            self._take_lock()
        except BaseException:
            self._engine.dispose()
            raise

    def close(self) -> None:
        if self._guard is not None:
            self._guard.close()
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
        """A session that broke (the database was restarted) has lost its lock: take it again, or raise `DataError`."""
        if self._guard is None:
            return
        with self._write:
            try:
                self._guard.scalar(select(1))
            except DBAPIError:
                self._guard.close()
                with _translated():
                    self._take_lock()

    def _take_lock(self) -> None:
        """PostgreSQL can be reached from many folders; the session lock goes when this process does."""
        if self._engine.dialect.name != "postgresql":
            return
        self._guard = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        if not self._guard.scalar(select(func.pg_try_advisory_lock(POSTGRES_LOCK))):
            self._guard.close()
            raise DataError("another i2v server uses this PostgreSQL database. Stop it first, or give each its own")


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
