"""Ending jobs before their time: cancel, abandon, delete. Marks a running job; its own thread ends it."""

from collections.abc import Callable
from contextlib import suppress

from i2v.errors import Conflict, NotFound
from i2v.jobs.job import Job
from i2v.jobs.outputs import Shelf
from i2v.jobs.running import Board
from i2v.jobs.store import InvalidTransition, JobStore


class Ending:
    """`get(id)` gives the job now, `wait(id)` once it is final; `dropped(job)` is told of each that was queued."""

    def __init__(
        self,
        store: JobStore,
        shelf: Shelf,
        board: Board,
        *,
        get: Callable[[str], Job],
        wait: Callable[[str], Job],
        dropped: Callable[[Job], None],
    ) -> None:
        self._store = store
        self._shelf = shelf
        self._board = board
        self._get = get
        self._wait = wait
        self._dropped = dropped

    def cancel(self, id: str, *, wait: bool) -> Job:
        """As `JobQueue.cancel`."""
        job = self._get(id)
        if job.status == "cancelled":
            return job
        if job.is_final:
            raise Conflict(f"the job is {job.status} already")
        self._ask(id)
        return self._wait(id) if wait else self._get(id)

    def abandon(self, id: str, *, running: bool) -> None:
        """Drop a queued job, and a running one where `running` says so. No wait."""
        with suppress(NotFound):
            if not self._drop(id) and running:
                self._ask(id)

    def delete(self, id: str) -> None:
        """As `JobQueue.delete`."""
        if not self._get(id).is_final:
            self._ask(id)
            self._wait(id)
        if self._store.continued(id):
            raise Conflict("another job continues this video; cancel that one first")
        self._shelf.remove(self._store.get(id))
        self._store.delete(id)

    def _ask(self, id: str) -> None:
        """Drop a queued job, or mark a running one, which its thread notices after the step it is in."""
        if self._drop(id):
            return
        self._board.cancel(id)
        if self._get(id).is_final:
            self._board.spare(id)

    def _drop(self, id: str) -> bool:
        try:
            job = self._store.cancel_queued(id)
        except InvalidTransition:
            return False
        self._dropped(job)
        return True
