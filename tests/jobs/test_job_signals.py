"""Watchers of jobs: who is told, and that one who is forgotten stops nobody."""

import asyncio
import gc
import threading
from contextlib import ExitStack

from i2v.jobs.signals import Watchers

DEADLINE_S = 60


def test_a_watcher_is_told_of_its_own_job_until_it_leaves() -> None:
    watchers, told = Watchers(), []
    with watchers.watch("a", lambda: told.append("a"), steps=False):
        with watchers.watch("b", lambda: told.append("b"), steps=True):
            watchers.changed("a")
            watchers.step("a")  # nobody follows its steps
            watchers.step("b")
            assert len(watchers) == 2
        watchers.changed("b")
        watchers.everyone(steps_only=True)
        watchers.everyone()
    watchers.everyone()
    assert told == ["a", "b", "a"]
    assert len(watchers) == 0


class Cycle:
    """Holds itself, so that only the garbage collector lets it go."""

    def __init__(self, watching: object) -> None:
        self.itself, self.watching = self, watching


def test_a_watcher_that_the_garbage_collector_ends_while_others_are_listed_stops_nobody() -> None:
    """It waited for a lock that its own thread held: the worker stopped, then the event loop, so all callers waited."""
    watchers, done = Watchers(), threading.Event()
    forgotten = ExitStack()
    forgotten.enter_context(watchers.watch("a", lambda: None, steps=True))
    Cycle(forgotten)
    del forgotten

    def collected() -> None:
        with watchers._lock:
            gc.collect()
        done.set()

    threading.Thread(target=collected, daemon=True).start()
    assert done.wait(DEADLINE_S)
    assert len(watchers) == 0


async def test_a_cancelled_coroutine_watches_no_longer() -> None:
    watchers = Watchers()

    async def follow() -> None:
        with watchers.signal("a", steps=True) as changed:
            await changed.wait()

    following = asyncio.ensure_future(follow())
    await asyncio.sleep(0)
    assert len(watchers) == 1
    following.cancel()
    await asyncio.wait({following})
    assert len(watchers) == 0
