"""`JobQueue`: the one door to jobs for the routes, the UI and the command line.

Thread-safe. Methods block for milliseconds (a database write, a PNG) unless they say that they wait, so coroutines
call them through a thread; `wait` and `events` are coroutines. Nothing here polls. Knows no HTTP and imports no engine.
"""

import logging
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from i2v.engine.interface import DeviceMemory, EngineProtocol, Frames, MemoryNeed, ModelInfo
from i2v.errors import I2VError, NotReady
from i2v.jobs import outputs
from i2v.jobs.admission import Admission, free_bytes, new_job
from i2v.jobs.cancel import Ending
from i2v.jobs.eta import Line, Pace
from i2v.jobs.job import Door, Job, Status
from i2v.jobs.outputs import FolderLock, Mark, Shelf, mark_of
from i2v.jobs.phase import Phase, State
from i2v.jobs.photo import decode_png, normalise
from i2v.jobs.publisher import Failpoint, Publisher, WriteVideo
from i2v.jobs.recovery import Starts, count_start, note_good_end, recover
from i2v.jobs.running import Board
from i2v.jobs.schema import DataError, sqlite_url
from i2v.jobs.settle import Verdicts
from i2v.jobs.signals import Hub, Waits
from i2v.jobs.store import Clock, JobStore, Owed
from i2v.jobs.worker import Worker
from i2v.mutex import GpuMutex
from i2v.notes import Note
from i2v.request import GenerateRequest
from i2v.settings import Settings

log = logging.getLogger(__name__)

DATABASE_NAME = "jobs.sqlite3"


