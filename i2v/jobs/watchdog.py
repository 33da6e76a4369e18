"""Notices a step that never ends: a thread stuck in a kernel cannot be killed, only reported."""

import threading
import time
from collections.abc import Callable


class Watchdog:
    """Calls `on_hang` once, on its own thread, when it was armed and not fed for `timeout_s` seconds."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._on_hang: Callable[[], None] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="i2v-watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def arm(self, on_hang: Callable[[], None]) -> None:
        with self._changed:
            self._on_hang = on_hang
            self._deadline = time.monotonic() + self._timeout_s
            self._changed.notify()

    def feed(self) -> None:
        """A step ended. Only moves the deadline; the thread looks again when the old one has passed."""
        with self._changed:
            if self._deadline is not None:
                self._deadline = time.monotonic() + self._timeout_s

    def disarm(self) -> None:
        with self._changed:
            self._deadline = self._on_hang = None

    def stop(self) -> None:
        with self._changed:
            self._closed = True
            self._deadline = self._on_hang = None
            self._changed.notify()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while (on_hang := self._next_hang()) is not None:
            on_hang()

    def _next_hang(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._closed:
                left = None if self._deadline is None else self._deadline - time.monotonic()
                if left is not None and left <= 0:
                    found, self._on_hang, self._deadline = self._on_hang, None, None
                    return found
                self._changed.wait(left)
            return None
