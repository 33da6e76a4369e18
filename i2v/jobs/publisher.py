"""Frames -> a finished video: encodes on its own thread, so that the GPU works on the next job meanwhile.

Order: settings sidecar, then the MP4 under a temporary name, verified, flushed, renamed, then the row. Whenever the
process dies, an MP4 under its final name is complete, and a row says completed only when its file is there.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from i2v import __version__
from i2v.engine.interface import Frames, GenerationResult, ModelInfo
from i2v.errors import GenerationFailed, I2VError, JobCancelled, Unavailable
from i2v.jobs.job import Job, JobResult
from i2v.jobs.outputs import ABSENT, FolderMarker, write_whole
from i2v.jobs.running import RunningJob
from i2v.jobs.settle import Outcomes
from i2v.notes import say
from i2v.video import not_stored

log = logging.getLogger(__name__)

Failpoint = Callable[[str], None]


WRITE_S = 40.0  # how long a stop waits for a video that is being written: its frames took far longer to make
INTERRUPT_S = 10.0  # for an encoder that was killed to be gone, and its job's row to be written


class _Interrupted(Exception):
    """The server stops and waits no longer for the encoder."""


class WriteVideo(Protocol):
    """The shape of `i2v.video.write_video`."""

    def __call__(
        self,
        frames: NDArray[np.uint8],
        path: Path,
        *,
        fps: int,
        metadata: dict[str, str],
        on_point: Callable[[str], None] | None = None,
    ) -> None: ...


@dataclass(slots=True)
class _Parcel:
    live: RunningJob
    frames: Frames
    result: JobResult


class Publisher:
    """One thread that writes finished videos into `folder`, with at most one more waiting for it.

    A folder that is not that of `marker`, at the start or at the end of the writing, gets no video: the job goes back.
    `source_frames(id)` gives the frames of the video that a job continues; they go before the new ones.
    """

    def __init__(
        self,
        folder: Path,
        outcomes: Outcomes,
        *,
        marker: FolderMarker,
        write_video: WriteVideo,
        source_frames: Callable[[str], Frames],
        failpoint: Failpoint,
    ) -> None:
        self._folder = folder
        self._outcomes = outcomes
        self._marker = marker
        self._write_video = write_video
        self._source_frames = source_frames
        self._failpoint = failpoint
        self._parcels: SimpleQueue[_Parcel | None] = SimpleQueue()
        self._room = threading.Semaphore(1)
        self._interrupted = False
        self._thread = threading.Thread(target=self._run, name="i2v-publisher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def take(self, live: RunningJob, frames: Frames, result: JobResult) -> None:
        """Hand over a result; waits while an earlier one is still being written, so results never pile up."""
        self._room.acquire()
        self._parcels.put(_Parcel(live, frames, result))

    def drain(self) -> None:
        """Wait until nothing is being written. Called by the thread that calls `take`."""
        with self._room:
            pass

    def stop(self) -> bool:
        """Write what was taken, then end. After `WRITE_S` the encoder is ended and its job goes back.

        False when even that took longer than `INTERRUPT_S`.
        """
        if not self._thread.is_alive() or self._thread is threading.current_thread():
            return True
        self._parcels.put(None)
        self._thread.join(WRITE_S)
        if self._thread.is_alive():
            self._interrupted = True
            self._thread.join(INTERRUPT_S)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while (parcel := self._parcels.get()) is not None:
                self._settle(parcel)
                del parcel  # the frames, before the next wait
                self._room.release()
        except Exception:  # a defect of ours: see the worker
            log.exception("the publisher failed")
            self._outcomes.broken(GenerationFailed("the publisher failed; the server restarts"))

    def _settle(self, parcel: _Parcel) -> None:
        live = parcel.live
        try:
            self._publish(parcel)
        except JobCancelled:
            self._outcomes.cancelled(live)
        except _Interrupted:
            self._outcomes.requeued(live)
        except Unavailable as error:
            self._outcomes.put_back(live, error)
        except I2VError as error:
            self._failed(live, error)
        except Exception:
            log.exception("the video could not be written", extra={"job": live.job.id})
            self._failed(live, GenerationFailed("the video could not be written"))

    def _failed(self, live: RunningJob, error: I2VError) -> None:
        """A disk that goes shows itself as any error of reading or writing: that is not the job's fault."""
        if self._marker.is_there():
            self._outcomes.failed(live, error)
        else:
            self._outcomes.put_back(live, Unavailable(ABSENT, retry_after=30))

    def _publish(self, parcel: _Parcel) -> None:
        live, job = parcel.live, parcel.live.job
        path = self._folder / parcel.result.file
        sidecar = path.with_suffix(".json")

        def on_point(name: str) -> None:
            if live.cancelled and name != "renamed":
                raise JobCancelled("the job was cancelled")
            if name == "writing":
                if self._interrupted:
                    raise _Interrupted
                return
            self._failpoint(name)
            if name != "renamed":
                self._marker.check()

        start = time.perf_counter()
        try:
            if live.cancelled:
                raise JobCancelled("the job was cancelled")
            self._marker.check()
            frames = parcel.frames
            if job.extends is not None:
                frames = np.concatenate([self._source_frames(job.extends), frames[1:]])
            _write_sidecar(sidecar, job, parcel.result)
            metadata = metadata_of(job, parcel.result)
            self._write_video(frames, path, fps=job.request.fps, metadata=metadata, on_point=on_point)
        except BaseException:
            _remove(path, sidecar)
            raise
        stages = parcel.result.stage_seconds | {"write": time.perf_counter() - start}
        done = replace(parcel.result, bytes=path.stat().st_size, stage_seconds=stages)
        if not self._outcomes.completed(live, done):
            _remove(path, sidecar)
        self._failpoint("committed")


