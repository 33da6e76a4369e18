"""What a start does before the first job: puts right what an earlier process left, and learns the pace of before."""

import logging
from datetime import datetime
from pathlib import Path

from i2v.jobs import retention
from i2v.jobs.pace import RECENT, Pace
from i2v.jobs.store import JobStore
from i2v.settings import Settings

log = logging.getLogger(__name__)


def recover(store: JobStore, folder: Path, settings: Settings, pace: Pace, now: datetime) -> None:
    """With the folder locked and nothing running. Raises OSError and `I2VError`."""
    found = store.recover(settings.queue.attempts, lambda name: retention.size_of(folder, name))
    for id, status in found.items():
        log.warning("it was running when the server stopped; now %s", status, extra={"job": id})
    retention.sweep(store, folder)
    retention.enforce(store, folder, settings.retention, now)
    store.forget_failures(retention.FAILURES_KEPT)
    for job in store.recent_results(RECENT):
        if job.result is not None:
            pace.record(job.request, job.result.seconds)
