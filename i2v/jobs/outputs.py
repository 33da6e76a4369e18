"""The outputs folder: the marker that tells it from another one, its videos, and which have to go."""

import logging
import os
import re
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from i2v.engine.interface import Frames
from i2v.errors import Conflict, I2VError, NotFound, StorageFull, Unavailable
from i2v.jobs.clock import WatchedClock
from i2v.jobs.folder_lock import identity
from i2v.jobs.job import InvalidTransition, Job, Status
from i2v.jobs.schema import DataError
from i2v.jobs.store import JobStore
from i2v.settings import RetentionSettings

log = logging.getLogger(__name__)

MARK_NAME = ".i2v.outputs"
ABSENT = "the outputs folder is not the one that holds the videos; its disk may not be mounted"
ROOM_NAME = ".i2v.room"  # given up when a full disk keeps the table from forgetting a video, which then makes room
ROOM_BYTES = 2**20  # ten times what the table writes for it
LEAST_ROOM_BYTES = 2**16
FAILURES_KEPT = 1000  # rows without a video; they hold a photo each, so they are bounded

_NOTE = "outputs"  # the table's copy of the word
_WORD = re.compile(rb"\w{1,64}")
_STEM = r"video_\d{8}_\d{6}_[a-z0-9]{6}"
_UNFINISHED = re.compile(rf"{_STEM}\.[\w.]*part")
_ASIDE = re.compile(rf"{_STEM}\.del")  # a video whose row is being deleted; as long a name, so that no block is needed
_SIDECAR = re.compile(rf"{_STEM}\.json")


@dataclass(frozen=True, slots=True)
class FolderMarker:
    """Tells an outputs folder whose disk is not mounted from one whose videos were deleted.

    A table inside the folder comes and goes with it. A table elsewhere outlives it, and would take every video for
    lost; so it remembers a word that lies in a small file of the folder, too.

    `file` lies in the outputs folder; with `word` it must say exactly that, without it must be the very file
    (`identity`: device and inode) that the server has open as its table."""

    file: Path
    word: str | None = None
    identity: tuple[int, int] | None = None

    def is_there(self) -> bool:
        """Whether the folder is the one that the table belongs to."""
        try:
            return (
                identity(self.file) == self.identity
                if self.word is None
                else self.file.read_text().strip() == self.word
            )
        except (OSError, ValueError):
            return False

    def check(self) -> None:
        """Raises `Unavailable` when the folder is not there: nothing may be concluded from it or written into it."""
        if not self.is_there():
            raise Unavailable(ABSENT, retry_after=30)


def marker_of(folder: Path, own_table: Path | None, store: JobStore) -> FolderMarker:
    """The marker of a folder; `own_table` is the table's file where it lies in it, None for a table elsewhere.

    A table elsewhere and its folder hold the same random word. It is written at the first start, and anew by a table
    without videos, which has nothing to lose; a word that another table left in the folder is used again. Raises
    `DataError` when the folder is not that of the last start, or holds no video of a table that has no word yet;
    and OSError.
    """
    if own_table is not None:
        return FolderMarker(own_table, identity=identity(own_table))
    file, word, videos = folder / MARK_NAME, store.note(_NOTE), store.videos()
    if word is None and videos and all(size_of(folder, video.file) is None for video in videos):
        word = uuid.uuid5(uuid.NAMESPACE_OID, videos[0].id).hex  # the same at each try, with nothing written
    if word is None or not FolderMarker(file, word).is_there():
        if word is not None and videos:
            raise DataError(
                f"the outputs folder {folder} is not the one that holds the videos of this job table: mount its disk, "
                f"or name it with --outputs. If they are gone for good, or were moved here: echo {word} > {file}"
            )
        there = _read(file)
        word = there or word or uuid.uuid4().hex
        if not there:
            write_whole(file, f"{word}\n")
    if store.note(_NOTE) != word:  # last: a table that knows a word which is in no folder would refuse the right one
        store.set_notes({_NOTE: word})
    return FolderMarker(file, word)


def _read(file: Path) -> str:
    """The word in a folder, empty when there is none. Raises `DataError` when the file is none of ours."""
    if not file.exists():
        return ""
    found = file.read_bytes().strip()
    if found and _WORD.fullmatch(found) is None:
        raise DataError(f"{file} holds no word of a job table; remove it")
    return found.decode("ascii")


