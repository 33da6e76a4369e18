"""Ending a job early: cancel, abandon, delete. A running job is only asked to end; its own thread ends it."""

from collections.abc import Callable
from contextlib import suppress

from i2v.errors import Conflict, NotFound, Unavailable
from i2v.jobs.job import InvalidTransition, Job
from i2v.jobs.outputs import VideoFolder
from i2v.jobs.running import RunningJobs
from i2v.jobs.settle import Outcomes
from i2v.jobs.store import JobStore


class Cancellation:
    """`wait(id)` gives a job once it is final."""

    def __init__(
        self,
        store: JobStore,
        videos: VideoFolder,
        running: RunningJobs,
        outcomes: Outcomes,
        wait: Callable[[str], Job],
    ) -> None:
        self._store = store
        self._videos = videos
        self._running = running
        self._outcomes = outcomes
        self._wait = wait

    def cancel(self, id: str, *, wait: bool) -> Job:
        """As `JobQueue.cancel`."""
        job = self._store.get(id)
        if job.status == "cancelled":
            return job
        if job.is_final:
            raise Conflict(f"the job is {job.status} already")
        self._ask(id)
        return self._wait(id) if wait else self._store.get(id)

    def abandon(self, id: str, *, running: bool) -> None:
        """Drop a queued job; ask a running one to end if `running` says so. Does not wait."""
        with suppress(NotFound):
            if not self._drop(id) and running:
                self._ask(id)

    def delete(self, id: str) -> None:
        """As `JobQueue.delete`."""
        if not self._store.get(id).is_final:
            self._ask(id)
            self._wait(id)
        if self._store.continued(id):
            raise Conflict("another job continues this video; cancel that one first")
        self._videos.remove(self._store.get(id))
        self._outcomes.moved(id)

    def _ask(self, id: str) -> None:
        """Drop a queued job, or ask a running one, which ends after the step that it is in; that needs no table."""
        if self._running.get(id) is not None:
            self._running.cancel(id)
            if self._running.get(id) is not None:
                return
        if self._drop(id):
            self._running.spare(id)
            return
        self._running.cancel(id)
        if self._store.get(id).is_final:
            self._running.spare(id)

    def _drop(self, id: str) -> bool:
        try:
            job = self._store.cancel_queued(id)
        except InvalidTransition:
            return False
        except Unavailable:  # it may have been cancelled and only the answer lost: whoever waits looks again
            self._outcomes.moved(id)
            raise
        self._outcomes.left(job)
        return True
