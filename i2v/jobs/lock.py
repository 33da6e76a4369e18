"""The exclusive lock on the data folder: one server each. The kernel drops it with the process, however it dies."""

import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from i2v.jobs.schema import DataError

LOCK_NAME = ".i2v.lock"
PID_NAME = ".i2v.pid"  # beside the lock: who holds it, for the sentence a second server prints


class FolderLock:
    """Held from `acquire` to `release`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FileLock(folder / LOCK_NAME, thread_local=False)

    def acquire(self) -> None:
        """Raises `DataError` when another process holds the folder, or when it cannot be made or written."""
        try:
            if not self._folder.is_dir():
                self._folder.mkdir(parents=True)
                self._folder.chmod(0o755)  # whatever the umask: other users of the machine may read the videos
            self._lock.acquire(timeout=0)
            (self._folder / PID_NAME).write_text(f"{os.getpid()}\n")
        except Timeout:
            holder = self._holder()
            who = f" (process {holder})" if holder else ""
            raise DataError(
                f"another i2v server{who} uses the folder {self._folder}. "
                "Stop it first, or choose another folder with --outputs"
            ) from None
        except OSError as error:
            self._lock.release()
            raise DataError(f"the outputs folder {self._folder} cannot be used: {error.strerror or error}") from None

    def release(self) -> None:
        with suppress(OSError):
            (self._folder / PID_NAME).unlink(missing_ok=True)
        self._lock.release()

    def _holder(self) -> int | None:
        try:
            return int((self._folder / PID_NAME).read_text())
        except (OSError, ValueError):
            return None
