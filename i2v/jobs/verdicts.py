"""How a running job ends: the row, the signals to whoever waits, the pace. Called by the worker and the publisher.

A change that the database cannot take now (disk full, locked) is tried again until it can; a job whose row was settled
by somebody else in between keeps that row.
"""

import logging
import threading
from collections.abc import Callable
from itertools import chain, repeat
from typing import TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError

from i2v.errors import I2VError
from i2v.jobs.events import Hub
from i2v.jobs.job import JobResult
from i2v.jobs.live import Board, Live
from i2v.jobs.pace import Pace
from i2v.jobs.store import InvalidTransition, JobStore

log = logging.getLogger(__name__)

RETRY_S = (0.2, 1.0, 2.0, 5.0, 10.0)  # then every 10 s

T = TypeVar("T")


class Verdicts:
    """`on_lost(error)` is called once when the engine is beyond repair, after its job's row and waiters were settled.

    `after(job id)` is called after every change of a row, on the thread that made it.
    """

    def __init__(
        self,
        store: JobStore,
        hub: Hub,
        board: Board,
        pace: Pace,
        *,
        attempts: int,
        after: Callable[[str], None],
        on_lost: Callable[[I2VError], None],
    ) -> None:
        self._store = store
        self._hub = hub
        self._board = board
        self._pace = pace
        self._attempts = attempts
        self._after = after
        self._on_lost = on_lost
        self._stopping = threading.Event()
        self.storage_works = True

    def completed(self, live: Live, result: JobResult) -> None:
        self._pace.record(live.job.request, result.seconds)
        self._settle(live, lambda: self._store.complete(live.claim, result))
        log.info("job %s completed in %.1f s: %s", live.job.id, result.seconds, result.file)

    def failed(self, live: Live, error: I2VError) -> None:
        self._settle(live, lambda: self._store.fail(live.claim, error.code, error.message))
        log.warning("job %s failed: %s (%s)", live.job.id, error.message, error.code)

    def cancelled(self, live: Live) -> None:
        self._settle(live, lambda: self._store.cancel_running(live.claim))
        log.info("job %s cancelled", live.job.id)

    def requeued(self, live: Live) -> None:
        """The server stops in good order: the attempt does not count."""
        self._settle(live, lambda: self._store.requeue(live.claim, count=False))
        log.info("job %s goes back to the queue", live.job.id)

    def engine_lost(self, live: Live, error: I2VError, *, again: bool) -> None:
        """`again`: one more attempt after the restart, when there is one left."""
        if again and live.claim.attempt < self._attempts:
            self._settle(live, lambda: self._store.requeue(live.claim, count=True))
        else:
            self._settle(live, lambda: self._store.fail(live.claim, error.code, error.message))
        log.critical("job %s lost the engine: %s", live.job.id, error.message)
        self._on_lost(error)

    def give_up(self) -> None:
        """From now on a change that the database refuses is tried only once more: the next start puts it right."""
        self._stopping.set()

    def persist(self, change: Callable[[], T]) -> T | None:
        """Make a change, waiting while the database cannot; None when the server stopped before it could."""
        for wait in chain(RETRY_S, repeat(RETRY_S[-1])):
            try:
                done = change()
            except (OperationalError, InterfaceError) as error:
                self.storage_works = False
                log.error("the job table does not take a change, trying again in %.1f s: %s", wait, error.orig)
                if self._stopping.wait(wait):
                    return None
            else:
                self.storage_works = True
                return done
        return None

    def _settle(self, live: Live, change: Callable[[], None]) -> None:
        try:
            self.persist(change)
        except InvalidTransition as error:
            log.warning("job %s had been settled before: %s", live.job.id, error)
        self._board.remove(live)
        self._after(live.job.id)
        self._hub.changed(live.job.id)
