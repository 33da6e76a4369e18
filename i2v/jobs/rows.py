"""Rows <-> `Job`: what a row of the job table says, and the values that each end of a job writes."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import RowMapping

from i2v.jobs.job import Job, JobResult
from i2v.request import GenerateRequest

CANCELLED = "the job was cancelled"
INTERRUPTED = "the server stopped each time this job ran ({attempts} starts); it is not started again"
LOST = "video_lost"
LOST_MESSAGE = "the video's file is no longer in the outputs folder"
NO_FILE: dict[str, Any] = {"file": None, "result": None, "bytes": None}
QUEUED: dict[str, Any] = {
    "status": "queued",
    "boot_id": None,
    "slot": None,
    "stage": None,
    "step": 0,
    "started_at": None,
    **NO_FILE,
}


def recovered(row: RowMapping, attempts: int, size_of: Callable[[str], int | None], now: float) -> dict[str, Any]:
    size = size_of(row["file"]) if row["file"] and row["result"] else None
    if size is not None:
        result = json.dumps({**json.loads(row["result"]), "bytes": size})
        return {"status": "completed", "slot": None, "completed_at": now, "bytes": size, "result": result}
    if row["attempt"] >= attempts:
        message = INTERRUPTED.format(attempts=row["attempt"])
        values = {"status": "interrupted", "slot": None, "completed_at": now, **NO_FILE}
        return {**values, "error_code": "interrupted", "error_message": message}
    return dict(QUEUED)


def job_of(row: RowMapping) -> Job:
    return Job(
        id=row["id"],
        status=row["status"],
        request=GenerateRequest.model_validate_json(row["request"]),
        door=row["door"],
        created_at=_when(row["created_at"]),
        started_at=_when(row["started_at"]) if row["started_at"] is not None else None,
        completed_at=_when(row["completed_at"]) if row["completed_at"] is not None else None,
        attempt=row["attempt"],
        stage=row["stage"] if row["status"] == "in_progress" else None,
        step=row["step"],
        error_code=row["error_code"],
        error_message=row["error_message"],
        result=_result(row["result"]) if row["status"] == "completed" else None,
        extends=row["extends"],
    )


def _when(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _result(text: str) -> JobResult:
    value = json.loads(text)
    return JobResult(**{**value, "notes": tuple(value["notes"]), "warnings": tuple(value["warnings"])})
