"""The jobs that this process runs right now, as only memory knows them: step, preview, whether they must end."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from i2v.engine.interface import Progress
from i2v.jobs.job import DECODE_STEPS, Claim, Job

log = logging.getLogger(__name__)

PREVIEW_EVERY_S = 0.5
FIRST_OWN_STEP: Final = 2  # the first step alone carries the warming up and says little
OWN_FROM: Final = 0.25  # of the steps; from here on only the job's own pace counts
LEAST_S: Final = 1.0  # the shortest ETA of a job that is not done, however late it is
UNREPORTED: Final = 0.9  # of the chunk being decoded: time alone moves the bar no farther


class _Decoding(NamedTuple):
    chunk: int  # done
    chunks: int  # of so many
    began: float  # by the clock
    newest: float  # when the newest chunk was done


class RunningJob:
    """One running job. Written by the threads that run it, read by everyone else.

    `cancelled`: somebody asked for an end; `interrupted`: the server stops and the job goes back to the queue.
    `clock` counts seconds.
    """

    def __init__(self, job: Job, claim: Claim, clock: Callable[[], float] = time.monotonic) -> None:
        self.job = job
        self.claim = claim
        self._clock = clock
        self.started = clock()
        self.cancelled = False
        self.interrupted = False
        self.preview: NDArray[np.uint8] | None = None
        self.preview_wanted = True  # the first step gives one at once; later ones only while somebody looks
        self._previewed = 0.0
        self._stage = "encode"
        self._step = 0
        self._stepped = (0, self.started)  # the newest step and when it was done
        self._decode = _Decoding(0, 1, self.started, self.started)
        self._done = 0.0

    @property
    def must_end(self) -> bool:
        return self.cancelled or self.interrupted

    def report(self, progress: Progress) -> None:
        """Take over what the engine says, scaled to the steps that were asked for: a preset may run fewer."""
        if progress.stage == "denoise":
            self._step = round(progress.step * self.job.request.steps / max(1, progress.steps))
        now = self._clock()
        if self._step > self._stepped[0]:
            self._stepped = (self._step, now)
        if progress.stage == "decode":
            began = self._decode.began if progress.step else now
            self._decode = _Decoding(progress.step, max(1, progress.steps), began, now)
        self._stage = progress.stage  # last: whoever reads it finds the rest
        if progress.preview is not None and self.preview_wanted and now - self._previewed >= PREVIEW_EVERY_S:
            self._previewed, self.preview_wanted = now, False
            try:
                self.preview = progress.preview()
            except Exception:
                log.exception("no preview", extra={"job": self.job.id})  # a picture is not worth the job

    def look(self) -> NDArray[np.uint8] | None:
        """The newest preview; asks for the next one."""
        self.preview_wanted = True
        return self.preview

    def writing(self) -> None:
        self._stage, self._step = "write", self.job.request.steps

    @property
    def stage(self) -> str:
        return self._stage

    @property
    def step(self) -> int:
        return self._step

    def snapshot(self, seconds: float | None, decode_steps: float = DECODE_STEPS) -> Job:
        """The job as it stands; such a job takes `seconds` on average, its decoding as long as `decode_steps` steps."""
        now = self._clock()
        whole = self._whole(seconds, decode_steps)
        eta = None if whole is None else round(max(LEAST_S, whole - (now - self.started)), 1)
        self._done = max(self._done, self._fraction(now, decode_steps))  # a better estimate takes nothing back
        return replace(self.job, stage=self._stage, step=self._step, eta_s=eta, done=self._done)

    def _whole(self, seconds: float | None, decode_steps: float) -> float | None:
        """Seconds from start to end: the average at first, then more and more what this job's own steps take.

        Other jobs may have run when the machine had less to do, or at a size from which the time does not scale.
        """
        if self._stage == "write":
            return 0.0
        if self._stage == "decode":
            return self._decode.began - self.started + self._decode_seconds(decode_steps)
        step, at = self._stepped
        if step < FIRST_OWN_STEP:
            return seconds
        steps = self.job.request.steps
        own = (at - self.started) / step * (steps + decode_steps)
        if seconds is None:
            return own
        weight = min(1.0, step / steps / OWN_FROM)
        return weight * own + (1 - weight) * seconds

    def _decode_seconds(self, decode_steps: float) -> float:
        """All of decoding: by its own chunks once there are some, by the pace of the steps before."""
        chunk, chunks, began, newest = self._decode
        if chunk:
            return (newest - began) / chunk * chunks
        step, at = self._stepped
        return (at - self.started) / max(1, step) * decode_steps

    def _fraction(self, now: float, decode_steps: float) -> float:
        """Done of the whole, 0..1: denoising and decoding have the parts of it that they have of the time."""
        if self._stage == "write":
            return 1.0
        decoded = 0.0
        if self._stage == "decode":
            chunk, chunks, began, _ = self._decode
            by_time = (now - began) / max(self._decode_seconds(decode_steps), 1e-6)
            decoded = max(chunk / chunks, min((chunk + UNREPORTED) / chunks, by_time))
        steps = self.job.request.steps
        return min(1.0, (self._step + decode_steps * decoded) / (steps + decode_steps))


class RunningJobs:
    """The running jobs by id: at most one in the engine and one or two being written."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_id: dict[str, RunningJob] = {}
        self._doomed: set[str] = set()  # cancelled between the row's claim and `add`

    def add(self, live: RunningJob) -> None:
        """The job runs from now on; it is cancelled at once when `cancel` came before."""
        with self._lock:
            self._by_id[live.job.id] = live
            live.cancelled = live.cancelled or live.job.id in self._doomed

    def remove(self, live: RunningJob) -> None:
        """The job has ended. An attempt that a newer one has replaced removes nothing."""
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

    def get(self, id: str) -> RunningJob | None:
        """The running job; None when it does not run."""
        with self._lock:
            return self._by_id.get(id)

    def all(self) -> list[RunningJob]:
        with self._lock:
            return list(self._by_id.values())
