"""A row of the job table as a value, and what makes one unreadable: SQLite keeps anything in any column.

A damaged disk, a hand in the table or another version may leave what no code of ours wrote. Such a row is nobody's job.
"""

import json
import re
from datetime import UTC, datetime
from typing import Any, Final, get_args

from pydantic import ValidationError
from sqlalchemy import RowMapping

from i2v.errors import NotFound
from i2v.jobs.job import Door, Job, JobResult, Status
from i2v.notes import read
from i2v.request import GenerateRequest

ID: Final = re.compile(r"video_[0-9a-f]{24}")
SET_ASIDE: Final = "set_aside"  # the state of a row that is kept for a person to look at, and is no job any more
STATUSES: Final[tuple[Status, ...]] = get_args(Status)

_TEXT, _NUMBER, _NONE = (str,), (int, float), type(None)
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "id": _TEXT,
    "prompt": _TEXT,
    "request": _TEXT,
    "created_at": _NUMBER,
    "started_at": (*_NUMBER, _NONE),
    "completed_at": (*_NUMBER, _NONE),
    "attempt": (int,),
    "step": (int,),
    "slot": (int, _NONE),
    "error_code": (*_TEXT, _NONE),
    "error_message": (*_TEXT, _NONE),
    "file": (*_TEXT, _NONE),
    "bytes": (int, _NONE),
    "result": (*_TEXT, _NONE),
    "extends": (*_TEXT, _NONE),
}


class Unreadable(NotFound):
    """A row that is no job. To a caller there is none; `reason` says to the operator which part is at fault."""

    def __init__(self, row: RowMapping, reason: str) -> None:
        super().__init__("there is no such video")
        self.seq = int(row["seq"])  # SQLite keeps nothing but an integer there
        self.id = str(row["id"])
        self.reason = reason


def checked(row: RowMapping) -> GenerateRequest:
    """The request of a row whose every part can be read. Raises `Unreadable`."""
    try:
        request = GenerateRequest.model_validate_json(row["request"])
    except (ValidationError, TypeError):  # its words would repeat the prompt
        raise Unreadable(row, "request") from None
    job_of(row, request)
    if row["result"] is not None and row["status"] != "completed":
        _read_result(row)
    return request


def job_of(row: RowMapping, request: GenerateRequest) -> Job:
    """A row of `jobs` as a value; its times are seconds since 1970, UTC. Raises `Unreadable`."""
    for name, kinds in _TYPES.items():
        if not isinstance(row[name], kinds):
            raise Unreadable(row, name)
    if ID.fullmatch(row["id"]) is None:
        raise Unreadable(row, "id")
    if "/" in (row["file"] or ""):
        raise Unreadable(row, "file")
    for name, known in (("status", STATUSES), ("door", get_args(Door))):
        if row[name] not in known:
            raise Unreadable(row, name)
    return Job(
        id=row["id"],
        status=row["status"],
        request=request,
        door=row["door"],
        created_at=_time_of(row, "created_at") or datetime.fromtimestamp(0, UTC),
        started_at=_time_of(row, "started_at"),
        completed_at=_time_of(row, "completed_at"),
        attempt=row["attempt"],
        stage=None if row["status"] != "in_progress" else "encode" if row["slot"] is not None else "write",
        step=row["step"],
        error_code=row["error_code"],
        error_message=row["error_message"],
        result=_read_result(row) if row["status"] == "completed" else None,
        extends=row["extends"],
    )


def when(seconds: float) -> datetime:
    """Aware UTC, from seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC)


def _time_of(row: RowMapping, name: str) -> datetime | None:
    try:
        return None if row[name] is None else when(row[name])
    except (ValueError, OverflowError, OSError):
        raise Unreadable(row, name) from None


def _read_result(row: RowMapping) -> JobResult:
    try:
        value: dict[str, Any] = json.loads(row["result"])
        said = {name: tuple(map(read, value[name])) for name in ("notes", "warnings")}
        result = JobResult(**{**value, **said, "plan": read(value["plan"]) if value["plan"] else None})
        if not (
            isinstance(result.file, str)
            and "/" not in result.file
            and isinstance(result.seconds, int | float)
            and isinstance(result.seed, int)
            and all(isinstance(seconds, int | float) for seconds in result.stage_seconds.values())
        ):
            raise ValueError
        return result
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise Unreadable(row, "result") from None
