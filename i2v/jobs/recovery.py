"""What a start does before the first job: open the table, decide about jobs that were running, learn their times."""

import logging
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from i2v.errors import I2VError, Unavailable
from i2v.jobs import outputs
from i2v.jobs.clock import Now
from i2v.jobs.eta import RECENT, Pace
from i2v.jobs.schema import DataError, TableLocked, sqlite_url
from i2v.jobs.store import JobStore
from i2v.settings import Settings

log = logging.getLogger(__name__)

LOCKED_S = 30.0  # how long a start waits for a table that another process holds
LOCKED_POLL_S = 0.5
DATABASE_NAME = "jobs.sqlite3"


@dataclass(frozen=True, slots=True)
class StartCount:
    """How often a server was started on this data, and how often after one that had not been stopped but died."""

    number: int = 0
    after_death: int = 0


@dataclass(frozen=True, slots=True)
class OpenedData:
    """The data that a start opened, once it was put right."""

    store: JobStore
    marker: outputs.FolderMarker
    starts: StartCount


def open_data(settings: Settings, folder: Path, pace: Pace, clock: Now) -> OpenedData:
    """Open the job table of a locked outputs folder and put right what an earlier process left.

    A table that another process holds is tried again for `LOCKED_S`. Raises `schema.DataError` with a sentence for the
    operator; nothing is open then.
    """
    deadline, told = time.monotonic() + LOCKED_S, ""
    while True:
        try:
            return _open_data(settings, folder, pace, clock)
        except TableLocked as error:
            if time.monotonic() >= deadline:
                raise TableLocked(f"{error}. End that one, or wait for it, and start again") from error
            if told != str(error):
                told = str(error)
                log.warning("%s; tried again for up to %.0f s", told, LOCKED_S)
        time.sleep(LOCKED_POLL_S)


def _open_data(settings: Settings, folder: Path, pace: Pace, clock: Now) -> OpenedData:
    own_table = None if settings.database else folder / DATABASE_NAME
    try:
        store = JobStore(settings.database or sqlite_url(folder / DATABASE_NAME), uuid.uuid4().hex, clock)
        try:
            marker = outputs.marker_of(folder, own_table, store)
            recover(store, folder, settings, pace)
            return OpenedData(store, marker, count_start(store))
        except BaseException:
            store.close()
            raise
    except Unavailable as error:
        raise TableLocked(error.message) from error
    except I2VError as error:
        raise DataError(error.message) from error
    except OSError as error:
        raise DataError(f"the outputs folder {folder} cannot be used: {error.strerror or error}") from error


def count_start(store: JobStore) -> StartCount:
    """Count this start, as the last thing that can fail: a start that is refused is no death to the next one.

    Raises `I2VError`; nothing has changed then.
    """
    died = bool(store.note("running"))
    starts = StartCount(_number(store.note("starts")) + 1, _number(store.note("starts_after_death")) + died)
    counted = {"starts": str(starts.number), "starts_after_death": str(starts.after_death)}
    store.set_notes({**counted, "running": store.boot})
    return starts


def _number(text: str | None) -> int:
    """A count begins anew where the table holds something else."""
    return int(text) if isinstance(text, str) and text.isdecimal() else 0


def note_good_end(store: JobStore) -> None:
    """The server is stopped, so the next start follows no death."""
    store.set_notes({"running": ""})


def recover(store: JobStore, folder: Path, settings: Settings, pace: Pace) -> None:
    """With the folder locked and nothing running. Raises OSError and `I2VError`."""
    found = store.recover(settings.queue.attempts, lambda name: outputs.size_of(folder, name))
    for id, status in found.items():
        log.warning("it was running when the server stopped; now %s", status, extra={"job": id})
    outputs.sweep(store, folder)
    outputs.keep_room(folder)
    outputs.enforce(store, folder, settings.retention)  # not by age: the clock has not shown yet that it is right
    store.forget_failures(outputs.FAILURES_KEPT)
    for job in store.recent_results(RECENT):
        if job.result is not None:
            pace.record(job.request, job.result.seconds, job.result.stage_seconds)
