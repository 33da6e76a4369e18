"""Connections to PostgreSQL that give up on a server which hangs instead of refusing. Imports psycopg when asked to.

A stopped server, or one whose machine has no time for it, keeps its sockets open: its kernel goes on answering, so that
no keepalive notices, and the driver would wait for ever.
"""

import time
from collections.abc import Callable
from typing import Any

SILENT_S = 1.0  # after one answer that did not come, no new connection is tried for so long
CONNECT_S = 2  # the least that libpq takes


class AnswerLimit:
    """How long an answer may take, in seconds; None while a start may build an index. One for each engine."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        self.silent_until = 0.0


def connector(limit: AnswerLimit, lock_wait_ms: int) -> Callable[..., Any]:
    """A listener for SQLAlchemy's `do_connect`: connections wait `lock_wait_ms` for locks and `limit` for answers."""
    import psycopg

    class BoundedConnection(psycopg.Connection[Any]):
        def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
            try:
                return super().wait(gen, interval, limit.seconds if timeout is None else timeout)
            except psycopg.errors._WaitTimeout:
                limit.silent_until = time.monotonic() + SILENT_S
                self.pgconn.finish()  # what was asked may still be done; nobody reads the answer
                raise psycopg.OperationalError("the database does not answer") from None

    def connect(_dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
        if time.monotonic() < limit.silent_until:
            raise psycopg.OperationalError("the database does not answer")
        made = BoundedConnection.connect(*arguments, **{"connect_timeout": CONNECT_S, **options}, autocommit=True)
        made.execute(f"SET lock_timeout = {lock_wait_ms}")
        made.set_autocommit(False)
        return made

    return connect
