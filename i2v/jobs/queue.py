"""`JobQueue`: the one door to jobs for the routes, the UI and the command line.

Thread-safe. Methods block for milliseconds (a database write, a PNG) unless they say that they wait, so coroutines
call them through a thread; `wait` and `events` are coroutines. Nothing here polls. Knows no HTTP and imports no engine.
"""

import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from i2v.decoding_room import DECODING
from i2v.engine.interface import DeviceMemory, EngineProtocol, MemoryNeed, ModelInfo
from i2v.errors import I2VError, NotReady
from i2v.jobs.admission import Admission, Particulars, new_job
from i2v.jobs.cancel import Cancellation
from i2v.jobs.clock import Now, WatchedClock
from i2v.jobs.eta import Pace, Positions
from i2v.jobs.folder_lock import FolderLock
from i2v.jobs.job import Job, NewJob, PendingWebhook, Status
from i2v.jobs.outputs import VideoFolder
from i2v.jobs.phase import Phase, State
from i2v.jobs.photo import decode_png, reduce
from i2v.jobs.publisher import Failpoint, Publisher, WriteVideo
from i2v.jobs.recovery import OpenedData, StartCount, note_good_end, open_data
from i2v.jobs.running import RunningJobs
from i2v.jobs.settle import Outcomes
from i2v.jobs.signals import Waiting, Watchers
from i2v.jobs.worker import Worker
from i2v.mutex import GpuMutex
from i2v.notes import Note
from i2v.request import GenerateRequest
from i2v.settings import Settings


@dataclass(frozen=True, slots=True)
class Parts:
    """What exists from `start` to `stop`."""

    data: OpenedData
    videos: VideoFolder
    outcomes: Outcomes
    publisher: Publisher
    worker: Worker
    cancellation: Cancellation


