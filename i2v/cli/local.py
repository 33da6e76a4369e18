"""One job after the other on this machine without a server: load, check, hold the GPU mutex, generate, write the file.

Knows nothing of terminals, HTTP or the job table. Called by `i2v generate` and `i2v batch`.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image

from i2v import video
from i2v.engine.interface import EngineProtocol, OnLoad, OnStep
from i2v.jobs.job import Job
from i2v.jobs.publisher import metadata_of, result_of
from i2v.loading import load_engine, mutex_for
from i2v.mutex import GpuMutex
from i2v.request import GenerateRequest
from i2v.settings import Settings

OnWait = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Local:
    """A loaded engine and the mutex that a server on the same device holds too."""

    engine: EngineProtocol
    mutex: GpuMutex

    def run(
        self,
        request: GenerateRequest,
        image: Image.Image,
        path: Path,
        *,
        on_wait: OnWait | None = None,
        on_step: OnStep | None = None,
    ) -> Job:
        """Generate into `path` and return the finished job, as the server would have it.

        Raises what `EngineProtocol.check` and `generate` and `video.write_video` raise; `path` is then as it was.
        """
        self.engine.check(request)
        request = request.with_seed()
        created = datetime.now(UTC)
        with self.mutex.hold(on_wait):
            started = datetime.now(UTC)
            made = self.engine.generate(request, image, on_step=on_step)
        result = result_of(path.name, made, self.engine.info)
        job = Job(
            id=f"video_{secrets.token_hex(12)}",
            status="completed",
            request=request,
            door="cli",
            created_at=created,
            started_at=started,
            step=request.steps,
            result=result,
        )
        video.write_video(made.frames, path, fps=request.fps, metadata=metadata_of(job, result))
        result = replace(result, bytes=path.stat().st_size)
        return replace(job, result=result, completed_at=datetime.now(UTC))

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()


def load(settings: Settings, on_load: OnLoad) -> Local:
    """Load the engine that the settings name. Raises `ModelUnavailable`."""
    return Local(load_engine(settings, on_load), mutex_for(settings))