class JobQueue:
    """`start` opens the data folder, `attach` gives it an engine, `stop` ends it in good order.

    `on_fatal` is called (once, on a worker thread) after the engine was lost and every waiter has been woken: the
    process should end its HTTP answers and exit with `errors.EXIT_RESTART`.
    `on_final` callables get each job once it is final, on the thread that ended it; they must be quick and not raise.
    Tests hand in `clock` (aware UTC), `free_space` (bytes free at a path), `write_video` and `failpoint`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        write_video: WriteVideo | None = None,
        free_space: Callable[[Path], int] | None = None,
        failpoint: Failpoint | None = None,
    ) -> None:
        self.on_fatal: Callable[[], None] | None = None
        self.on_final: list[Callable[[Job], None]] = []
        self._settings = settings
        self._folder = settings.outputs.resolve()
        self._clock = clock or _now
        self._given: tuple[EngineProtocol, GpuMutex] | None = None
        self._write_video = write_video
        self._failpoint = failpoint or (lambda _name: None)
        self._hub = Hub()
        self._board = Board()
        self._pace = Pace()
        self._folder_lock = FolderLock(self._folder)
        self._stop_lock = threading.Lock()
        self._phase = Phase()
        self._engine: EngineProtocol | None = None
        self._starts = Starts()
        self._store: JobStore | None = None
        self._line = Line(lambda: self._opened().waiting(), self._board, self._pace)
        self._admission = Admission(settings, self._folder, self._line, free_space or free_bytes)
        self._waits = Waits(self._hub, self._get_or_down)

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Lock the data folder, open the table, deal with what an earlier process left, start the threads.

        Raises `schema.DataError` with a sentence for the operator; nothing is held then.
        """
        self._folder_lock.acquire()
        try:
            url = self._settings.database or sqlite_url(self._folder / DATABASE_NAME)
            self._store = JobStore(url, uuid.uuid4().hex, self._clock)
            own_table = None if self._settings.database else self._folder / DATABASE_NAME
            mark = mark_of(self._folder, own_table, self._store)
            recover(self._store, self._folder, self._settings, self._pace, self._clock())
            self._starts = count_start(self._store)
            self._build(self._store, mark)
        except BaseException as error:
            if self._store is not None:
                self._store.close()
                self._store = None
            self._folder_lock.release()
            if isinstance(error, I2VError):
                raise DataError(error.message) from error
            if isinstance(error, OSError):
                reason = error.strerror or error
                raise DataError(f"the outputs folder {self._folder} cannot be used: {reason}") from error
            raise
        if self._given is not None:
            self.attach(*self._given)

    def attach(self, engine: EngineProtocol, mutex: GpuMutex) -> None:
        """The engine is loaded, and `mutex` is that of its device: jobs run from now on, or from `start`."""
        if self._store is None:
            self._given = engine, mutex
            return
        self._engine = engine
        self._phase.ready()
        self._worker.attach(engine, mutex)

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
        if self._store is None:
            return
        self._phase.stop()
        self._hub.everyone()
        ended = self._worker.stop(timeout) and self._publisher.stop(max(timeout, 60.0))
        self._hub.everyone()
        if ended:  # else a thread may still write: the locks go with the process
            with self._stop_lock:
                store, self._store = self._store, None
            if store is not None:
                if self.state != "dead":
                    with suppress(I2VError):
                        note_good_end(store)
                store.close()
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
    def starts(self) -> Starts:
        """How often the server was started on this data, this time included."""
        return self._starts

    def device_memory(self) -> DeviceMemory | None:
        """The GPU's memory as it is now; None while no model is there and where no GPU is used."""
        return None if self._engine is None else self._engine.device_memory()

    def storage_problem(self) -> str | None:
        """Why videos or rows cannot be written now, in a sentence without paths; None when they can."""
        if self._store is None:
            return "the job table is not open"
        if (problem := self._shelf.problem()) is not None:
            return problem
        try:
            self._store.counts()
        except I2VError as error:
            return error.message
        if not self._verdicts.storage_works:
            return "the job table takes no change at the moment"
        return None if self._admission.has_room() else "the disk is nearly full"

    def storage_ok(self) -> bool:
        """Videos and rows can be written: the folder is there and writable, the disk has room, the table answers."""
        return self.storage_problem() is None

    # -- arrival ------------------------------------------------------------------------------------------------

    def submit(
        self,
        request: GenerateRequest,
        image: Image.Image,
        *,
        door: Door,
        caller: str | None = None,
        idempotency_key: str | None = None,
        extends: str | None = None,
        webhook: str | None = None,
    ) -> Job:
        """Queue a job and return it, seed drawn. `image` is upright RGB of any size.

        `idempotency_key`: the same key with the same request returns the job that is there, `replayed` set.
        `extends`: id of a completed job; its frames go before the new ones in the file (the first new frame, which
        shows the same moment as the last old one, is dropped). `image` should be its last frame.
        `webhook`: an address that is stored with the job and waits in `owed_webhooks` once the job is final.

        Raises NotReady, DoesNotFit, QueueFull, TooManyJobs, StorageFull, Conflict; NotFound for an unknown `extends`.
        """
        store, engine = self._opened(), self._engine
        if self.state != "ready" or engine is None:
            raise self._phase.refusal()
        engine.check(request)
        if extends is not None:
            self.video_path(self.get(extends))
        self._mark.check()
        self._admission.check_room()
        if idempotency_key is None:
            self._admission.check_line()  # before the photo is packed; the insert has the last word
        picture = normalise(image)
        new = new_job(request, picture, door, caller, idempotency_key, extends, webhook)
        job, replayed = self._admission.insert(store, new)
        if replayed:
            if job.status == "queued":  # the answer that it was taken may have been lost, and the worker not told
                self._moved(job.id)
                self._worker.stir()
            return replace(self._line.fill_in(job), replayed=True)
        self._worker.expect(job.id, picture)  # after the last word on it: a refused photo is not kept
        self._moved(job.id)
        self._worker.stir()
        return self._line.fill_in(job)

    # -- reading ------------------------------------------------------------------------------------------------

    def get(self, id: str) -> Job:
        """The job as it stands. Raises `NotFound`."""
        live = self._board.get(id)  # before the row: of a job that ends in between, the row is older than this
        return self._line.fill_in(self._opened().get(id), live)

    def running(self, id: str) -> Job | None:
        """The job as it stands if it runs now, from memory alone and at once, so that a coroutine may ask; else None.

        Most polls are for it. A thread for each would take the interpreter from the engine's thread just as often.
        """
        live = self._board.get(id)
        return None if live is None else self._line.fill_in(live.job, live)

    def list(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        order: Literal["asc", "desc"] = "desc",
        status: Status | None = None,
        search: str | None = None,
    ) -> list[Job]:
        """A page in the order of arrival, starting behind the job `after`. `search` is part of a prompt.

        Raises `NotFound` when `after` is unknown.
        """
        found = self._opened().list(after=after, limit=limit, order=order, status=status, search=search)
        return [self._line.fill_in(job) for job in found]

    def input_image(self, id: str) -> Image.Image:
        """The photo the job was given, RGB, as stored (at most `photo.STORED_SIDE` px). Raises `NotFound`."""
        return decode_png(self._opened().png(id))

    def preview(self, id: str) -> NDArray[np.uint8] | None:
        """A small RGB picture (h, w, 3) of the running job, None before its first step and when it does not run.

        Refreshed at most twice a second, and only while somebody asks.
        """
        live = self._board.get(id)
        if live is None:
            return None
        live.preview_wanted = True
        return live.preview

    def video_path(self, job: Job) -> Path:
        """Where the video is. Raises `Conflict` when the job is not completed, `NotFound` when its file is gone,
        `Unavailable` when the whole folder is."""
        self._opened()
        return self._shelf.path_of(job)

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
        return 0 if self._store is None else len(self._line)

    def counts(self) -> dict[Status, int]:
        """Jobs by state, for metrics."""
        return self._opened().counts()

    # -- ending -------------------------------------------------------------------------------------------------

    def cancel(self, id: str, *, wait: bool = True) -> Job:
        """Stop a job and return it once it has stopped; waits for the end of the current step.

        With `wait` False the job is asked to stop and returned at once, as it stands then.

        A job that completes just then stays completed. Raises `Conflict` when it was final already, `NotFound`.
        """
        self._opened()
        return self._ending.cancel(id, wait=wait)

    def abandon(self, id: str) -> None:
        """The caller has gone. A queued job is dropped; a running one goes by `predict.on_disconnect`. No wait."""
        self._opened()
        self._ending.abandon(id, running=self._settings.predict.on_disconnect == "cancel")

    def delete(self, id: str) -> None:
        """Cancel if needed (waits), then remove the file, its sidecar and the row.

        Raises `NotFound`, and `Unavailable` when the file cannot be removed; the row stays then.
        """
        self._opened()
        self._ending.delete(id)
        self._hub.changed(id)

    # -- webhooks -----------------------------------------------------------------------------------------------

    def owed_webhooks(self) -> Sequence[Owed]:
        """Addresses that have not been told of an end, whether the job is still there or not."""
        return self._opened().owed_webhooks()

    def forget_webhook(self, id: str) -> None:
        """The address has been told, or given up."""
        self._opened().forget_webhook(id)

    # -- waiting ------------------------------------------------------------------------------------------------

    async def wait(self, id: str) -> Job:
        """The job once it is final. Raises `NotFound`; `NotReady` when the server ends before the job does."""
        return await self._waits.wait(id)

    def events(self, id: str) -> AsyncIterator[Job]:
        """A snapshot now and after every change (changes in quick succession give one), the final one last.

        Raises as `wait` does, when iterated.
        """
        return self._waits.events(id)

    def wait_sync(self, id: str, timeout: float | None = None) -> Job:
        """The job once it is final. Raises `TimeoutError` after `timeout` seconds, and as `wait` does."""
        return self._waits.wait_sync(id, timeout)

    # -- inside -------------------------------------------------------------------------------------------------

    def _build(self, store: JobStore, mark: Mark) -> None:
        from i2v.video import new_file_name, write_video

        self._mark = mark
        self._shelf = Shelf(self._folder, mark, store, self._settings.retention)
        self._ending = Ending(store, self._shelf, self._board, get=self.get, wait=self.wait_sync, dropped=self._dropped)
        self._verdicts = Verdicts(
            store,
            self._board,
            self._pace,
            attempts=self._settings.queue.attempts,
            moved=self._moved,
            ended=self._ended,
            after=self._after,
            on_lost=self._lost,
        )
        self._publisher = Publisher(
            self._folder,
            self._verdicts,
            mark=mark,
            write_video=self._write_video or write_video,
            source_frames=self._frames_of,
            failpoint=self._failpoint,
        )
        self._worker = Worker(
            store,
            self._verdicts,
            self._publisher,
            hub=self._hub,
            board=self._board,
            mark=mark,
            new_name=lambda: new_file_name(self._clock()),
            step_timeout_s=self._settings.queue.step_timeout_s,
            failpoint=self._failpoint,
        )
        self._publisher.start()
        self._worker.start()

    def _opened(self) -> JobStore:
        store = self._store
        if store is None:
            raise NotReady("the server is not running")
        return store

    def _moved(self, id: str) -> None:
        """A job is in another state, so the places of those behind it have changed, too."""
        self._line.moved()
        self._hub.changed(id)
        self._hub.everyone(steps_only=True)

    def _ended(self, job: Job) -> None:
        """A job has left the worker's or the publisher's hands, on their thread. Before anybody is woken, so that
        whoever waited for it finds it counted."""
        if job.is_final:
            for listener in self.on_final:
                listener(job)
        else:
            self._worker.stir()  # it went back to the queue

    def _after(self, job: Job) -> None:
        """As above, for what may take longer."""
        store = self._store
        if store is None or not job.is_final:
            return
        try:
            if job.status == "completed":
                for gone in self._shelf.enforce(self._clock()):
                    self._moved(gone)
            else:
                store.forget_failures(outputs.FAILURES_KEPT)
        except I2VError as error:
            log.warning("old jobs could not be removed: %s", error.message)

    def _lost(self, error: I2VError) -> None:
        if not self._phase.die(error.message):
            return
        self._hub.everyone()
        self._publisher.stop(60.0)
        self._hub.everyone()
        if self.on_fatal is not None:
            self.on_fatal()

    def _frames_of(self, id: str) -> Frames:
        from i2v.video import read_frames

        return read_frames(self.video_path(self.get(id)))

    def _dropped(self, job: Job) -> None:
        """A queued job was cancelled."""
        self._ended(job)
        self._moved(job.id)
        self._after(job)

    def _get_or_down(self, id: str) -> Job:
        job = self.get(id)
        if job.is_final:
            return job
        if self.state == "dead" or (self.state == "stopping" and job.status == "queued"):
            raise NotReady(f"the server restarts; job {id} keeps its place and runs afterwards", retry_after=10)
        return job


def _now() -> datetime:
    return datetime.now(UTC)
