"""The table of jobs: each state change is one guarded UPDATE; terminal rows never change.

    queued -> in_progress -> completed | failed | cancelled | interrupted
       |           '-> queued    (the process died or stopped; the attempt counts only if it died)
       '-> cancelled

Every change of a running job is fenced by boot id and attempt, so that nothing which an earlier process or an earlier
attempt still does can touch it. A change whose answer was lost with the connection may be made again: what is found
done already, by the same boot and attempt, counts as done now. The order is that of arrival, by a number and never by
time. Knows no engine, no files, no HTTP.
"""

import json
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Text,
    and_,
    cast,
    delete,
    func,
    insert,
    literal,
    select,
    update,
)

from i2v.errors import Conflict, NotFound, QueueFull, StorageFull, TooManyJobs, Unavailable
from i2v.jobs.clock import Now
from i2v.jobs.database import Database
from i2v.jobs.job import FINAL, Claim, InvalidTransition, Job, JobResult, NewJob, PendingWebhook, Status
from i2v.jobs.rows import ID, SET_ASIDE, STATUSES, Unreadable, checked, job_of, when
from i2v.jobs.schema import inputs, jobs, meta, overwriting, webhooks
from i2v.request import GenerateRequest

log = logging.getLogger(__name__)

T = TypeVar("T")

CACHED = 1000


@dataclass(frozen=True, slots=True)
class VideoRow:
    """A finished video as retention sees it."""

    id: str
    file: str
    bytes: int


