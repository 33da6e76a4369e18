"""Runs ffmpeg, watched: one that hangs, takes too long or is no longer wanted is killed, with what it has started.

Knows no videos: a command, bytes for its input, and what it said.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

STALL_S = 20.0  # a busy machine gives a process some processor time in so long; one that hangs takes none
TOTAL_S = 600.0
LOOK_S = 0.2

_running: set[int] = set()  # process ids of this module's children


class Stalled(Exception):
    """It was killed: it made no progress for `STALL_S`, or took longer than `TOTAL_S`."""


def run(
    command: Sequence[str],
    *,
    stdin: memoryview | None = None,
    pass_fds: Sequence[int] = (),
    on_wait: Callable[[], None] | None = None,
) -> "subprocess.CompletedProcess[bytes]":
    """The command's end, with its output. `on_wait` is called about every `LOOK_S` on a thread of its own.

    Raises what `on_wait` raises, which ends the command, and `Stalled`. No process is left, whatever happens.
    """
    with subprocess.Popen(  # noqa: S603 - the command is the caller's
        command,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=pass_fds,
    ) as process:
        _running.add(process.pid)
        watch = _Watch(process.pid, on_wait or (lambda: None))
        watch.start()
        try:
            out, err = process.communicate(stdin)  # type: ignore[arg-type]  # it takes any buffer
        except BaseException:
            kill(process.pid)
            raise
        finally:
            watch.end()
            _running.discard(process.pid)
    if watch.reason is not None:
        raise watch.reason
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def kill_all() -> None:
    """End whatever runs now: the process is about to end at once."""
    for pid in list(_running):
        kill(pid)


def kill(pid: int) -> None:
    """End a child that was not waited for yet, and its own children first: a wrapper's would hold the pipes open."""
    for child in _children(pid):
        kill(child)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    """The process ids; empty where the system does not tell."""
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


class _Watch(threading.Thread):
    """Kills the child, and says in `reason` why."""

    def __init__(self, pid: int, on_wait: Callable[[], None]) -> None:
        super().__init__(name="i2v-ffmpeg-watch", daemon=True)
        self._pid = pid
        self._on_wait = on_wait
        self._ended = threading.Event()
        self.reason: BaseException | None = None

    def end(self) -> None:
        """The child has ended. Waits for the thread, so that it kills nobody who got the same number."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        began = moved = time.monotonic()
        used = _processor_time(self._pid)
        while not self._ended.wait(LOOK_S):
            now, newest = time.monotonic(), _processor_time(self._pid)
            if newest is None or newest != used:  # None: this system does not tell, so only `TOTAL_S` counts
                used, moved = newest, now
            try:
                self._on_wait()
                if now - moved >= STALL_S:
                    raise Stalled(f"ffmpeg made no progress for {STALL_S:.0f} s")
                if now - began >= TOTAL_S:
                    raise Stalled(f"ffmpeg took longer than {TOTAL_S:.0f} s")
            except BaseException as error:
                self.reason = error
                kill(self._pid)
                return


def _processor_time(pid: int) -> int | None:
    """Clock ticks of the process and of its children, those that it has waited for too; None where the system does not
    tell.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return sum(map(int, fields[11:15])) + sum(_processor_time(child) or 0 for child in _children(pid))
