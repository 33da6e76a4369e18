"""Work on a device: which card is the current one, waiting for what is queued, and how far the host may run ahead.

CUDA calls return when their work is queued. What a person sees of a job must follow the work itself, so the denoising
loop reports through a `Pacer`. Called by `engine.py`, `inference.py`, `sampler.py` and `faster_steps.py`.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, Self

import torch


class Mark(Protocol):
    """A point in a device's queue: `query` says whether all work before it is done, `synchronize` waits for that."""

    def query(self) -> bool: ...

    def synchronize(self) -> object: ...


@dataclass(slots=True)
class Pacer:
    """Holds the host back so that step i + 2 is not queued before step i is done, and reports each step then.

    With a recorded step the host would queue a whole job within milliseconds: progress would jump to its end, a cancel
    would find nothing left to stop, and the watchdog would see one long step. One step ahead is enough to keep the
    device busy. `mark` puts a mark behind the work queued so far; without one (a CPU) work is done when its call
    returns.
    """

    mark: Callable[[], Mark] | None = None
    queued: deque[tuple[Mark, Callable[[], object]]] = field(default_factory=deque)

    @classmethod
    def on(cls, device: torch.device) -> Self:
        return cls((lambda: cuda_mark(device)) if device.type == "cuda" else None)

    def step(self, report: Callable[[], object]) -> None:
        """A step is queued: wait for the one before it, and report what is done. Raises whatever a report raises."""
        if self.mark is None:
            report()
            return
        self.queued.append((self.mark(), report))
        while len(self.queued) > 1 or (self.queued and self.queued[0][0].query()):
            self._report_oldest()

    def finish(self) -> None:
        """Wait for the last step and report it."""
        while self.queued:
            self._report_oldest()

    def _report_oldest(self) -> None:
        mark, report = self.queued.popleft()
        mark.synchronize()
        report()


def cuda_mark(device: torch.device) -> Mark:
    """A mark in the current stream. The host sleeps while it waits: it has a server to run."""
    event = torch.cuda.Event(blocking=True)
    event.record(torch.cuda.current_stream(device))
    return event


def make_current(device: torch.device) -> None:
    """Make a card this thread's current one: Triton launches there, and asks there whether a capture is under way."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def wait(device: torch.device) -> None:
    """Return when all work that was queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