class JobStore:
    """One open database. Thread-safe: reads run side by side, writes one after the other.

    `boot` names this process's run; rows that another boot left in progress are what `recover` deals with.
    """

    def __init__(self, url: str, boot: str, clock: Now) -> None:
        self.boot = boot
        self._clock = clock
        self._cache: dict[str, Job] = {}  # rows as read since the last write: pollers ask for the same few
        self._requests: dict[str, GenerateRequest] = {}  # of the newest jobs; a job's request never changes
        self._cache_lock = threading.Lock()
        self._version = 0
        self._unanswered: Claim | None = None  # the claim that is being committed
        self._database = Database(url, self._forget_cache)

    def close(self) -> None:
        self._database.close()

    # -- arrival ------------------------------------------------------------------------------------------------

    def insert(self, new: NewJob, *, capacity: int, per_caller: int = 0) -> tuple[Job, bool]:
        """Queue a job and return it with False, or the one its idempotency key already names with True.

        Raises `Conflict` (key used with another body), `QueueFull`, `TooManyJobs`.
        """
        return self._without_unreadable(lambda: self._insert(new, capacity, per_caller))

    def _insert(self, new: NewJob, capacity: int, per_caller: int) -> tuple[Job, bool]:
        with self._database.writing() as connection:
            if (found := self._find_key(connection, new)) is not None:
                return found, True
            waiting = _count(connection, jobs.c.status == "queued")
            if waiting >= capacity:
                raise QueueFull(f"the queue is full: {waiting} jobs are waiting, {capacity} may")
            if per_caller and new.caller is not None:
                own = _count(connection, jobs.c.status == "queued", jobs.c.caller == new.caller)
                if own >= per_caller:
                    raise TooManyJobs(f"{own} of your jobs are waiting already; {per_caller} may")
            created_at = self._now()
            row = {
                "id": new.id,
                "status": "queued",
                "door": new.door,
                "caller": new.caller,
                "request": new.request.model_dump_json(),
                "prompt": new.request.prompt,
                "created_at": created_at,
                "attempt": 0,
                "step": 0,
                "idempotency_key": new.idempotency_key,
                "fingerprint": new.fingerprint,
                "extends": new.extends,
            }
            connection.execute(insert(jobs).values(**row))
            connection.execute(insert(inputs).values(job_id=new.id, png=new.png))
            if new.webhook is not None:
                connection.execute(insert(webhooks).values(job_id=new.id, url=new.webhook))
        self._keep_request(new.id, new.request)
        return Job(new.id, "queued", new.request, new.door, when(created_at), extends=new.extends), False

    # -- reading ------------------------------------------------------------------------------------------------

    def knows_key(self, idempotency_key: str) -> bool:
        """Whether a job that is still there came with this key."""
        with self._database.reading() as connection:
            return bool(_count(connection, jobs.c.idempotency_key == idempotency_key))

    def get(self, id: str) -> Job:
        """The job. Raises `NotFound`."""
        with self._cache_lock:
            version, known = self._version, self._cache.get(id)
        if known is not None:
            return known
        try:
            with self._database.reading() as connection:
                job = self._read(connection, id)
        except Unreadable as error:
            self.set_aside(error)
            raise
        with self._cache_lock:
            if version == self._version and len(self._cache) < CACHED:
                self._cache[id] = job
        return job

    def png(self, id: str) -> bytes:
        """The photo the job was given, as stored. Raises `NotFound`."""
        _check_id(id)
        with self._database.reading() as connection:
            found = connection.scalar(select(inputs.c.png).where(inputs.c.job_id == id))
        if found is None:
            raise _unknown(id)
        return bytes(found) if isinstance(found, bytes | memoryview) else b""  # SQLite keeps a text in any column

    def list(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        order: Literal["asc", "desc"] = "desc",
        status: Status | None = None,
        search: str | None = None,
    ) -> Sequence[Job]:
        """A page in the order of arrival. `search` is part of a prompt; `failed` means `interrupted` jobs, too.

        Raises `NotFound` for an unknown `after`.
        """
        query = select(jobs).order_by(jobs.c.seq.desc() if order == "desc" else jobs.c.seq).limit(limit)
        query = query.where(jobs.c.status != SET_ASIDE)
        if status is not None:
            query = query.where(jobs.c.status.in_(("failed", "interrupted") if status == "failed" else (status,)))
        if search:
            search = search.replace("\0", "").encode("utf-8", "ignore").decode()  # what no stored prompt holds
            query = query.where(jobs.c.prompt.icontains(search, autoescape=True))
        with self._database.reading() as connection:
            if after is not None:
                _check_id(after)
                seq = connection.scalar(select(jobs.c.seq).where(jobs.c.id == after))
                if seq is None:
                    raise _unknown(after)
                query = query.where(jobs.c.seq < seq if order == "desc" else jobs.c.seq > seq)
            rows = connection.execute(query).mappings().all()
        return self._jobs(rows)

    def waiting(self) -> Sequence[Job]:
        """The queued jobs, next one first."""
        query = select(jobs).where(jobs.c.status == "queued").order_by(jobs.c.seq)
        with self._database.reading() as connection:
            rows = connection.execute(query).mappings().all()
        return self._jobs(rows)

    def next_is_retry(self) -> bool:
        """Whether the job that `claim` would start now was in flight when the process died before."""
        query = select(jobs.c.attempt).where(jobs.c.status == "queued").order_by(jobs.c.seq).limit(1)
        with self._database.reading() as connection:
            return bool(connection.scalar(query))

    def counts(self) -> dict[Status, int]:
        """Jobs by state; states without jobs are left out."""
        query = select(jobs.c.status, func.count().label("number")).group_by(jobs.c.status)
        query = query.where(jobs.c.status.in_(STATUSES))
        with self._database.reading() as connection:
            return {row.status: row.number for row in connection.execute(query)}

    # -- a running job ------------------------------------------------------------------------------------------

    def claim(self, slot: int = 0, before_commit: Callable[[], None] | None = None) -> tuple[Job, Claim] | None:
        """Start the next job in engine `slot`; None when nothing waits.

        Raises `InvalidTransition` when the slot still holds a job, `DataError` when another server took the database.
        """
        self._database.keep_lock()
        return self._without_unreadable(lambda: self._claim(slot, before_commit))

    def _claim(self, slot: int, before_commit: Callable[[], None] | None) -> tuple[Job, Claim] | None:
        with self._database.writing() as connection:
            claim = self._committed(connection, slot) or self._start_next(connection, slot)
            if claim is None:
                return None
            job = self._read(connection, claim.id)
            self._unanswered = claim
            if before_commit is not None:
                before_commit()
        self._unanswered = None
        return job, claim

    def _committed(self, connection: Connection, slot: int) -> Claim | None:
        """The claim that was committed without an answer, when the slot holds it; None when the slot is free."""
        if not _count(connection, jobs.c.slot == slot):
            return None
        claim = self._unanswered
        if claim is None or not _count(connection, jobs.c.slot == slot, jobs.c.id == claim.id, _ours(claim)):
            raise InvalidTransition(f"engine {slot} still holds a job")
        return claim

    def _start_next(self, connection: Connection, slot: int) -> Claim | None:
        query = select(jobs).where(jobs.c.status == "queued").order_by(jobs.c.seq)
        row = connection.execute(query.limit(1).with_for_update(skip_locked=True)).mappings().first()
        if row is None:
            return None
        job = self._job(row)
        claim = Claim(job.id, self.boot, job.attempt + 1)
        values = {"status": "in_progress", "boot_id": self.boot, "slot": slot, "attempt": claim.attempt}
        values |= {"started_at": self._now(), "step": 0}
        self._move(connection, job.id, and_(jobs.c.status == "queued", jobs.c.attempt == job.attempt), values)
        return claim

    def begin_write(self, claim: Claim, file: str, result: JobResult) -> None:
        """The engine is free, the file is to be written. Names the file first, so that a file which was complete
        when the process died can be told from one that was not."""
        values = {"slot": None, "file": file, "result": json.dumps(asdict(result))}
        self._change(claim, values)

    def complete(self, claim: Claim, result: JobResult) -> Job:
        """The file is whole. Raises `InvalidTransition` when the claim holds no longer, as the next three do."""
        values = {"file": result.file, "bytes": result.bytes, "result": json.dumps(asdict(result))}
        return self._finish(claim, "completed", values)

    def fail(self, claim: Claim, code: str, message: str, step: int = 0) -> Job:
        """`step`: how far it came."""
        return self._finish(claim, "failed", {"error_code": code, "error_message": message, "step": step, **NO_FILE})

    def cancel_running(self, claim: Claim, step: int = 0) -> Job:
        """`step`: how far it came."""
        values = {"error_code": "cancelled", "error_message": CANCELLED, "step": step, **NO_FILE}
        return self._finish(claim, "cancelled", values)

    def requeue(self, claim: Claim, *, count: bool) -> Job:
        """Back to its place in the queue. `count` False gives the attempt back: the job was not at fault."""
        attempt = claim.attempt if count else claim.attempt - 1
        try:
            return self._change(claim, {**QUEUED, "attempt": attempt})
        except InvalidTransition:
            with self._database.reading() as connection:
                if _count(connection, jobs.c.id == claim.id, jobs.c.status == "queued", jobs.c.attempt == attempt):
                    return self._read(connection, claim.id)
            raise

    # -- a job nobody runs --------------------------------------------------------------------------------------

    def cancel_queued(self, id: str) -> Job:
        """Raises `InvalidTransition` when it is no longer queued, `NotFound`."""
        values = {"status": "cancelled", "completed_at": self._now(), "error_code": "cancelled"}
        with self._database.writing() as connection:
            self._move(connection, id, jobs.c.status == "queued", {**values, "error_message": CANCELLED})
            return self._read(connection, id)

    def delete(
        self,
        id: str,
        *,
        take: Callable[[], None] | None = None,
        put_back: Callable[[], None] | None = None,
        sparing: bool = False,
    ) -> None:
        """Forget a finished job and its photo. Raises `InvalidTransition` when it is not finished, `NotFound`.

        `take()` is called before the change is kept, and may refuse it by raising; `put_back()` when it was not kept.
        `sparing`: the photo's pages are not overwritten first, which would take as much of the disk as the photo.
        """
        _check_id(id)
        with self._database.writing(undo=put_back) as connection, overwriting(connection, not sparing):
            gone = connection.execute(delete(jobs).where(jobs.c.id == id, jobs.c.status.in_(FINAL)))
            if not gone.rowcount:
                raise InvalidTransition(f"job {id} is {self._read(connection, id).status}, not finished")
            if take is not None:
                take()

    def is_gone(self, id: str) -> bool:
        """Whether there is no such job; False too where the table cannot be asked."""
        try:
            with self._database.reading() as connection:
                return not _count(connection, jobs.c.id == id)
        except Unavailable:
            return False

    def mark_lost(self, id: str, is_lost: Callable[[], bool] = lambda: True) -> None:
        """The one change of a finished row: its file has vanished, so `completed` would be untrue.

        `is_lost()` is asked once more when no other change is being made.
        """
        values = {"status": "failed", "error_code": LOST, "error_message": LOST_MESSAGE, **NO_FILE}
        with self._database.writing() as connection:
            if is_lost():
                self._move(connection, id, jobs.c.status == "completed", values)

    def recover(self, attempts: int, size_of: Callable[[str], int | None]) -> dict[str, Status]:
        """Deal with what an earlier boot left in progress; returns what became of each.

        A job whose file was already complete (`size_of(file)` in bytes, None when missing) is completed; one that was
        started `attempts` times is interrupted; any other is queued again in its old place. Clocks play no part.
        """
        self.set_aside_unreadable()
        decided: dict[str, Status] = {}
        with self._database.writing() as connection:
            rows = connection.execute(select(jobs).where(jobs.c.status == "in_progress")).mappings().all()
            for row in rows:
                values = recovered(row, attempts, size_of, self._now())
                self._move(connection, row["id"], and_(jobs.c.status == "in_progress"), values)
                decided[row["id"]] = values["status"]
        return decided

    def continued(self, id: str) -> bool:
        """Whether a job that is not finished needs this one's video."""
        with self._database.reading() as connection:
            return bool(_count(connection, jobs.c.extends == id, jobs.c.status.not_in(FINAL)))

    # -- webhooks -----------------------------------------------------------------------------------------------

    def pending_webhooks(self) -> Sequence[PendingWebhook]:
        """Addresses that have not been told of an end, earliest end first, whether the job is still there or not."""
        query = select(webhooks).where(webhooks.c.status.is_not(None)).order_by(webhooks.c.ended_at)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return [
            PendingWebhook(row.job_id, row.url, row.status, when(row.ended_at))
            for row in rows
            if isinstance(row.url, str) and row.status in FINAL and isinstance(row.ended_at, float | int)
        ]

    def forget_webhook(self, id: str) -> None:
        """The address was told, or will never be."""
        with self._database.writing() as connection:
            connection.execute(delete(webhooks).where(webhooks.c.job_id == id))

    # -- notes --------------------------------------------------------------------------------------------------

    def note(self, key: str) -> str | None:
        """A word that is kept with the table; None before it was set."""
        with self._database.reading() as connection:
            return connection.scalar(select(meta.c.value).where(meta.c.key == key))

    def set_notes(self, notes: dict[str, str]) -> None:
        """All of them or none."""
        with self._database.writing() as connection:
            for key, value in notes.items():
                if not connection.execute(update(meta).where(meta.c.key == key).values(value=value)).rowcount:
                    connection.execute(insert(meta).values(key=key, value=value))

    # -- retention ----------------------------------------------------------------------------------------------

    def videos(self, *, removable: bool = False, before: datetime | None = None) -> Sequence[VideoRow]:
        """Finished videos, oldest arrival first; `removable` leaves out those that an unfinished job continues."""
        query = (
            select(jobs.c.seq, jobs.c.id, jobs.c.file, jobs.c.bytes)
            .where(jobs.c.status == "completed")
            .order_by(jobs.c.seq)
        )
        if removable:
            needed = select(jobs.c.extends).where(jobs.c.status.not_in(FINAL), jobs.c.extends.is_not(None))
            query = query.where(jobs.c.id.not_in(needed))
        if before is not None:
            query = query.where(jobs.c.completed_at < before.timestamp())
        with self._database.reading() as connection:
            rows = connection.execute(query).mappings().all()
        found = []
        for row in rows:
            if isinstance(row["file"], str) and isinstance(row["bytes"] or 0, int):
                found.append(VideoRow(row["id"], row["file"], row["bytes"] or 0))
            else:
                self.set_aside(Unreadable(row, "file or bytes"))
        return found

    def videos_total(self) -> tuple[int, int]:
        """How many finished videos there are, and their bytes."""
        query = select(func.count(), func.coalesce(func.sum(jobs.c.bytes), 0)).where(jobs.c.status == "completed")
        with self._database.reading() as connection:
            number, size = connection.execute(query).one()
        return int(number), int(size)

    def forget_failures(self, keep: int) -> int:
        """Delete finished rows without a video, but for the newest `keep`; returns how many went."""
        without = jobs.c.status.in_(FINAL - {"completed"})
        with self._database.writing() as connection:
            edge = connection.scalar(
                select(jobs.c.seq).where(without).order_by(jobs.c.seq.desc()).offset(keep).limit(1)
            )
            if edge is None:
                return 0
            return connection.execute(delete(jobs).where(without, jobs.c.seq <= edge)).rowcount

    def recent_results(self, limit: int) -> Sequence[Job]:
        """The newest completed jobs, oldest of them first: what the pace is learnt from after a start."""
        query = select(jobs).where(jobs.c.status == "completed").order_by(jobs.c.seq.desc()).limit(limit)
        with self._database.reading() as connection:
            rows = connection.execute(query).mappings().all()
        return self._jobs(rows)[::-1]

    # -- rows that cannot be read -------------------------------------------------------------------------------

    def set_aside(self, found: Unreadable) -> None:
        """Keep the row for a person to look at: it is neither served nor started any more. As far as the table lets it.

        Its former state and what is wrong with it become its error.
        """
        log.error(
            "a job cannot be read (%s) and is set aside: its row stays in the table, as %s",
            found.reason,
            SET_ASIDE,
            extra={"job": found.id},
        )
        values: dict[str, Any] = {"status": SET_ASIDE, "slot": None, "idempotency_key": None}
        told = literal("it was ") + cast(jobs.c.status, Text) + f"; cannot be read: {found.reason}"
        with suppress(Unavailable, StorageFull), self._database.writing() as connection:
            row = and_(jobs.c.seq == found.seq, jobs.c.status != SET_ASIDE)
            connection.execute(update(jobs).where(row).values(**values, error_message=told))

    def set_aside_unreadable(self) -> None:
        """Look through every row that is not final, and for states that there are not. Raises `Unavailable`."""
        with self._database.reading() as connection:
            query = select(jobs).where(jobs.c.status.not_in([*FINAL, SET_ASIDE]))
            for row in connection.execute(query).mappings().all():
                try:
                    checked(row)
                except Unreadable as error:
                    self.set_aside(error)

    def _jobs(self, rows: Sequence[RowMapping]) -> Sequence[Job]:
        """Those that can be read; the others are set aside."""
        found = []
        for row in rows:
            try:
                found.append(self._job(row))
            except Unreadable as error:
                self.set_aside(error)
        return found

    def _without_unreadable(self, change: Callable[[], T]) -> T:
        """Make a change; a row that is in its way and cannot be read is set aside, and the change made again."""
        seen = set()
        while True:
            try:
                return change()
            except Unreadable as error:
                if error.seq in seen:  # the table did not take it
                    raise Unavailable("a job that cannot be read is in the way") from error
                seen.add(error.seq)
                self.set_aside(error)

    # -- inside -------------------------------------------------------------------------------------------------

    def _forget_cache(self) -> None:
        with self._cache_lock:
            self._version += 1
            self._cache.clear()

    def _change(self, claim: Claim, values: dict[str, Any]) -> Job:
        """The job after the change, read in the same transaction: the next one may delete it."""
        with self._database.writing() as connection:
            self._move(connection, claim.id, and_(jobs.c.status == "in_progress", _ours(claim)), values)
            return self._read(connection, claim.id)

    def _finish(self, claim: Claim, status: Status, values: dict[str, Any]) -> Job:
        try:
            return self._change(claim, {"status": status, "slot": None, "completed_at": self._now(), **values})
        except InvalidTransition:
            end = {"status": status, "file": values["file"], "error_code": values.get("error_code")}
            with self._database.reading() as connection:
                same = and_(*(jobs.c[name] == value for name, value in end.items()))
                if _count(connection, jobs.c.id == claim.id, _ours(claim), same):
                    return self._read(connection, claim.id)
            raise

    def _move(self, connection: Connection, id: str, guard: ColumnElement[bool], values: dict[str, Any]) -> None:
        """Change the row where `guard` holds, and with it what its webhook is to be told of an end."""
        _check_id(id)
        changed = connection.execute(update(jobs).where(jobs.c.id == id, guard).values(**values))
        if not changed.rowcount:
            found = self._read(connection, id)
            raise InvalidTransition(f"job {id} is {found.status}, attempt {found.attempt}")
        if "completed_at" in values:
            ended = {"status": values["status"], "ended_at": values["completed_at"]}
            connection.execute(update(webhooks).where(webhooks.c.job_id == id).values(**ended))

    def _find_key(self, connection: Connection, new: NewJob) -> Job | None:
        if new.idempotency_key is None:
            return None
        row = connection.execute(select(jobs).where(jobs.c.idempotency_key == new.idempotency_key)).mappings().first()
        if row is None:
            return None
        if row["fingerprint"] != new.fingerprint:
            raise Conflict("this idempotency key was used before with another request", field="Idempotency-Key")
        return self._job(row)

    def _read(self, connection: Connection, id: str) -> Job:
        _check_id(id)
        row = connection.execute(select(jobs).where(jobs.c.id == id, jobs.c.status != SET_ASIDE)).mappings().first()
        if row is None:
            raise _unknown(id)
        return self._job(row)

    def _job(self, row: RowMapping) -> Job:
        with self._cache_lock:
            request = self._requests.get(row["id"])
        if request is None:
            request = checked(row)
            self._keep_request(row["id"], request)
        return job_of(row, request)

    def _keep_request(self, id: str, request: GenerateRequest) -> None:
        with self._cache_lock:
            self._requests[id] = request
            if len(self._requests) > CACHED:
                del self._requests[next(iter(self._requests))]

    def _now(self) -> float:
        return self._clock().timestamp()


