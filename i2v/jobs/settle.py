"""How a job ends: its row, the listeners, whoever waits, the pace. Called by the worker and the publisher.

A change that the database cannot take now (disk full, locked) is tried again until it can. A job whose row was ended
or deleted by somebody else meanwhile stays as it is.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from itertools import chain, repeat
from typing import TypeVar

from i2v.errors import I2VError, NotFound, StorageFull, Unavailable
from i2v.jobs.eta import Pace, Positions
from i2v.jobs.job import InvalidTransition, Job, JobResult, Status
from i2v.jobs.outputs import VideoFolder
from i2v.jobs.running import RunningJob, RunningJobs
from i2v.jobs.signals import Watchers
from i2v.jobs.store import JobStore

log = logging.getLogger(__name__)

RETRY_S = (0.2, 1.0, 2.0, 5.0, 10.0)  # then every 10 s

T = TypeVar("T")


class Outcomes:
    """Writes what became of each job and tells everybody whom it concerns. Thread-safe.

    `listeners` get each final job before anybody who waits for it is woken; they are quick and do not raise.
    `on_back()` is called when a job goes back to the queue, `on_lost(error)` when the engine can run no more jobs.
    """

    def __init__(
        self,
        store: JobStore,
        videos: VideoFolder,
        running: RunningJobs,
        pace: Pace,
        *,
        attempts: int,
        positions: Positions,
        watchers: Watchers,
        listeners: Sequence[Callable[[Job], None]],
        on_back: Callable[[], None],
        on_lost: Callable[[I2VError], None],
    ) -> None:
        self._store = store
        self._videos = videos
        self._running = running
        self._pace = pace
        self._attempts = attempts
        self._positions = positions
        self._watchers = watchers
        self._listeners = listeners
        self._on_back = on_back
        self._on_lost = on_lost
        self._stopping = threading.Event()
        self.storage_works = True

    def storage_problem(self) -> str | None:
        """Why videos or rows cannot be written now, in a sentence without paths; None when they can."""
        if (problem := self._videos.problem()) is not None:
            return problem
        try:
            self._store.counts()
        except I2VError as error:
            return error.message
        return None if self.storage_works else "the job table takes no change at the moment"

    def moved(self, id: str) -> None:
        """A job is in another state, so the places of those behind it have changed, too."""
        self._positions.moved()
        self._watchers.changed(id)
        self._watchers.everyone(steps_only=True)

    def left(self, job: Job) -> None:
        """A job is final or back in the queue: listeners first, then whoever waits for it, then what it makes too old.

        It may be deleted from the moment that a waiter is woken.
        """
        if job.is_final:
            for listener in self._listeners:
                listener(job)
        else:
            self._on_back()
        self.moved(job.id)
        if job.is_final:
            self.tidy(job.status)

    def tidy(self, ended: Status = "completed") -> None:
        """Remove what is over the limits once a job has ended so, or an hour has passed."""
        for gone in self._videos.tidy(ended):
            self.moved(gone)

    def started(self, live: RunningJob) -> None:
        """The engine begins with the job."""
        log.info("started, attempt %d", live.claim.attempt, extra={"job": live.job.id})
        self._running.add(live)
        self.moved(live.job.id)

    def completed(self, live: RunningJob, result: JobResult) -> bool:
        """False when somebody else had ended the job, so that the file belongs to nobody."""
        self._pace.record(live.job.request, result.seconds, result.stage_seconds)
        log.info("completed in %.1f s: %s", result.seconds, result.file, extra={"job": live.job.id})
        return self._settle(live, lambda: self._store.complete(live.claim, result))

    def failed(self, live: RunningJob, error: I2VError) -> None:
        """It ends without a video; its code and message become the row's."""
        log.warning("failed: %s (%s)", error.message, error.code, extra={"job": live.job.id})
        self._settle(live, lambda: self._store.fail(live.claim, error.code, error.message, live.step))

    def cancelled(self, live: RunningJob) -> None:
        """It ends because somebody asked for it."""
        log.info("cancelled", extra={"job": live.job.id})
        self._settle(live, lambda: self._store.cancel_running(live.claim, live.step))

    def requeued(self, live: RunningJob) -> None:
        """The server stops: the attempt does not count."""
        log.info("goes back to the queue", extra={"job": live.job.id})
        self._settle(live, lambda: self._store.requeue(live.claim, count=False))

    def put_back(self, live: RunningJob, error: Unavailable) -> None:
        """Its video cannot be written now: it runs again from its place in the queue, while an attempt is left."""
        log.warning("cannot be written: %s", error.message, extra={"job": live.job.id})
        if live.cancelled:
            self.cancelled(live)
        elif live.claim.attempt < self._attempts:
            self._settle(live, lambda: self._store.requeue(live.claim, count=True))
        else:
            self.failed(live, error)

    def engine_lost(self, live: RunningJob, error: I2VError, *, again: bool) -> None:
        """`again`: the job runs once more after the restart, if an attempt is left."""
        log.critical("lost the engine: %s", error.message, extra={"job": live.job.id})
        if again and live.claim.attempt < self._attempts:
            self._settle(live, lambda: self._store.requeue(live.claim, count=True))
        else:
            self._settle(live, lambda: self._store.fail(live.claim, error.code, error.message, live.step))
        self._on_lost(error)

    def broken(self, error: I2VError) -> None:
        """The worker itself failed: the next start decides about the job that it ran, as after any death."""
        self._on_lost(error)

    def stop(self) -> None:
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

    def _settle(self, live: RunningJob, change: Callable[[], Job]) -> bool:
        job, ours = None, True
        try:
            job = self.persist(change)
        except (InvalidTransition, NotFound) as error:
            log.warning("had ended before: %s", error, extra={"job": live.job.id})
            ours = False
        self._running.remove(live)
        if job is None:
            self.moved(live.job.id)
        else:
            self.left(job)
        return ours