class JobQueue:
    """`start` opens the data folder, `attach` gives it an engine, `stop` ends it.

    `on_fatal` is called (once, on a worker thread) after the engine was lost and every waiter has been woken: the
    process should end its HTTP answers and exit with `errors.EXIT_RESTART`.
    `on_final` callables get each job once it is final, on the thread that ended it; they must be quick and not raise.
    Tests hand in `clock` (aware UTC), `free_space` (bytes free at a path), `write_video` and `failpoint`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Now | None = None,
        write_video: WriteVideo | None = None,
        free_space: Callable[[Path], int] | None = None,
        failpoint: Failpoint | None = None,
    ) -> None:
        self.on_fatal: Callable[[], None] | None = None
        self.on_final: list[Callable[[Job], None]] = []
        self._settings = settings
        self._folder = settings.outputs.resolve()
        self._folder_lock = FolderLock(self._folder)
        self._clock = WatchedClock(clock)
        self._write_video = write_video
        self._failpoint = failpoint or (lambda _name: None)
        self._phase = Phase()
        self._watchers = Watchers()
        self._waiting = Waiting(self._watchers, self._get_or_down)
        self._running = RunningJobs()
        self._pace = Pace()
        self._positions = Positions(lambda: self._opened().data.store.waiting(), self._running, self._pace)
        self._admission = Admission(settings, self._folder, self._positions, free_space)
        self._engine: EngineProtocol | None = None
        self._mutex: GpuMutex | None = None
        self._stop_lock = threading.Lock()
        self._parts: Parts | None = None

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Lock the data folder, open the table, deal with what an earlier process left, start the threads.

        Raises `schema.DataError` with a sentence for the operator; nothing is held then.
        """
        self._folder_lock.acquire()
        with ExitStack() as undo:
            undo.callback(self._folder_lock.release)
            data = open_data(self._settings, self._folder, self._pace, self._clock)
            undo.callback(data.store.close)
            self._parts = self._build(data)
            undo.pop_all()
        self._parts.publisher.start()
        self._parts.worker.start()
        if self._engine is not None and self._mutex is not None:
            self.attach(self._engine, self._mutex)

    def _build(self, data: OpenedData) -> Parts:
        from i2v.video import new_file_name, write_video

        store, marker = data.store, data.marker
        videos = VideoFolder(self._folder, marker, store, self._settings.retention, self._clock)
        outcomes = Outcomes(
            store,
            videos,
            self._running,
            self._pace,
            attempts=self._settings.queue.attempts,
            positions=self._positions,
            watchers=self._watchers,
            listeners=self.on_final,
            on_back=lambda: self._opened().worker.stir(),
            on_lost=self._lost,
        )
        publisher = Publisher(
            self._folder,
            outcomes,
            marker=marker,
            write_video=self._write_video or write_video,
            source_frames=videos.frames_of,
            failpoint=self._failpoint,
        )
        worker = Worker(
            store,
            outcomes,
            publisher,
            watchers=self._watchers,
            running=self._running,
            marker=marker,
            new_name=lambda: new_file_name(self._clock()),
            step_timeout_s=self._settings.queue.step_timeout_s,
            failpoint=self._failpoint,
        )
        cancellation = Cancellation(store, videos, self._running, outcomes, self._waiting.wait_sync)
        return Parts(data, videos, outcomes, publisher, worker, cancellation)

    def attach(self, engine: EngineProtocol, mutex: GpuMutex) -> None:
        """The engine is loaded, and `mutex` is that of its device: jobs run from now on, or from `start`."""
        self._engine, self._mutex = engine, mutex
        if (parts := self._parts) is not None:
            self._phase.ready()
            parts.worker.attach(engine, mutex)

    def report_loading(self, what: Note, fraction: float | None) -> None:
        """What is being done before `attach`, and how far it is (0..1, None when unknown)."""
        self._phase.loading = (what, fraction)

    def fail_loading(self, message: str) -> None:
        """There will be no engine; `message` tells callers why, without paths."""
        self._phase.fail(message)

    def stop(self, timeout: float = 10.0) -> None:
        """Take no more jobs, let the running one finish within `timeout` seconds or go back to the queue.

        Waits. Whoever waits for a job that is left in the queue gets `NotReady`. May be called twice.
        """
        parts = self._parts
        if parts is None:
            return
        self._phase.stop()
        self._watchers.everyone()
        ended = all([parts.worker.stop(timeout), parts.publisher.stop()])  # both, whatever the first one says
        self._watchers.everyone()
        if not ended:
            return  # a thread may still write: the locks go with the process
        with self._stop_lock:
            open_still, self._parts = self._parts is not None, None
        if open_still:
            if self.state != "dead":
                with suppress(I2VError):
                    note_good_end(parts.data.store)
            parts.data.store.close()
            self._folder_lock.release()

    @property
    def state(self) -> State:
        return self._phase.state

    @property
    def loading(self) -> tuple[Note, float | None]:
        return self._phase.loading

    @property
    def failure(self) -> str:
        """Why the state is `failed` or `dead`; empty otherwise."""
        return self._phase.failure

    @property
    def model(self) -> ModelInfo | None:
        return None if self._engine is None else self._engine.info

    @property
    def starts(self) -> StartCount:
        """How often the server was started on this data, this time included."""
        parts = self._parts
        return StartCount() if parts is None else parts.data.starts

    def device_memory(self) -> DeviceMemory | None:
        """The GPU's memory as it is now; None while no model is there and where no GPU is used."""
        return None if self._engine is None else self._engine.device_memory()

    def storage_problem(self) -> str | None:
        """Why videos or rows cannot be written now, in a sentence without paths; None when they can."""
        if (parts := self._parts) is None:
            return "the job table is not open"
        full = None if self._admission.has_room() else "the disk is nearly full"
        return self._folder_lock.problem() or parts.outcomes.storage_problem() or full

    def storage_ok(self) -> bool:
        """Videos and rows can be written: the folder is there and writable, the disk has room, the table answers."""
        return self.storage_problem() is None

    # -- arrival ------------------------------------------------------------------------------------------------

    def check(
        self, request: GenerateRequest, *, extends: str | None = None, idempotency_key: str | None = None
    ) -> None:
        """Raises what `submit` would whatever the photo is; to be asked before one is decoded."""
        self.check_room(idempotency_key).check(request)
        if extends is not None:
            self.video_path(self.get(extends))

    def check_room(self, idempotency_key: str | None) -> EngineProtocol:
        """The engine, where any job would be taken. A full queue still takes a key that it knows, to answer again."""
        parts, engine = self._opened(), self._engine
        if self.state != "ready" or engine is None:
            raise self._phase.refusal()
        parts.data.marker.check()
        self._folder_lock.check()
        self._admission.check(parts.data.store, idempotency_key)
        return engine

    def prepare(self, request: GenerateRequest, image: Image.Image, **named: Unpack[Particulars]) -> NewJob:
        """What `enter` queues, the photo packed: to be called in the room where that was decoded. Raises as `check`."""
        self.check(request, extends=named.get("extends"), idempotency_key=named.get("idempotency_key"))
        with DECODING:
            return new_job(request, reduce(image), **named)

    def enter(self, new: NewJob) -> Job:
        """Queue a prepared job; waits for the table. Raises QueueFull, TooManyJobs, Conflict."""
        parts = self._opened()
        job, replayed = self._admission.insert(parts.data.store, new)
        if job.status == "queued":  # a replayed one too: its first answer may have been lost, and the worker not told
            parts.outcomes.moved(job.id)
            parts.worker.stir()
        return replace(self._positions.fill_in(job), replayed=replayed)

    def submit(self, request: GenerateRequest, image: Image.Image, **named: Unpack[Particulars]) -> Job:
        """Queue a job and return it, seed drawn: `prepare` and `enter`. `image` is upright RGB of any size.

        Raises NotReady, DoesNotFit, QueueFull, TooManyJobs, StorageFull, Conflict; NotFound for an unknown `extends`.
        """
        return self.enter(self.prepare(request, image, **named))

    # -- reading ------------------------------------------------------------------------------------------------

    def get(self, id: str) -> Job:
        """The job as it stands. Raises `NotFound`."""
        live = self._running.get(id)  # before the row: of a job that ends in between, the row is older than this
        return self._positions.fill_in(self._opened().data.store.get(id), live)

    def running(self, id: str) -> Job | None:
        """The job as it stands if it runs now, else None. From memory alone and at once, for coroutines."""
        live = self._running.get(id)
        return None if live is None else self._positions.fill_in(live.job, live)

    def list(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        order: Literal["asc", "desc"] = "desc",
        status: Status | None = None,
        search: str | None = None,
    ) -> list[Job]:
        """A page in the order of arrival, from behind job `after`; `search`: part of a prompt. Raises `NotFound`."""
        found = self._opened().data.store.list(after=after, limit=limit, order=order, status=status, search=search)
        return [self._positions.fill_in(job) for job in found]

    def input_image(self, id: str) -> Image.Image:
        """The photo the job was given, RGB, as stored (at most `photo.STORED_SIDE` px). Raises `NotFound`."""
        return decode_png(self._opened().data.store.png(id))

    def preview(self, id: str) -> NDArray[np.uint8] | None:
        """A small RGB picture (h, w, 3) of the running job, None before its first step and when it does not run.

        Refreshed at most twice a second, and only while somebody asks.
        """
        live = self._running.get(id)
        return None if live is None else live.look()

    def video_path(self, job: Job) -> Path:
        """Where the video is. Raises `Conflict` when the job is not completed, `NotFound` when its file is gone,
        `Unavailable` when the whole folder is."""
        return self._opened().videos.path_of(job)

    def average_seconds(self, request: GenerateRequest) -> float | None:
        """Inference time of such a job here, None before the first job has finished."""
        return self._pace.seconds(request)

    def memory_need(self, request: GenerateRequest) -> MemoryNeed | None:
        """What such a job would take of the device's memory, None while no model is there or where it is not counted.

        Raises as `submit` would for the same request: InvalidRequest, DoesNotFit.
        """
        return None if self._engine is None else self._engine.memory_need(request)

    @property
    def average_duration(self) -> float:
        """Mean inference time of the last jobs in seconds, 0.0 before the first."""
        return self._pace.average

    @property
    def queue_length(self) -> int:
        """Jobs that wait; the running one is not among them."""
        return 0 if self._parts is None else len(self._positions)

    def counts(self) -> dict[Status, int]:
        """Jobs by state, for metrics."""
        return self._opened().data.store.counts()

    # -- ending -------------------------------------------------------------------------------------------------

    def cancel(self, id: str, *, wait: bool = True) -> Job:
        """Stop a job and return it once it has stopped, after its current step; one that completes just then stays so.

        With `wait` False it is only asked to stop, and returned as it stands. Raises `Conflict` when it was final
        already, `NotFound`.
        """
        return self._positions.fill_in(self._opened().cancellation.cancel(id, wait=wait))

    def abandon(self, id: str) -> None:
        """The caller has gone. A queued job is dropped; a running one goes by `predict.on_disconnect`. No wait."""
        self._opened().cancellation.abandon(id, running=self._settings.predict.on_disconnect == "cancel")

    def delete(self, id: str) -> None:
        """Cancel if needed (waits), then remove file, sidecar and row: all of them, or none where this raises.

        Raises `NotFound`, `Conflict`, `Unavailable`, `StorageFull`."""
        self._opened().cancellation.delete(id)

    def pending_webhooks(self) -> Sequence[PendingWebhook]:
        """Addresses that have not been told of an end, whether the job is still there or not."""
        return self._opened().data.store.pending_webhooks()

    def forget_webhook(self, id: str) -> None:
        """The address has been told, or given up."""
        self._opened().data.store.forget_webhook(id)

    # -- waiting ------------------------------------------------------------------------------------------------

    async def wait(self, id: str) -> Job:
        """The job once it is final. Raises `NotFound`; `NotReady` when the server ends before the job does."""
        return await self._waiting.wait(id)

    def events(self, id: str) -> AsyncGenerator[Job]:
        """A snapshot now and after every change (quick ones give one), the final one last. Raises as `wait` does."""
        return self._waiting.events(id)

    def wait_sync(self, id: str, timeout: float | None = None) -> Job:
        """The job once it is final. Raises `TimeoutError` after `timeout` seconds, and as `wait` does."""
        return self._waiting.wait_sync(id, timeout)

    # -- inside -------------------------------------------------------------------------------------------------

    def _opened(self) -> Parts:
        parts = self._parts
        if parts is None:
            raise NotReady("the server is not running")
        return parts

    def _lost(self, error: I2VError) -> None:
        if not self._phase.die(error.message):
            return
        self._watchers.everyone()
        self._opened().publisher.stop()
        self._watchers.everyone()
        if self.on_fatal is not None:
            self.on_fatal()

    def _get_or_down(self, id: str) -> Job:
        job = self.running(id) or self.get(id)  # of one that runs the table knows nothing more
        stays = self.state == "dead" or (self.state == "stopping" and job.status == "queued")
        if stays and not job.is_final:
            raise NotReady(f"the server restarts; job {id} keeps its place and runs afterwards", retry_after=10)
        return job
