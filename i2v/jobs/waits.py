"""Waiting for a job: as a coroutine, as a stream of snapshots, or on a thread. Woken by signals, never by a timer."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable

from i2v.jobs.events import Hub
from i2v.jobs.job import Job


class Waits:
    """`read(id)` gives the job now; it raises NotFound for one that is gone, NotReady when waiting is in vain."""

    def __init__(self, hub: Hub, read: Callable[[str], Job]) -> None:
        self._hub = hub
        self._read = read

    async def wait(self, id: str) -> Job:
        with self._hub.signal(id, steps=False) as changed:
            while True:
                changed.clear()  # before the look, so that a change after it is not lost
                job = await asyncio.to_thread(self._read, id)
                if job.is_final:
                    return job
                await changed.wait()

    async def events(self, id: str) -> AsyncIterator[Job]:
        with self._hub.signal(id, steps=True) as changed:
            last = None
            while True:
                changed.clear()
                job = await asyncio.to_thread(self._read, id)
                if job != last:
                    yield job
                if job.is_final:
                    return
                last = job
                await changed.wait()

    def wait_sync(self, id: str, timeout: float | None = None) -> Job:
        deadline = None if timeout is None else time.monotonic() + timeout
        changed = threading.Event()
        with self._hub.watch(id, changed.set, steps=False):
            while True:
                changed.clear()
                job = self._read(id)
                if job.is_final:
                    return job
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not changed.wait(left):
                    raise TimeoutError(f"job {id} is still {job.status} after {timeout} s")
