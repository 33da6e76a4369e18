"""Who waits for which job: callbacks by job id, called from the worker's thread the moment something changed.

A signal carries no data: a watcher reads the job itself afterwards, so one that comes twice or early does no harm.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress

from i2v.errors import NotReady, Unavailable
from i2v.jobs.job import Job

LOOK_AGAIN_S = 1.0  # after a look at a job table that did not answer

Wake = Callable[[], None]  # quick, thread-safe


class Watchers:
    """Watchers of jobs. All methods may be called from any thread.

    Leaving takes no lock: the garbage collector may end a forgotten watcher in a thread that holds it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watchers: dict[str, dict[object, tuple[Wake, bool]]] = {}
        self._left: deque[tuple[str, object]] = deque()  # by id and ticket: those who left since the last look

    @contextmanager
    def watch(self, id: str, wake: Wake, *, steps: bool) -> Iterator[None]:
        """Call `wake` when the job changes state, with `steps` also after each step, until the block is left."""
        ticket = object()
        with self._present() as present:
            present.setdefault(id, {})[ticket] = (wake, steps)
        try:
            yield
        finally:
            self._left.append((id, ticket))

    @contextmanager
    def signal(self, id: str, *, steps: bool) -> Iterator[asyncio.Event]:
        """`watch` for a coroutine: the event is set in its own loop."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop was closed under the watcher: nobody is left to tell
                loop.call_soon_threadsafe(changed.set)

        with self.watch(id, wake, steps=steps):
            yield changed

    def step(self, id: str) -> None:
        """The job has moved on within its state."""
        for wake, steps in self._of(id):
            if steps:
                wake()

    def changed(self, id: str) -> None:
        """The job is in another state, or gone."""
        for wake, _steps in self._of(id):
            wake()

    def everyone(self, *, steps_only: bool = False) -> None:
        """Something that concerns every watcher: the queue goes down; or only those who follow steps: it has moved."""
        with self._present() as present:
            found = [watcher for watchers in present.values() for watcher in watchers.values()]
        for wake, steps in found:
            if steps or not steps_only:
                wake()

    def __len__(self) -> int:
        """How many are watching; 0 when nobody waits."""
        with self._present() as present:
            return sum(map(len, present.values()))

    def _of(self, id: str) -> list[tuple[Wake, bool]]:
        with self._present() as present:
            return list(present.get(id, {}).values())

    @contextmanager
    def _present(self) -> Iterator[dict[str, dict[object, tuple[Wake, bool]]]]:
        """Those who watch, without those who left, by job and ticket; nobody else changes them in the block."""
        with self._lock:
            while self._left:
                id, ticket = self._left.popleft()
                watchers = self._watchers[id]
                del watchers[ticket]
                if not watchers:
                    del self._watchers[id]
            yield self._watchers


class Waiting:
    """`read(id)` gives the job now; it raises NotFound for one that is gone, NotReady when it will not end here.

    Coroutines that wait outlast a job table that does not answer for a while.
    """

    def __init__(self, watchers: Watchers, read: Callable[[str], Job]) -> None:
        self._watchers = watchers
        self._read = read

    async def wait(self, id: str) -> Job:
        """The job once it is final. Raises as `read`."""
        with self._watchers.signal(id, steps=False) as changed:
            while True:
                changed.clear()  # before the look, so that a change after it is not lost
                job = await self._look(id)
                if job.is_final:
                    return job
                await changed.wait()

    async def events(self, id: str) -> AsyncGenerator[Job]:
        """The job now and at each change, the final one last. Raises as `read`."""
        with self._watchers.signal(id, steps=True) as changed:
            last = None
            while True:
                changed.clear()
                job = await self._look(id)
                if job != last:
                    yield job
                if job.is_final:
                    return
                last = job
                await changed.wait()

    async def _look(self, id: str) -> Job:
        while True:
            try:
                return await asyncio.to_thread(self._read, id)
            except NotReady:
                raise
            except Unavailable:
                await asyncio.sleep(LOOK_AGAIN_S)

    def wait_sync(self, id: str, timeout: float | None = None) -> Job:
        """As `wait`, for a thread. Raises TimeoutError after `timeout` seconds (None: no limit)."""
        deadline = None if timeout is None else time.monotonic() + timeout
        changed = threading.Event()
        with self._watchers.watch(id, changed.set, steps=False):
            while True:
                changed.clear()
                job = self._read(id)
                if job.is_final:
                    return job
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not changed.wait(left):
                    raise TimeoutError(f"job {id} is still {job.status} after {timeout} s")
