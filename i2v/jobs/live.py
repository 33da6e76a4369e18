"""What is known only in memory of the jobs that this process runs right now: step, preview, the wish to stop it."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from i2v.engine.protocol import Progress
from i2v.jobs.job import Job
from i2v.jobs.store import Claim

log = logging.getLogger(__name__)

PREVIEW_EVERY_S = 0.5
FIRST_OWN_STEP: Final = 2  # the first step alone carries the warming up and says little
OWN_FROM: Final = 0.25  # of the steps; from here on only the job's own pace counts
DENOISE_SHARE: Final = 0.85  # of a job's seconds; the rest is encoding and decoding


class Live:
    """One running job. Written by the threads that run it, read by everyone else.

    `cancelled`: somebody asked for an end; `interrupted`: the server stops and the job goes back to the queue.
    `clock` counts seconds.
    """

    def __init__(self, job: Job, claim: Claim, clock: Callable[[], float] = time.monotonic) -> None:
        self.job = job
        self.claim = claim
        self._clock = clock
        self.started = clock()
        self.saved = self.started
        self.cancelled = False
        self.interrupted = False
        self.preview: NDArray[np.uint8] | None = None
        self.preview_wanted = True  # the first step gives one at once; later ones only while somebody looks
        self._previewed = 0.0
        self._stage = "encode"
        self._step = 0
        self._stepped = (0, self.started)  # the newest step and when it was done

    @property
    def must_end(self) -> bool:
        return self.cancelled or self.interrupted

    def report(self, progress: Progress) -> None:
        """Take over what the engine says, scaled to the steps that were asked for: a preset may run fewer."""
        self._stage = progress.stage
        if progress.stage == "denoise":
            self._step = round(progress.step * self.job.request.steps / max(1, progress.steps))
        now = self._clock()
        if self._step > self._stepped[0]:
            self._stepped = (self._step, now)
        if progress.preview is not None and self.preview_wanted and now - self._previewed >= PREVIEW_EVERY_S:
            self._previewed, self.preview_wanted = now, False
            try:
                self.preview = progress.preview()
            except Exception:
                log.exception("no preview", extra={"job": self.job.id})  # a picture is not worth the job

    def writing(self) -> None:
        self._stage, self._step = "write", self.job.request.steps

    @property
    def stage(self) -> str:
        return self._stage

    @property
    def step(self) -> int:
        return self._step

    def snapshot(self, seconds: float | None) -> Job:
        """The job as it stands; `seconds` is what such a job takes on average."""
        whole = self._whole(seconds)
        eta = None if whole is None else round(max(0.0, whole - (self._clock() - self.started)), 1)
        return replace(self.job, stage=self._stage, step=self._step, eta_s=eta)

    def _whole(self, seconds: float | None) -> float | None:
        """Seconds from start to end: the average at first, then more and more what this job's own steps take.

        Other jobs may have run when the machine had less to do, or at a size from which the time does not scale.
        """
        step, at = self._stepped
        if step < FIRST_OWN_STEP:
            return seconds
        done = step / self.job.request.steps
        own = (at - self.started) / (done * DENOISE_SHARE)
        if seconds is None:
            return own
        weight = min(1.0, done / OWN_FROM)
        return weight * own + (1 - weight) * seconds


class Board:
    """The running jobs by id: at most one in the engine and one or two being written."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_id: dict[str, Live] = {}
        self._doomed: set[str] = set()  # cancelled between the row's claim and `add`

    def add(self, live: Live) -> None:
        with self._lock:
            self._by_id[live.job.id] = live
            live.cancelled = live.cancelled or live.job.id in self._doomed

    def remove(self, live: Live) -> None:
        with self._lock:
            self._doomed.discard(live.job.id)
            if self._by_id.get(live.job.id) is live:
                del self._by_id[live.job.id]

    def cancel(self, id: str) -> None:
        """Ask a job to end after its current step, even one whose thread has not added it yet."""
        with self._lock:
            if (live := self._by_id.get(id)) is not None:
                live.cancelled = True
            else:
                self._doomed.add(id)

    def spare(self, id: str) -> None:
        """Forget `cancel` for a job that had ended before."""
        with self._lock:
            self._doomed.discard(id)

    def get(self, id: str) -> Live | None:
        with self._lock:
            return self._by_id.get(id)

    def all(self) -> list[Live]:
        with self._lock:
            return list(self._by_id.values())
