"""One job at a time on one GPU: a lock between the threads of this process and a file lock between processes.

The operating system drops the file lock when a process dies, so a killed server never blocks the next one. Imports no
torch. The worker and `i2v generate` hold it around `Engine.generate`.
"""

import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from i2v.errors import JobCancelled

POLL_S = 0.1  # how often a waiting job looks whether it was cancelled; small beside a job of seconds


class GpuMutex:
    """`with mutex.hold(): ...`. `lock_file` None serialises this process's threads only."""

    def __init__(self, lock_file: Path | None = None) -> None:
        self.lock_file = lock_file
        self._threads = threading.Lock()
        self._owner: int | None = None
        self._processes: FileLock | None = None
        if lock_file is not None:
            # 0666: several users may share a GPU; the file holds a process id and nothing else. No soft fallback: a
            # lock that survives its process would block the GPU for ever.
            self._processes = FileLock(
                lock_file, mode=0o666, thread_local=False, fallback_to_soft=False, on_acquired=_write_owner
            )

    @property
    def held(self) -> bool:
        """True while a thread of this process holds it."""
        return self._owner is not None

    @contextmanager
    def hold(
        self, on_wait: Callable[[str], None] | None = None, cancelled: Callable[[], bool] | None = None
    ) -> Iterator[None]:
        """Hold the GPU. `on_wait(who)` is called once for each holder that is waited for, in words.

        Raises `JobCancelled` when `cancelled()` turns true while waiting, OSError when the lock file cannot be used.
        """
        if self._owner == threading.get_ident():
            raise RuntimeError("this thread holds the GPU mutex already; waiting for itself would never end")
        _wait(lambda: self._threads.acquire(timeout=POLL_S), lambda: "another job of this server", on_wait, cancelled)
        try:
            if self._processes is not None:
                _wait(self._try_processes, self._who, on_wait, cancelled)
            self._owner = threading.get_ident()
            yield
        finally:
            self._owner = None
            if self._processes is not None and self._processes.is_locked:
                self._processes.release()
            self._threads.release()

    def _try_processes(self) -> bool:
        assert self._processes is not None  # noqa: S101 - for the type checker; `hold` has looked
        try:
            self._processes.acquire(timeout=POLL_S, poll_interval=POLL_S / 4)
        except Timeout:
            return False
        return True

    def _who(self) -> str:
        assert self.lock_file is not None  # noqa: S101
        try:
            pid = self.lock_file.read_text(encoding="ascii").strip() if self.lock_file.is_file() else ""
        except (OSError, UnicodeDecodeError):
            pid = ""
        return f"another process (pid {pid}) on the same GPU" if pid.isdigit() else "another process on the same GPU"


def _wait(
    take: Callable[[], bool],
    who: Callable[[], str],
    on_wait: Callable[[str], None] | None,
    cancelled: Callable[[], bool] | None,
) -> None:
    said = None
    while not take():
        if cancelled is not None and cancelled():
            raise JobCancelled("cancelled while waiting for the GPU")
        if on_wait is not None and (name := who()) != said:
            said = name
            on_wait(name)


def _write_owner(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)


def lock_file_for(device: object, outputs: Path, *, gpu_uuid: str | None = None, folder: Path | None = None) -> Path:
    """The lock file of a device: one per physical GPU for all users of the machine, or one per outputs folder on a CPU.

    `device` is a torch.device or its text. `gpu_uuid` None is read from the device, because the index means another
    card under another CUDA_VISIBLE_DEVICES. `folder` None is the machine's temporary folder.
    """
    text = str(device)
    if not text.startswith("cuda"):
        outputs.mkdir(parents=True, exist_ok=True)
        return outputs / "engine.lock"
    if gpu_uuid is None:
        import torch

        gpu_uuid = str(torch.cuda.get_device_properties(text).uuid)
    name = re.sub(r"[^A-Za-z0-9-]", "_", gpu_uuid)
    return (folder or Path(tempfile.gettempdir())) / f"i2v-gpu-{name}.lock"
