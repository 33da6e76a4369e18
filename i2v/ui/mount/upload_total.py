"""How much the uploads of the page may take together: the oldest that no page uses go first.

A page reads its photo as soon as it is uploaded, and a job has a copy of its own in the table. So an upload that no
event has read for a while is one that nobody needs.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from i2v.errors import Unavailable

TOTAL_MB = 256  # of a machine's temporary files, which may be memory
IN_USE_S = 600.0  # since an event read it
RETRY_S = 60
MB = 1_000_000


class UploadTotal:
    """The files in the folder of uploads, `total` bytes of them at most. Thread-safe."""

    def __init__(self, folder: Path, total: int = TOTAL_MB * MB, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder.resolve()
        self._total = total
        self._clock = clock
        self._lock = threading.Lock()
        self._promised = 0  # bytes of uploads that are on their way

    def make_room(self, size: int) -> None:
        """Remove what has to go so that `size` bytes more fit; they are promised until `arrived(size)`.

        Raises `Unavailable` when pages use all that is here.
        """
        with self._lock:
            found = sorted(self._files(), key=lambda file: (_USED.get(str(file[0]), 0.0), file[2]))
            taken = self._promised + sum(length for _, length, _ in found)
            for path, length, _ in found:
                if taken + size <= self._total:
                    break
                read = _USED.get(str(path))
                if read is None or self._clock() - read >= IN_USE_S:
                    _remove(path)
                    taken -= length
            if taken + size > self._total and taken:
                raise Unavailable("other visitors' photos fill the room for uploads now", retry_after=RETRY_S)
            self._promised += size

    def arrived(self, size: int) -> None:
        """An upload has ended, well or not: what there is of it lies in the folder."""
        with self._lock:
            self._promised -= size

    def _files(self) -> list[tuple[Path, int, float]]:
        """Each upload with its bytes and when it was written; hidden files are the folder's own."""
        files = []
        for folder, _, names in os.walk(self._folder):
            for path in [Path(folder, name) for name in names if not name.startswith(".")]:
                with suppress(OSError):
                    info = path.lstat()
                    files.append((path, info.st_size, info.st_mtime))
        for gone in _USED.keys() - {str(path) for path, _, _ in files}:
            _USED.pop(gone, None)
        return files


_USED: dict[str, float] = {}  # path: when an event read it, by the monotonic clock; bounded by the files that are there


def note_use(path: Path) -> None:
    """An event has read this upload."""
    _USED[str(path.resolve())] = time.monotonic()


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
        path.parent.rmdir()
    _USED.pop(str(path), None)