def write_whole(file: Path, text: str, mode: int | None = None) -> None:
    """A small file, whole or not at all, whenever the machine stops. `mode` None: as the umask says. Raises OSError."""
    part = file.with_name(f"{file.name}.part")
    try:
        with open(part, "w", encoding="utf-8") as new:
            if mode is not None:
                os.fchmod(new.fileno(), mode)
            new.write(text)
            new.flush()
            os.fsync(new.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def size_of(folder: Path, name: str) -> int | None:
    """Bytes of a finished video, None when it is missing or anything but a plain file of that folder."""
    path = folder / name
    try:
        return path.stat().st_size if path.is_file() and not path.is_symlink() else None
    except OSError:
        return None


def remove_files(folder: Path, name: str) -> None:
    """The video and its sidecar. A name that has become a folder is left alone."""
    for path in (folder / name, (folder / name).with_suffix(".json")):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)


def remove_job(store: JobStore, folder: Path, job: Job) -> None:
    """Forget a finished job, its photo and its video: all of it, or nothing where this raises.

    The video is renamed within the transaction that deletes the row, and renamed back if that is not kept; a process
    that dies in between leaves it to the next `sweep`. A full disk has `ROOM_BYTES` for it.

    Raises `StorageFull`, `Unavailable`, OSError when the video cannot be touched, `InvalidTransition` and `NotFound`.
    """
    if job.result is None:
        store.delete(job.id)
        return
    video = folder / job.result.file
    aside = video.with_suffix(".del")

    def take() -> None:
        if video.is_symlink() or not video.is_dir():
            with suppress(FileNotFoundError):
                video.replace(aside)

    def put_back() -> None:
        with suppress(FileNotFoundError):
            aside.replace(video)

    try:
        try:
            store.delete(job.id, take=take, put_back=put_back)
        except (StorageFull, Unavailable):
            if not give_room(folder):
                raise
            store.delete(job.id, take=take, put_back=put_back, sparing=True)
    except Unavailable:
        if not store.is_gone(job.id):  # else only the answer was lost
            raise
        take()
    with suppress(OSError):  # the job is gone; what stays of its files is swept at the next start
        remove_files(folder, job.result.file)
        aside.unlink(missing_ok=True)
    keep_room(folder)


def keep_room(folder: Path) -> None:
    """Hold `ROOM_BYTES` of the disk, or less where that is all there is."""
    file, size = folder / ROOM_NAME, ROOM_BYTES
    with suppress(OSError):
        if file.exists() and file.stat().st_size >= ROOM_BYTES:
            return
        with open(file, "wb", buffering=0) as room:
            while size >= LEAST_ROOM_BYTES:
                with suppress(OSError):
                    if room.write(os.urandom(size)) == size:  # zeros would take no room where a disk compresses
                        os.fsync(room.fileno())
                        return
                room.truncate(0)
                room.seek(0)
                size //= 2


def give_room(folder: Path) -> bool:
    """Whether the disk is full, and there was room to give."""
    try:
        if shutil.disk_usage(folder).free >= ROOM_BYTES:
            return False
        (folder / ROOM_NAME).unlink()
    except OSError:
        return False
    return True


def sweep(store: JobStore, folder: Path) -> None:
    """Tidy the folder at start, locked and with nothing running.

    Unfinished files of ours (`video_*.part`, left by a process that died) and sidecars without their video go; a video
    that was being deleted goes or comes back, as its row says; a complete video without a row stays, because it is the
    user's; anything else is not ours.
    """
    known = {video.file for video in store.videos()}
    for aside in [path for path in folder.iterdir() if _ASIDE.fullmatch(path.name)]:
        video = aside.with_suffix(".mp4")
        if video.name in known and not video.exists():
            aside.replace(video)
        else:
            aside.unlink()
    for path in folder.iterdir():
        orphaned = _SIDECAR.fullmatch(path.name) and not path.with_suffix(".mp4").exists()
        if (_UNFINISHED.fullmatch(path.name) or orphaned) and (path.is_file() or path.is_symlink()):
            path.unlink(missing_ok=True)
            log.info("removed an unfinished file: %s", path.name)
    for row in store.videos():
        if size_of(folder, row.file) is None:
            store.mark_lost(row.id)
            log.warning("its video is no longer there", extra={"job": row.id})