def _remove(*paths: Path) -> None:
    """As far as the disk lets it: what stays is swept at the next start."""
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def result_of(file: str, result: GenerationResult, info: ModelInfo) -> JobResult:
    """What is kept of a generation once its frames are gone; `bytes` and the writing time follow."""
    return JobResult(
        file=file,
        bytes=0,
        seed=result.seed,
        guidance_scale=result.guidance_scale,
        model=info.name,
        model_title=info.title,
        device=info.device,
        seconds=sum(result.stage_seconds.values()),
        stage_seconds=dict(result.stage_seconds),
        peak_memory_mb=result.peak_memory_mb,
        plan=result.plan,
        notes=tuple(result.notes),
        warnings=tuple(result.warnings),
        model_kind=info.kind,
    )


def metadata_of(job: Job, result: JobResult) -> dict[str, str]:
    """What is written into the MP4: `request` is a GenerateRequest as JSON, which runs the job again as it was."""
    request = job.request.model_copy(update={"seed": result.seed})
    return {
        "software": f"i2v {__version__}",
        "job": job.id,
        "model": result.model,
        "model_title": result.model_title,
        "device": result.device,
        "prompt": request.prompt,
        "seed": str(result.seed),
        "guidance_scale": str(result.guidance_scale),
        "request": request.model_dump_json(),
    }


def _write_sidecar(path: Path, job: Job, result: JobResult) -> None:
    """Raises `StorageFull`, `GenerationFailed`, as `write_video` does."""
    kept: dict[str, Any] = {
        "id": job.id,
        "created_at": job.created_at.isoformat(),
        "request": job.request.model_dump(mode="json"),
        "result": {name: value for name, value in asdict(result).items() if name != "bytes"} | _in_words(result),
        "software": f"i2v {__version__}",
    }
    if job.extends is not None:
        kept["extends"] = job.extends
    try:
        write_whole(path, json.dumps(kept, indent=2, ensure_ascii=False), 0o644)
    except OSError as error:
        raise not_stored(error) from error


def _in_words(result: JobResult) -> dict[str, Any]:
    """What the engine noticed, as sentences: the sidecar is for people and their scripts."""
    return {
        "plan": result.plan and say(result.plan),
        "notes": [say(note) for note in result.notes],
        "warnings": [say(note) for note in result.warnings],
    }
