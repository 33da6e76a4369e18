"""The outputs folder of a running server: where a finished video is, how it goes, whether the folder can be used."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from i2v.errors import Conflict, NotFound, Unavailable
from i2v.jobs import retention
from i2v.jobs.job import Job
from i2v.jobs.mark import ABSENT, Mark
from i2v.jobs.store import InvalidTransition, JobStore
from i2v.settings import RetentionSettings


class Shelf:
    """Finished videos of `store` in `folder`, as long as `mark` says that it is the right one."""

    def __init__(self, folder: Path, mark: Mark, store: JobStore, limits: RetentionSettings) -> None:
        self._folder = folder
        self._mark = mark
        self._store = store
        self._limits = limits

    def problem(self) -> str | None:
        """Why no video can be written, in a sentence without paths."""
        if not self._mark.is_there():
            return ABSENT
        return None if retention.writable(self._folder) else "the outputs folder cannot be written"

    def path_of(self, job: Job) -> Path:
        """As `JobQueue.video_path`."""
        if job.result is None:
            raise Conflict(f"the video is not ready: the job is {job.status}")
        if retention.size_of(self._folder, job.result.file) is None:
            self._mark.check()
            with suppress(InvalidTransition, NotFound):
                self._store.mark_lost(job.id)
            raise NotFound("the file of this video is no longer there")
        return self._folder / job.result.file

    def remove(self, job: Job) -> None:
        """The files of a finished job, if it has any. Raises `Unavailable` when they cannot be removed now."""
        if job.result is None:
            return
        self._mark.check()
        try:
            retention.remove_files(self._folder, job.result.file)
        except OSError as error:
            raise Unavailable(f"the video cannot be removed: {error.strerror}", retry_after=30) from error

    def enforce(self, now: datetime) -> Sequence[str]:
        """Remove what is over the limits, files and rows; returns the ids that went."""
        if not self._mark.is_there():
            return ()
        return retention.enforce(self._store, self._folder, self._limits, now)
