"""What is kept in the outputs folder: limits by age, count and bytes, and the sweep at start.

Order of removal: the video, its sidecar, then the row; a process that dies in between leaves a row that the next sweep
marks as lost, never a row that promises a file. A file that is being sent stays readable until its reader closes it.

What the sweep does with files: unfinished ones of ours (`video_*.part`, left by a process that died) and sidecars
without their video go; a complete video without a row stays, because it is the user's; anything else is not ours.
"""

import logging
import os
import re
from datetime import datetime, timedelta
from pathlib import Path

from i2v.errors import NotFound
from i2v.jobs.store import InvalidTransition, JobStore
from i2v.settings import RetentionSettings

log = logging.getLogger(__name__)

FAILURES_KEPT = 1000  # rows without a video; they hold a photo each, so they are bounded
_STEM = r"video_\d{8}_\d{6}_[a-z0-9]{6}"
_UNFINISHED = re.compile(rf"{_STEM}\.[\w.]*part")
_SIDECAR = re.compile(rf"{_STEM}\.json")


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


def sweep(store: JobStore, folder: Path) -> None:
    """At start, with the folder locked and nothing running."""
    for path in folder.iterdir():
        orphaned = _SIDECAR.fullmatch(path.name) and not path.with_suffix(".mp4").exists()
        if (_UNFINISHED.fullmatch(path.name) or orphaned) and (path.is_file() or path.is_symlink()):
            path.unlink(missing_ok=True)
            log.info("removed an unfinished file: %s", path.name)
    for video in store.videos():
        if size_of(folder, video.file) is None:
            store.mark_lost(video.id)
            log.warning("its video is no longer there", extra={"job": video.id})


def enforce(store: JobStore, folder: Path, limits: RetentionSettings, now: datetime) -> list[str]:
    """Remove what is over the limits, oldest first; returns the ids that went."""
    gone: list[str] = []
    if limits.days:
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
            job = store.get(id)
            if job.result is not None:
                remove_files(folder, job.result.file)
            store.delete(id)
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
