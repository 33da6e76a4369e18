"""The one thread that feeds the engine: claim -> GPU mutex -> generate -> release -> hand over to the publisher.

Knows no HTTP and imports no engine: one is given to it. Whatever a job does, the thread goes on with the next one,
except when the engine itself is lost; then it stops for good and says so. A job that was in flight when the process
died runs alone, with nothing being written beside it: a second death then names the one that causes it.
"""

import logging
import threading
from collections.abc import Callable

from PIL import Image

from i2v.engine.interface import EngineProtocol, GenerationResult, Progress
from i2v.errors import (
    FatalEngineError,
    GenerationFailed,
    I2VError,
    JobCancelled,
    NotFound,
    OutOfMemory,
)
from i2v.jobs.job import InvalidTransition
from i2v.jobs.outputs import FolderMarker
from i2v.jobs.photo import decode_png
from i2v.jobs.publisher import Failpoint, Publisher, result_of
from i2v.jobs.running import RunningJob, RunningJobs
from i2v.jobs.settle import Outcomes
from i2v.jobs.signals import Watchers
from i2v.jobs.store import JobStore
from i2v.jobs.watchdog import Watchdog
from i2v.mutex import GpuMutex

log = logging.getLogger(__name__)

IDLE_S = 3600.0  # how often a server without jobs looks for what has become too old


