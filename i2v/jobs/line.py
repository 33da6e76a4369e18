"""Where a waiting job stands and how long it will take: positions, ETA, Retry-After, from the measured pace."""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from i2v.jobs.job import Job
from i2v.jobs.live import Board, Live
from i2v.jobs.pace import Pace

UNKNOWN_PACE_S = 5  # Retry-After before the first job has finished
MAX_RETRY_S = 600


class Line:
    """The queue's order, kept in memory between two changes so that polling costs no table scan. Thread-safe.

    `waiting()` reads the queued jobs, next one first.
    """

    def __init__(self, waiting: Callable[[], Sequence[Job]], board: Board, pace: Pace) -> None:
        self._waiting = waiting
        self._board = board
        self._pace = pace
        self._lock = threading.Lock()
        self._places: dict[str, tuple[int, float]] | None = None  # position, seconds of work ahead

    def moved(self) -> None:
        """The queue has changed: read it again when next asked."""
        with self._lock:
            self._places = None

    def __len__(self) -> int:
        return len(self._read())

    def fill_in(self, job: Job, live: Live | None = None) -> Job:
        """The stored row with what only memory knows: step and stage of a running job, the place of a waiting one.

        `live` is the running job as it was known before the row was read, if it was.
        """
        seconds = self._pace.seconds(job.request)
        if job.status == "in_progress" and (live := self._board.get(job.id) or live) is not None:
            return live.snapshot(seconds, self._pace.decode_steps(job.request))
        if job.status == "queued" and (place := self._read().get(job.id)) is not None:
            position, ahead = place
            eta = None if seconds is None else round(self.seconds_busy() + ahead + seconds, 1)
            return replace(job, position=position, eta_s=eta)
        return job

    def seconds_busy(self) -> float:
        """Until the engine is through with its running job; 0 when idle or unknown."""
        pace = self._pace
        running = (
            live.snapshot(pace.seconds(live.job.request), pace.decode_steps(live.job.request))
            for live in self._board.all()
        )
        return sum(job.eta_s or 0.0 for job in running if job.stage != "write")

    def retry_after(self) -> int:
        """Whole seconds until a place in a full queue frees: when the running job leaves the engine."""
        busy = self.seconds_busy()  # known from its own steps, too, before any job has finished
        if not busy and not self._pace.average:
            return UNKNOWN_PACE_S
        return min(MAX_RETRY_S, max(1, math.ceil(busy)))

    def _read(self) -> dict[str, tuple[int, float]]:
        with self._lock:
            if self._places is None:
                places, ahead = {}, 0.0
                for position, job in enumerate(self._waiting()):
                    places[job.id] = (position, ahead)
                    ahead += self._pace.seconds(job.request) or 0.0
                self._places = places
            return self._places
