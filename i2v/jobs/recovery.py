"""What a start does before the first job: puts right what an earlier process left, and learns the pace of before."""

import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from i2v.jobs import outputs
from i2v.jobs.eta import RECENT, Pace
from i2v.jobs.store import JobStore
from i2v.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Starts:
    """How often a server was started on this data, and how often after one that had not ended in good order."""

    number: int = 0
    after_death: int = 0


def count_start(store: JobStore) -> Starts:
    """Count this start in, as the last thing that can fail: one that is refused is no death to the next.

    Raises `I2VError`; nothing has changed then.
    """
    died = bool(store.note("running"))
    starts = Starts(int(store.note("starts") or 0) + 1, int(store.note("starts_after_death") or 0) + died)
    counted = {"starts": str(starts.number), "starts_after_death": str(starts.after_death)}
    store.set_notes({**counted, "running": store.boot})
    return starts


def note_good_end(store: JobStore) -> None:
    """The server ends as it should: the next start follows no death."""
    store.set_notes({"running": ""})


def recover(store: JobStore, folder: Path, settings: Settings, pace: Pace, now: datetime) -> None:
    """With the folder locked and nothing running. Raises OSError and `I2VError`."""
    found = store.recover(settings.queue.attempts, lambda name: outputs.size_of(folder, name))
    for id, status in found.items():
        log.warning("it was running when the server stopped; now %s", status, extra={"job": id})
    outputs.sweep(store, folder)
    outputs.enforce(store, folder, settings.retention, now)
    store.forget_failures(outputs.FAILURES_KEPT)
    for job in store.recent_results(RECENT):
        if job.result is not None:
            pace.record(job.request, job.result.seconds, job.result.stage_seconds)