class Worker:
    """Runs jobs of `store` on the engine given to `attach`, one at a time, until `stop`."""

    def __init__(
        self,
        store: JobStore,
        outcomes: Outcomes,
        publisher: Publisher,
        *,
        watchers: Watchers,
        running: RunningJobs,
        marker: FolderMarker,
        new_name: Callable[[], str],
        step_timeout_s: float,
        failpoint: Failpoint,
    ) -> None:
        self._store = store
        self._outcomes = outcomes
        self._publisher = publisher
        self._watchers = watchers
        self._running = running
        self._marker = marker
        self._new_name = new_name
        self._failpoint = failpoint
        self._watchdog = Watchdog(step_timeout_s)
        self._engine: EngineProtocol | None = None
        self._mutex: GpuMutex | None = None
        self._wake = threading.Condition()
        self._stirred = False
        self._stopping = threading.Event()
        self._hangs = False
        self._thread = threading.Thread(target=self._run, name="i2v-worker", daemon=True)

    def start(self) -> None:
        self._watchdog.start()
        self._thread.start()

    def attach(self, engine: EngineProtocol, mutex: GpuMutex) -> None:
        self._mutex = mutex
        self._engine = engine
        self.stir()

    def stir(self) -> None:
        """There may be something to do."""
        with self._wake:
            self._stirred = True
            self._wake.notify()

    def stop(self, timeout: float) -> bool:
        """Let the running job finish within `timeout` seconds; else put it back into the queue at its next step.

        False when even that step did not end within another `timeout` seconds, or when it is known to hang.
        """
        self.halt()
        if self._thread.is_alive() and not self._hangs:
            self._thread.join(timeout)
        if self._thread.is_alive() and not self._hangs:
            for live in self._running.all():
                live.interrupted = True
            self._thread.join(max(timeout, 1.0))
        self._watchdog.stop()
        return not self._thread.is_alive()

    def halt(self) -> None:
        """Start no further job; does not wait."""
        self._stopping.set()
        self._outcomes.stop()
        self.stir()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                live = self._claim()
                if live is None:
                    if not self._sleep():
                        self._outcomes.tidy()
                elif self._stopping.is_set():  # the stop came while it was claimed
                    self._put_back(live)
                else:
                    self._serve(live)
        except Exception:  # a defect of ours: a server whose queue stands still for ever is worse than a restart
            log.exception("the worker failed")
            self.halt()
            self._outcomes.broken(GenerationFailed("the worker failed; the server restarts"))

    def _sleep(self) -> bool:
        """Until there may be something to do; False when there was nothing for `IDLE_S`."""
        with self._wake:
            stirred = self._wake.wait_for(lambda: self._stirred, IDLE_S)
            self._stirred = False
            return stirred

    def _claim(self) -> RunningJob | None:
        if self._engine is None:
            return None
        if not self._outcomes.persist(self._folder_is_there, of_table=False):
            return None
        if self._outcomes.persist(self._store.next_is_retry):
            self._publisher.drain()
        found = self._outcomes.persist(lambda: self._store.claim(before_commit=self._may_claim))
        if found is None:
            return None
        self._failpoint("claimed")
        live = RunningJob(*found)
        self._outcomes.started(live)
        return live

    def _may_claim(self) -> None:
        """Look at the folder inside the claim, too: a job that went back for its lost disk must not lose an attempt."""
        self._failpoint("claiming")
        self._marker.check()

    def _folder_is_there(self) -> bool:
        """Raises `Unavailable` while it is not: a video made now could not be written, and jobs can wait."""
        self._marker.check()
        return True

    def _serve(self, live: RunningJob) -> None:
        try:
            result = self._generate(live)
        except JobCancelled:
            self._put_back(live)
        except FatalEngineError as error:
            self.halt()
            self._outcomes.engine_lost(live, error, again=True)
        except I2VError as error:
            self._outcomes.failed(live, error)
        except MemoryError:
            self._outcomes.failed(live, OutOfMemory("the machine ran out of memory during this job"))
        except Exception as error:
            log.exception("the engine failed", extra={"job": live.job.id})
            self._outcomes.failed(live, GenerationFailed(f"the engine failed ({type(error).__name__})"))
        else:
            self._hand_over(live, result)

    def _put_back(self, live: RunningJob) -> None:
        """A job that was asked to end is cancelled; one that the stop of the server ends is queued again."""
        if live.cancelled:
            self._outcomes.cancelled(live)
        else:
            self._outcomes.requeued(live)

    def _generate(self, live: RunningJob) -> GenerationResult:
        engine, mutex, job = self._engine, self._mutex, live.job
        assert engine is not None  # noqa: S101 - for the type checker; nothing is claimed before
        assert mutex is not None  # noqa: S101
        photo = self._photo(job.id)
        with mutex.hold(lambda who: log.info("waits for %s", who, extra={"job": job.id}), lambda: live.must_end):
            self._watchdog.arm(lambda: self._hung(live))
            try:
                return engine.generate(job.request, photo, on_step=lambda progress: self._on_step(live, progress))
            finally:
                self._watchdog.disarm()

    def _photo(self, id: str) -> Image.Image:
        try:
            png = self._outcomes.persist(lambda: self._store.png(id))
            if png is None:
                raise JobCancelled("the server stops")
            return decode_png(png)
        except NotFound:
            raise GenerationFailed("the photo that was stored with this job cannot be read") from None

    def _on_step(self, live: RunningJob, progress: Progress) -> None:
        self._watchdog.feed()
        self._failpoint("step")
        live.report(progress)
        if live.must_end:
            raise JobCancelled("the job was cancelled")
        self._watchers.step(live.job.id)

    def _hung(self, live: RunningJob) -> None:
        """On the watchdog's thread. The engine's thread cannot be stopped, so the process has to end."""
        self._hangs = live.cancelled = True  # should the step end after all, the job's next one is its last
        self.halt()
        text = f"a step of the {live.stage} stage took longer than the time limit; the server restarts"
        self._outcomes.engine_lost(live, GenerationFailed(text), again=False)

    def _hand_over(self, live: RunningJob, result: GenerationResult) -> None:
        assert self._engine is not None  # noqa: S101 - for the type checker
        kept = result_of(self._new_name(), result, self._engine.info)
        live.writing()
        try:
            self._outcomes.persist(lambda: self._store.begin_write(live.claim, kept.file, kept))
        except InvalidTransition:
            log.warning("had ended before its frames were there", extra={"job": live.job.id})
            self._running.remove(live)
            return
        self._watchers.step(live.job.id)
        self._failpoint("encoding")
        self._publisher.take(live, result.frames, kept)
        if live.claim.attempt > 1:
            self._publisher.drain()
