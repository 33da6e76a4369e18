"""Whether a server takes jobs now, and in which words it says that it does not. Thread-safe; knows no jobs."""

import threading
from typing import Literal

from i2v.errors import NotReady
from i2v.notes import Note

State = Literal["loading", "ready", "failed", "stopping", "dead"]


class Phase:
    """Begins as loading. `loading`: what is being done then, and how far it is (0..1, None when unknown)."""

    def __init__(self) -> None:
        self.loading: tuple[Note, float | None] = (Note("starting"), None)
        self._lock = threading.Lock()
        self._state: State = "loading"
        self._failure = ""

    @property
    def state(self) -> State:
        return self._state

    @property
    def failure(self) -> str:
        """Why the state is `failed` or `dead`; empty otherwise."""
        return self._failure

    def ready(self) -> None:
        with self._lock:
            if self._state in ("loading", "failed"):
                self._state = "ready"

    def fail(self, message: str) -> None:
        """There will be no engine."""
        self._failure = message
        with self._lock:
            if self._state == "loading":
                self._state = "failed"

    def stop(self) -> None:
        """One that died stays dead."""
        with self._lock:
            self._state = "dead" if self._state == "dead" else "stopping"

    def die(self, message: str) -> bool:
        """The engine is lost. False when that was known."""
        with self._lock:
            if self._state == "dead":
                return False
            self._state = "dead"
        self._failure = message
        return True

    def refusal(self) -> NotReady:
        """Why no job is taken now, in words."""
        if self._state == "failed":
            return NotReady(self._failure, retry_after=60)
        if self._state in ("stopping", "dead"):
            return NotReady(Note("shutting_down"), retry_after=10)
        return NotReady(not_loaded(*self.loading), retry_after=10)


def not_loaded(what: Note, fraction: float | None) -> Note:
    """That the model is still loading: what is done now, and how far it is (0..1, None when unknown)."""
    if fraction is None:
        return Note("not_loaded", {"what": what})
    return Note("not_loaded_part", {"what": what, "done": f"{fraction:.0%}"})
