"""What a job has to pass to be queued, what is stored of it, and when two submissions are the same one."""

import hashlib
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Required, TypedDict, Unpack

from PIL import Image

from i2v.errors import QueueFull, StorageFull
from i2v.jobs.eta import Positions
from i2v.jobs.job import Door, Job, NewJob
from i2v.jobs.photo import encode_png
from i2v.jobs.store import JobStore
from i2v.request import GenerateRequest
from i2v.settings import Settings


class Particulars(TypedDict, total=False):
    """What comes with a submission beside its request and photo.

    `idempotency_key`: the same key with the same request returns the job that is there, `replayed` set.
    `extends`: id of a completed job; its frames go before the new ones in the file (the first new frame, which shows
    the same moment as the last old one, is dropped). The photo should be its last frame.
    `webhook`: an address that is stored with the job and is told once the job is final.
    """

    door: Required[Door]
    caller: str | None
    idempotency_key: str | None
    extends: str | None
    webhook: str | None


class Admission:
    """The bounds of queue and disk. `free_space(folder)` in bytes; None asks the disk."""

    def __init__(
        self, settings: Settings, folder: Path, positions: Positions, free_space: Callable[[Path], int] | None
    ) -> None:
        self._length = settings.queue.length
        self._share = settings.queue.per_caller
        self._min_free = settings.min_free_mb * 1_000_000
        self._folder = folder
        self._positions = positions
        self._free_space = free_space or (lambda path: shutil.disk_usage(path).free)

    def has_room(self) -> bool:
        try:
            return self._free_space(self._folder) >= self._min_free
        except OSError:
            return False

    def check(self, store: JobStore, idempotency_key: str | None) -> None:
        """Raises `StorageFull`; `QueueFull` when there is no place now and the key names no job that is there."""
        if not self.has_room():
            raise StorageFull("the disk is nearly full; no job is taken until there is room for its video")
        if len(self._positions) >= self._length and not (idempotency_key and store.knows_key(idempotency_key)):
            raise self._full()

    def insert(self, store: JobStore, new: NewJob) -> tuple[Job, bool]:
        """As `JobStore.insert`, with the time to come again in `QueueFull`."""
        try:
            return store.insert(new, capacity=self._length, per_caller=self._share)
        except QueueFull:
            raise self._full() from None

    def _full(self) -> QueueFull:
        text = f"the queue is full: {self._length} jobs are waiting already"
        return QueueFull(text, retry_after=self._positions.retry_after())


def new_job(request: GenerateRequest, picture: Image.Image, **named: Unpack[Particulars]) -> NewJob:
    """Everything that is stored of a submission: a seed is drawn, the normalised photo packed."""
    key, extends, webhook = named.get("idempotency_key"), named.get("extends"), named.get("webhook")
    return NewJob(
        id=f"video_{uuid.uuid4().hex[:24]}",
        request=request.with_seed(),
        png=encode_png(picture),
        fingerprint=None if key is None else fingerprint(request, picture, extends, webhook),
        **named,
    )


def fingerprint(request: GenerateRequest, picture: Image.Image, extends: str | None, webhook: str | None) -> str:
    """SHA-256 of everything the caller chose. `request` is as it came in: a seed drawn here is no choice.

    The photo counts by its pixels: how they are packed may change from one version to the next.
    """
    digest = hashlib.sha256(request.model_dump_json().encode())
    digest.update(f"\0{extends}\0{webhook}\0{picture.size}\0".encode())
    digest.update(picture.tobytes())
    return digest.hexdigest()
