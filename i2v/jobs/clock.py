"""The wall clock, and whether it can be trusted with removing what is old: a machine may start with a wrong one."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

STEADY_S: Final = 3600.0  # a time server has put a wrong clock right long before
JUMP_S: Final = 60.0  # more than a clock that is being adjusted goes wrong in hours

Now = Callable[[], datetime]  # aware UTC


class WatchedClock:
    """`now` gives aware UTC, `seconds` counts evenly whatever is done to the clock; None asks the machine.

    With a `now` of a test alone, nothing can tell a jump: it counts as even.
    """

    def __init__(self, now: Now | None = None, seconds: Callable[[], float] | None = None) -> None:
        self._now = now or (lambda: datetime.now(UTC))
        self._seconds = seconds or (time.monotonic if now is None else lambda: self._now().timestamp())
        self._since = self._seconds()
        self._offset = self._now().timestamp() - self._since

    def __call__(self) -> datetime:
        return self._now()

    def is_steady(self) -> bool:
        """Whether it has gone evenly for `STEADY_S`, counted from the start and from each jump."""
        seconds = self._seconds()
        offset = self._now().timestamp() - seconds
        if abs(offset - self._offset) > JUMP_S:
            self._offset, self._since = offset, seconds
        return seconds - self._since >= STEADY_S
