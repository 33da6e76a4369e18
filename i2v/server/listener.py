"""The listening socket: it never runs into the limit of open files for long, and never turns in a circle there.

asyncio takes up to 2048 connections in a turn of its loop, each a descriptor, before the protocol can refuse one. When
none is left it goes on trying in the same turn, with a traceback each time, and doubles its timers: a processor and
6 MB/s of log until the process is killed. Here a turn takes a few, and a connection for which there is no descriptor is
taken with one that is kept for that, and closed.
"""

import errno
import logging
import os
import resource
import socket
import time
from contextlib import suppress
from typing import Any

log = logging.getLogger("i2v.server")

SPARE_FILES = 500  # videos, database, libraries, connections of probes; of a limit under 1000, half of it
A_TURN = 32  # connections accepted before the loop deals with them
LOG_EVERY_S = 60.0
PAUSE_S = 0.01  # when even the kept descriptor is lost to another thread
_NONE_LEFT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listener(socket.socket):
    """A listening socket for asyncio, which calls `accept` until that would block."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._kept = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._taken = 0
        self._turned_away = 0
        self._logged: float | None = None

    def accept(self) -> tuple[socket.socket, Any]:
        """Raises `BlockingIOError` when nobody waits, and after `A_TURN` connections: the loop calls again."""
        if self._taken >= A_TURN:
            self._taken = 0
            raise BlockingIOError
        try:
            accepted = super().accept()
        except OSError as error:
            self._taken = 0
            if error.errno not in _NONE_LEFT:
                raise
            self._turn_away(error)
            raise BlockingIOError from None
        self._taken += 1
        return accepted

    def close(self) -> None:
        if self._kept >= 0:
            os.close(self._kept)
            self._kept = -1
        super().close()

    def _turn_away(self, reason: OSError) -> None:
        """Take one connection with the kept descriptor and close it, so that it does not wait for nothing."""
        if self._kept >= 0:
            os.close(self._kept)
            self._kept = -1
        with suppress(OSError):
            super().accept()[0].close()
            self._turned_away += 1
        try:
            self._kept = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            time.sleep(PAUSE_S)
        now = time.monotonic()
        if self._logged is None or now - self._logged >= LOG_EVERY_S:
            self._logged = now
            log.warning("%s: %d connections were closed unanswered so far", reason.strerror, self._turned_away)


def places_within_limit(wanted: int) -> int:
    """So many connections, `wanted` at most, have a descriptor each beside what else the process opens. Raises the soft
    limit of open files, usually 1024, as far as the hard one lets it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    needed = wanted + SPARE_FILES
    if soft < needed:
        with suppress(ValueError, OSError):
            raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    places = max(1, min(wanted, soft - min(SPARE_FILES, soft // 2)))
    if places < wanted:
        log.warning("the limit of %d open files leaves %d connections, not %d (max_connections)", soft, places, wanted)
    return places
