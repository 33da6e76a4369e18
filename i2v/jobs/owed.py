"""Webhooks that are still to be told: a row comes with its job, learns in the job's last transaction how that ended,
and goes when its address has been told or given up.

A row says all that is told, so that it outlives a job which is deleted, or removed by retention, before that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from i2v.jobs.schema import webhooks


@dataclass(frozen=True, slots=True)
class Owed:
    """An address, and what it is to be told: which job ended how (a final status), and when."""

    job_id: str
    url: str
    status: str
    ended_at: datetime


def remember(connection: Connection, job_id: str, url: str) -> None:
    """The address of a new job."""
    connection.execute(insert(webhooks).values(job_id=job_id, url=url))


def note_end(connection: Connection, job_id: str, values: dict[str, Any]) -> None:
    """`values` are being written to the job's row. Where they end the job, its address is owed from now on."""
    if "completed_at" in values:
        ended = {"status": values["status"], "ended_at": values["completed_at"]}
        connection.execute(update(webhooks).where(webhooks.c.job_id == job_id).values(**ended))


def owed(connection: Connection) -> Sequence[Owed]:
    """What is to be told, the earliest end first."""
    query = select(webhooks).where(webhooks.c.status.is_not(None)).order_by(webhooks.c.ended_at)
    return [
        Owed(row.job_id, row.url, row.status, datetime.fromtimestamp(row.ended_at, UTC))
        for row in connection.execute(query)
    ]


def forget(connection: Connection, job_id: str) -> None:
    connection.execute(delete(webhooks).where(webhooks.c.job_id == job_id))
