"""How a running job ends: the row, the signals to whoever waits, the pace. Called by the worker and the publisher.

A change that the database cannot take now (disk full, locked) is tried again until it can; a job whose row was settled
or deleted by somebody else in between keeps that.
"""

import logging
import threading
from collections.abc import Callable
from itertools import chain, repeat
from typing import TypeVar

from i2v.errors import I2VError, NotFound, StorageFull, Unavailable
from i2v.jobs.eta import Pace
from i2v.jobs.job import Job, JobResult
from i2v.jobs.running import Board, Live
from i2v.jobs.store import InvalidTransition, JobStore

log = logging.getLogger(__name__)

RETRY_S = (0.2, 1.0, 2.0, 5.0, 10.0)  # then every 10 s

T = TypeVar("T")


class Verdicts:
    """`ended(job)` hears of each job that has left this process' hands, with its row as it is then; `moved(id)` tells
    whoever watches a job that it changed, and may delete it from then on; `after(job)` follows for what may take
    longer; `on_lost(error)` once the engine is beyond repair and its job's row is settled.
    """

    def __init__(
        self,
        store: JobStore,
        board: Board,
        pace: Pace,
        *,
        attempts: int,
        moved: Callable[[str], None],
        ended: Callable[[Job], None],
        after: Callable[[Job], None],
        on_lost: Callable[[I2VError], None],
    ) -> None:
        self._store = store
        self._board = board
        self._pace = pace
        self._attempts = attempts
        self._moved = moved
        self._ended = ended
        self._after = after
        self._on_lost = on_lost
        self._stopping = threading.Event()
        self.storage_works = True

    def started(self, live: Live) -> None:
        log.info("started, attempt %d", live.claim.attempt, extra={"job": live.job.id})
        self._board.add(live)
        self._moved(live.job.id)

    def completed(self, live: Live, result: JobResult) -> bool:
        """False when the row had been settled by somebody else, so that the file belongs to nobody."""
        self._pace.record(live.job.request, result.seconds, result.stage_seconds)
        log.info("completed in %.1f s: %s", result.seconds, result.file, extra={"job": live.job.id})
        return self._settle(live, lambda: self._store.complete(live.claim, result))

    def failed(self, live: Live, error: I2VError) -> None:
        log.warning("failed: %s (%s)", error.message, error.code, extra={"job": live.job.id})
        self._settle(live, lambda: self._store.fail(live.claim, error.code, error.message, live.step))

    def cancelled(self, live: Live) -> None:
        log.info("cancelled", extra={"job": live.job.id})
        self._settle(live, lambda: self._store.cancel_running(live.claim, live.step))

    def requeued(self, live: Live) -> None:
        """The server stops in good order: the attempt does not count."""
        log.info("goes back to the queue", extra={"job": live.job.id})
        self._settle(live, lambda: self._store.requeue(live.claim, count=False))

    def put_back(self, live: Live, error: Unavailable) -> None:
        """There is no place for its video now: once more from its place in the queue, while an attempt is left."""
        log.warning("cannot be written: %s", error.message, extra={"job": live.job.id})
        if live.cancelled:
            self.cancelled(live)
        elif live.claim.attempt < self._attempts:
            self._settle(live, lambda: self._store.requeue(live.claim, count=True))
        else:
            self.failed(live, error)

    def engine_lost(self, live: Live, error: I2VError, *, again: bool) -> None:
        """`again`: one more attempt after the restart, when there is one left."""
        log.critical("lost the engine: %s", error.message, extra={"job": live.job.id})
        if again and live.claim.attempt < self._attempts:
            self._settle(live, lambda: self._store.requeue(live.claim, count=True))
        else:
            self._settle(live, lambda: self._store.fail(live.claim, error.code, error.message, live.step))
        self._on_lost(error)

    def broken(self, error: I2VError) -> None:
        """The worker itself failed: what it ran is dealt with by the next start, as after any death."""
        self._on_lost(error)

    def give_up(self) -> None:
        """The server stops: a change that fails is tried once more, at once, and then left to the next start."""
        self._stopping.set()

    def persist(self, change: Callable[[], T], *, of_table: bool = True) -> T | None:
        """Make a change, waiting while the database cannot; None when the server stopped before it could.

        Each change has a try after the stop, too: one that failed may have been kept and only its answer lost.
        `of_table` False: what is waited for is not the table, and says nothing of it.
        """
        stopped = False  # before this try began
        for wait in chain(RETRY_S, repeat(RETRY_S[-1])):
            try:
                done = change()
            except (Unavailable, StorageFull) as error:
                self.storage_works = self.storage_works and not of_table
                if stopped:
                    log.error("%s; left to the next start", error.message)
                    return None
                log.error("%s; trying again in %.1f s", error.message, wait)
                stopped = self._stopping.wait(wait)
            else:
                self.storage_works = self.storage_works or of_table
                return done
        return None

    def _settle(self, live: Live, change: Callable[[], Job]) -> bool:
        job, ours = None, True
        try:
            job = self.persist(change)
        except (InvalidTransition, NotFound) as error:
            log.warning("settled before: %s", error, extra={"job": live.job.id})
            ours = False
        self._board.remove(live)
        if job is not None:
            self._ended(job)
        self._moved(live.job.id)
        if job is not None:
            self._after(job)
        return ours