def _ours(claim: Claim) -> ColumnElement[bool]:
    return and_(jobs.c.boot_id == claim.boot, jobs.c.attempt == claim.attempt)


def _count(connection: Connection, *where: ColumnElement[bool]) -> int:
    return connection.scalar(select(func.count()).select_from(jobs).where(*where)) or 0


def _check_id(id: str) -> None:
    """Only what could be an id reaches the database."""
    if ID.fullmatch(id) is None:
        raise _unknown(id)


def _unknown(id: str) -> NotFound:
    return NotFound(f"there is no video {id}" if ID.fullmatch(id) else "there is no such video")


CANCELLED = "the job was cancelled"
INTERRUPTED = "the server stopped each time this job ran ({attempts} starts); it is not started again"
LOST = "video_lost"
LOST_MESSAGE = "the video's file is no longer in the outputs folder"
NO_FILE: dict[str, Any] = {"file": None, "result": None, "bytes": None}
QUEUED: dict[str, Any] = {
    "status": "queued",
    "boot_id": None,
    "slot": None,
    "step": 0,
    "started_at": None,
    **NO_FILE,
}


def recovered(row: RowMapping, attempts: int, size_of: Callable[[str], int | None], now: float) -> dict[str, Any]:
    """What becomes of a job that was in progress when its server died, as new values of its row.

    - Its frames were done and its file is whole (a file has its final name only then): `completed`, with that file.
    - Anything else, and it has been started fewer than `attempts` times: `queued` again in its old place; the death
      counts as an attempt, and a file that it was to get is forgotten.
    - Anything else, and it has been started `attempts` times: `interrupted`, because it may be what kills the server.

    `size_of(file)` in bytes, None when the file is missing; `now` in seconds since 1970.
    """
    size = size_of(row["file"]) if row["file"] and row["result"] else None
    if size is not None:
        result = json.dumps({**json.loads(row["result"]), "bytes": size})
        return {"status": "completed", "slot": None, "completed_at": now, "bytes": size, "result": result}
    if row["attempt"] >= attempts:
        message = INTERRUPTED.format(attempts=row["attempt"])
        values = {"status": "interrupted", "slot": None, "completed_at": now, **NO_FILE}
        return {**values, "error_code": "interrupted", "error_message": message}
    return dict(QUEUED)
