"""Keeps one server process running: checks, log file, restart after code 86 or a crash. `start_app.sh` calls it.

Knows the server only as a command that ends with an exit code. It does not load the model, torch or the web stack, so
it stays small and outlives whatever happens in the server.
"""

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO

from i2v.errors import EXIT_RESTART, SettingsError
from i2v.flags import settings_from

FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 60.0
HEALTHY_S = 600.0  # a server that ran this long was healthy: its next restart starts at the first delay again
GRACE_S = 90.0  # for the server to finish, a video that is being written included; then it is killed
CRASHES = {  # by exit code: signals that nobody sends to end a server in good order
    128 + number: number.name
    for number in (
        signal.SIGKILL,  # the kernel's, when memory has run out
        signal.SIGSEGV,
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGILL,
        signal.SIGFPE,
    )
}
MOST_CRASHES, CRASHES_WITHIN_S = 5, 600.0  # so many in so short a time are no accident
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Tee:
    """Bytes to the terminal and to the log. A full disk or a closed terminal silences that one and stops nothing."""

    def __init__(self, *streams: IO[bytes]) -> None:
        self._streams = list(streams)

    def write(self, data: bytes) -> None:
        """To every stream that still takes it."""
        for stream in list(self._streams):
            try:
                stream.write(data)
                stream.flush()
            except (OSError, ValueError):
                self._streams.remove(stream)

    def line(self, text: str) -> None:
        """One line of text."""
        self.write(f"{text}\n".encode())


class Launcher:
    """Runs commands one after the other, passes stop signals on to the one that runs, and remembers that they came.

    Use as a context manager on the main thread: it takes over SIGINT, SIGTERM and SIGHUP meanwhile.
    """

    def __init__(self, out: Tee, *, grace_s: float = GRACE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self.stopping: signal.Signals | None = None
        self._out = out
        self._grace_s = grace_s
        self._clock = clock
        self._kill_at: float | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)

    def __enter__(self) -> "Launcher":
        self._old_wakeup = signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        # A signal that was ignored from outside stays so: that is how nohup works.
        wanted = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._old_handlers = {number: signal.signal(number, self._on_signal) for number in wanted}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        self._wake_read.close()
        self._wake_write.close()

    def run(self, command: Sequence[str]) -> int:
        """Run to the end, output copied; return the exit code (128 + n for death by signal n, as a shell says it)."""
        if self.stopping:
            return 128 + self.stopping
        with subprocess.Popen(  # noqa: S603  (this interpreter, and the flags of our own user)
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            process_group=0,  # Ctrl-C reaches the launcher alone, which passes it on once
            preexec_fn=_end_with_parent(),
        ) as child:
            self._child = child
            if self.stopping:  # the signal came while the process was being made
                child.terminate()
            try:
                self._copy_until_end(child)
            finally:
                self._child = None
                _end_group(child.pid)  # whatever the server left behind, its ffmpeg for one
        code = child.returncode
        return code if code >= 0 else 128 - code

    def wait(self, seconds: float) -> bool:
        """Sleep; True when the time has passed, False as soon as a stop signal comes."""
        until = self._clock() + seconds
        while not self.stopping and (left := until - self._clock()) > 0:
            self._select([], left)
        return not self.stopping

    def _copy_until_end(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None  # noqa: S101  (for the type checker)
        pipe = child.stdout.fileno()
        os.set_blocking(pipe, False)
        is_open = True
        while child.poll() is None or is_open:
            ready = self._select([pipe] if is_open else [], 0.2)
            data = _read(pipe) if pipe in ready else None
            if data:
                self._out.write(data)
            elif data == b"":
                is_open = False
            elif child.poll() is not None:
                return  # ended, and nothing more to read even if a grandchild holds the pipe open
            if self._kill_at is not None and self._clock() > self._kill_at:
                self._out.line(f"[ERROR] the server did not end within {self._grace_s:.0f} s; it is killed")
                self._kill_at = None
                child.kill()

    def _select(self, pipes: list[int], seconds: float) -> list[int]:
        wake = self._wake_read.fileno()
        ready, _, _ = select.select([*pipes, wake], [], [], max(0.0, seconds))
        if wake in ready:
            with contextlib.suppress(BlockingIOError):
                self._wake_read.recv(64)
        return [pipe for pipe in pipes if pipe in ready]

    def _on_signal(self, number: int, _frame: object) -> None:
        self.stopping = self.stopping or signal.Signals(number)
        if self._kill_at is None:
            self._kill_at = self._clock() + self._grace_s
        if self._child is not None and self._child.poll() is None:
            # A closed terminal (SIGHUP) is a plain request to end; the server knows that one as SIGTERM.
            self._child.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)