def enforce(store: JobStore, folder: Path, limits: RetentionSettings, now: datetime | None = None) -> list[str]:
    """Remove what is over the limits, oldest first; returns the ids that went. Nothing goes by age without `now`.

    A file that is being sent stays readable until its reader closes it.
    """
    gone: list[str] = []
    if limits.days and now is not None:
        gone += _remove(
            store,
            folder,
            [video.id for video in store.videos(removable=True, before=now - timedelta(days=limits.days))],
        )
    if limits.count or limits.gigabytes:
        gone += _remove(store, folder, _surplus(store, limits))
    return gone


def _surplus(store: JobStore, limits: RetentionSettings) -> list[str]:
    number, size = store.videos_total()
    allowed = limits.gigabytes * 1e9
    found = []
    for video in store.videos(removable=True) if _over(number, size, limits.count, allowed) else ():
        if not _over(number, size, limits.count, allowed):
            break
        found.append(video.id)
        number, size = number - 1, size - video.bytes
    return found


def _over(number: int, size: int, count: int, allowed: float) -> bool:
    return bool((count and number > count) or (allowed and size > allowed))


def _remove(store: JobStore, folder: Path, ids: list[str]) -> list[str]:
    gone = []
    for id in ids:
        try:
            remove_job(store, folder, store.get(id))
        except (NotFound, InvalidTransition):
            continue  # somebody else removed it
        except OSError as error:
            log.warning("could not be removed: %s", error.strerror, extra={"job": id})
            continue
        gone.append(id)
    return gone


def writable(folder: Path) -> bool:
    """Whether files can be made in `folder` now."""
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


class VideoFolder:
    """Finished videos of `store` in `folder`, as long as `marker` says that it is the right one. `now()`: aware UTC."""

    def __init__(
        self,
        folder: Path,
        marker: FolderMarker,
        store: JobStore,
        limits: RetentionSettings,
        clock: WatchedClock,
    ) -> None:
        self._folder = folder
        self._marker = marker
        self._store = store
        self._limits = limits
        self._clock = clock

    def problem(self) -> str | None:
        """Why no video can be written, in a sentence without paths."""
        if not self._marker.is_there():
            return ABSENT
        return None if writable(self._folder) else "the outputs folder cannot be written"

    def path_of(self, job: Job) -> Path:
        """As `JobQueue.video_path`."""
        if job.result is None:
            raise Conflict(f"the video is not ready: the job is {job.status}")
        if size_of(self._folder, job.result.file) is None:
            self._marker.check()
            name = job.result.file
            with suppress(InvalidTransition, I2VError):  # the answer is the same if the table cannot take it now
                self._store.mark_lost(job.id, lambda: size_of(self._folder, name) is None)
            raise NotFound("the file of this video is no longer there")
        return self._folder / job.result.file

    def frames_of(self, id: str) -> Frames:
        """The frames of a finished video, (F, H, W, 3). Raises as `path_of`, and `NotFound`."""
        from i2v.video import read_frames

        return read_frames(self.path_of(self._store.get(id)))

    def remove(self, job: Job) -> None:
        """A finished job with its files, all or nothing. Raises as `remove_job`; `Unavailable` in place of OSError."""
        if job.result is not None:
            self._marker.check()
        try:
            remove_job(self._store, self._folder, job)
        except OSError as error:
            raise Unavailable(f"the video cannot be removed: {error.strerror}", retry_after=30) from error

    def tidy(self, ended: Status) -> Sequence[str]:
        """Remove what is over the limits once a job has ended so, files and rows; returns the ids of removed videos.

        What cannot be removed now is removed after the next job.
        """
        try:
            if ended != "completed":
                self._store.forget_failures(FAILURES_KEPT)
            elif self._marker.is_there():
                now = self._clock() if self._clock.is_steady() else None
                return enforce(self._store, self._folder, self._limits, now)
        except I2VError as error:
            log.warning("old jobs could not be removed: %s", error.message)
        return ()
