"""The lock of the outputs folder: one server to a folder, whatever happens to the file that says so."""

import fcntl
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from i2v.errors import Unavailable
from i2v.jobs.schema import DataError

log = logging.getLogger(__name__)

LOCK_NAME = ".i2v.lock"
PID_NAME = ".i2v.pid"  # beside the lock: who holds it, for the sentence a second server prints
TAKEN = "another process has taken the lock of the outputs folder; two servers must not use one folder"


def identity(file: Path) -> tuple[int, int]:
    """Device and inode: the very file, whatever its name. Raises OSError."""
    found = file.stat()
    return found.st_dev, found.st_ino


class FolderLock:
    """Held from `acquire` to `release`: a lock on the folder itself, and on a file in it, which somebody may delete.

    Where a file system locks no folders (NFS), the file's lock is the only one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / LOCK_NAME
        self._lock = FileLock(self._file, thread_local=False)
        self._descriptor: int | None = None
        self._locked: tuple[int, int] | None = None  # the file that was locked
        self._keeping = threading.Lock()

    def acquire(self) -> None:
        """Raises `DataError` when another process holds the folder, or when it cannot be made or written."""
        try:
            if not self._folder.is_dir():
                self._folder.mkdir(parents=True)
                self._folder.chmod(0o755)  # whatever the umask: other users of the machine may read the videos
            self._lock_folder()
            self._lock.acquire(timeout=0)
            self._locked = identity(self._file)
            (self._folder / PID_NAME).write_text(f"{os.getpid()}\n")
        except (Timeout, BlockingIOError):
            self.release(forget=False)
            holder = self._holder()
            who = f" (process {holder})" if holder else ""
            raise DataError(
                f"another i2v server{who} uses the folder {self._folder}. "
                "Stop it first, or choose another folder with --outputs"
            ) from None
        except OSError as error:
            self.release(forget=False)
            raise DataError(f"the outputs folder {self._folder} cannot be used: {error.strerror or error}") from None

    def release(self, *, forget: bool = True) -> None:
        """`forget` False: the folder is another server's, and so is what it says about itself."""
        if forget:
            with suppress(OSError):
                (self._folder / PID_NAME).unlink(missing_ok=True)
        self._lock.release()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def problem(self) -> str | None:
        """Lock a new file where the old one was deleted or replaced; a sentence where another process has done so."""
        with self._keeping:
            try:
                if self._locked is None or not self._is_here():  # another folder is no concern of this lock
                    return None
                if self._file.exists() and identity(self._file) == self._locked:
                    return None
                new = FileLock(self._file, thread_local=False)
                new.acquire(timeout=0)
                self._locked = identity(self._file)
            except Timeout:
                return TAKEN
            except OSError:
                return None  # the folder is gone, which its marker tells
            self._lock.release()
            self._lock = new
            log.warning("the lock file of the outputs folder was deleted while the server runs; it is there again")
            return None

    def _is_here(self) -> bool:
        """Whether the folder that was locked has its name still: `FileLock` would make one that is not there."""
        if self._descriptor is None:
            return False
        held = os.fstat(self._descriptor)
        return identity(self._folder) == (held.st_dev, held.st_ino)

    def check(self) -> None:
        """Raises `Unavailable` where `problem` has something to say."""
        if (problem := self.problem()) is not None:
            raise Unavailable(problem, retry_after=30)

    def _lock_folder(self) -> None:
        """Raises BlockingIOError when another process holds it."""
        self._descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            log.debug("this file system locks no folders")

    def _holder(self) -> int | None:
        try:
            return int((self._folder / PID_NAME).read_text())
        except (OSError, ValueError):
            return None