def supervise(
    run: Callable[[], int],
    say: Callable[[str], None],
    wait: Callable[[float], bool],
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Call `run` again while it returns 86 or a code of `CRASHES`, after 1, 2, 4 .. 60 seconds.

    Any other code ends it, and so do a false `wait` and `MOST_CRASHES` crashes within `CRASHES_WITHIN_S`.
    """
    delay, crashes = FIRST_DELAY_S, deque[float](maxlen=MOST_CRASHES)
    while True:
        started = clock()
        code = run()
        if (code != EXIT_RESTART and code not in CRASHES) or not wait(0.0):
            return code
        now, why = clock(), f"the server asked to be started again (exit code {EXIT_RESTART})"
        if code in CRASHES:
            crashes.append(now)
            why = f"the server was ended by {CRASHES[code]}{_hint(code)}"
            if len(crashes) == MOST_CRASHES and now - crashes[0] < CRASHES_WITHIN_S:
                say(f"[ERROR] {why}, for the {MOST_CRASHES}th time in {CRASHES_WITHIN_S / 60:.0f} minutes; given up")
                return code
        if now - started >= HEALTHY_S:
            delay = FIRST_DELAY_S
        say(f"[WARNING] {why}; next start in {delay:.0f} s")
        if not wait(delay):
            return code
        delay = min(2 * delay, LONGEST_DELAY_S)


def _hint(code: int) -> str:
    return " (main memory may have run out)" if code == 128 + signal.SIGKILL else ""


def open_log(folder: Path, now: datetime) -> IO[bytes]:
    """A new file `app_YYYYMMDD_HHMMSS.log`; a second start within the second gets a number. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        suffix = f"_{number}" if number > 1 else ""
        try:
            return (folder / f"app_{now:%Y%m%d_%H%M%S}{suffix}.log").open("xb")
        except FileExistsError:
            number += 1


def free_port(host: str) -> int:
    """A port that is free now. Chosen here and not by the server, so that a restart keeps the address."""
    family, kind, proto, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, proto) as probe:
        probe.bind(address)
        return int(probe.getsockname()[1])


def main(arguments: Sequence[str], folder: Path) -> int:
    """Start `folder/server.py` with the flags `arguments`; return the exit code for the shell."""
    try:
        settings = settings_from(arguments)
    except SettingsError as error:
        print(f"[ERROR] settings: {error}", file=sys.stderr)
        return 2
    if settings is None:  # --help
        return 0
    flags = list(arguments)
    try:
        if settings.port == 0:
            flags += ["--port", str(free_port(settings.host))]
        log = open_log(folder / "logs", datetime.now().astimezone())
    except OSError as error:
        print(f"[ERROR] the start failed: {error}", file=sys.stderr)
        return 2
    with log, Launcher(out := Tee(sys.stdout.buffer, log)) as launcher:
        out.line(f"[SUCCESS] log: {log.name}")
        code = launcher.run([sys.executable, "-m", "i2v.cli.preflight", *flags])
        if code == 0 and not launcher.stopping:
            server = [sys.executable, str(folder / "server.py"), *flags]
            code = supervise(lambda: launcher.run(server), out.line, launcher.wait)
            out.line(f"[INFO] the server has ended with code {code}")
        return 0 if launcher.stopping and code == EXIT_RESTART else code


def _read(pipe: int) -> bytes | None:
    try:
        return os.read(pipe, 65536)
    except BlockingIOError:
        return None


def _end_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _end_with_parent() -> Callable[[], None] | None:
    """On Linux, the call that has the kernel end the server when its launcher is killed; None elsewhere."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def ask_the_kernel() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    return ask_the_kernel


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path.cwd()))
