"""Every error a caller can meet, as one tree; each class has an HTTP status and a stable code.

    I2VError
    ├── BadRequest 400            unreadable body
    ├── Unauthorized 401
    ├── Forbidden 403             a foreign page, a refused Host
    ├── NotFound 404
    ├── MethodNotAllowed 405
    ├── Conflict 409              not ready, already final, idempotency key reused
    ├── PreconditionFailed 412    `If-Match` names another version
    ├── BodyTooLarge 413
    ├── RangeNotSatisfiable 416
    ├── InvalidRequest 422        a field's value; names the field
    │   ├── InvalidImage 422
    │   └── DoesNotFit 422        this machine's memory cannot hold the job
    ├── TooManyJobs 429           one caller's share of the queue
    ├── Unavailable 503           Retry-After always set
    │   ├── QueueFull
    │   ├── NotReady              model loading, shutting down
    │   └── OutOfMemory
    ├── StorageFull 507
    └── JobFailed 500             the job, not the server
        ├── GenerationFailed
        ├── InvalidOutput         NaN, black frames
        ├── JobInterrupted
        ├── JobCancelled
        └── FatalEngineError      the CUDA context is lost; the process must exit with code 86

Messages name the value received and what was wanted, and never hold a server path, a traceback, a prompt or base64.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from i2v.notes import Note, say

EXIT_RESTART = 86  # the process asks its launcher to start it again


class I2VError(Exception):
    """Base of all. `field` is the request field at fault, `retry_after` whole seconds.

    `message` is a sentence; an error that was made from a note keeps it, so that the page says it in its own language.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: Note | str, *, field: str | None = None, retry_after: int | None = None) -> None:
        self.message = say(message)
        super().__init__(self.message)
        self.note = message if isinstance(message, Note) else None
        self.field = field
        self.retry_after = retry_after


class BadRequest(I2VError):
    status, code = 400, "bad_request"


class Unauthorized(I2VError):
    status, code = 401, "unauthorized"


class Forbidden(I2VError):
    status, code = 403, "forbidden"


class NotFound(I2VError):
    status, code = 404, "not_found"


class MethodNotAllowed(I2VError):
    status, code = 405, "method_not_allowed"


class Conflict(I2VError):
    status, code = 409, "conflict"


class PreconditionFailed(I2VError):
    status, code = 412, "precondition_failed"


class BodyTooLarge(I2VError):
    status, code = 413, "too_large"


class RangeNotSatisfiable(I2VError):
    status, code = 416, "range_not_satisfiable"


class InvalidRequest(I2VError):
    status, code = 422, "invalid_request"


class InvalidImage(InvalidRequest):
    code = "invalid_image"


class DoesNotFit(InvalidRequest):
    """`largest` names the largest job that fits, as request fields, or is None when none does."""

    code = "does_not_fit"

    def __init__(self, message: str, *, largest: dict[str, Any] | None = None, field: str | None = None) -> None:
        super().__init__(message, field=field)
        self.largest = largest


class TooManyJobs(I2VError):
    status, code = 429, "too_many_jobs"


class Unavailable(I2VError):
    status, code = 503, "unavailable"

    def __init__(self, message: Note | str, *, field: str | None = None, retry_after: int = 5) -> None:
        super().__init__(message, field=field, retry_after=retry_after)


class QueueFull(Unavailable):
    code = "queue_full"


class NotReady(Unavailable):
    code = "not_ready"


class OutOfMemory(Unavailable):
    code = "out_of_memory"


class StorageFull(I2VError):
    status, code = 507, "storage_full"


class JobFailed(I2VError):
    status, code = 500, "job_failed"


class GenerationFailed(JobFailed):
    code = "generation_failed"


class InvalidOutput(JobFailed):
    code = "invalid_output"


class JobInterrupted(JobFailed):
    code = "interrupted"


class JobCancelled(JobFailed):
    status, code = 409, "cancelled"


class FatalEngineError(JobFailed):
    code = "engine_lost"


class SettingsError(ValueError):
    """A setting that is unknown or out of range; the message names it, where it came from and what was wanted."""


class ModelUnavailable(Exception):
    """The model cannot be found, fetched or loaded. For the operator: it may name files, so no client is shown it."""


def _tree(root: type[I2VError]) -> dict[str, type[I2VError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found = _tree(child) | found  # a subclass without a code of its own stands behind its parent
    return found


def error_from_code(code: str, message: str) -> I2VError:
    """Rebuild the error that a stored job ended with; an unknown code becomes `JobFailed`."""
    return _tree(I2VError).get(code, JobFailed)(message)


# What pydantic refuses, in words. It is the one place that reads pydantic's errors.

_WANTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


class _Refusing(Protocol):
    def errors(self) -> Sequence[Any]: ...


@dataclass(frozen=True, slots=True)
class Refusal:
    """One value that was refused: the dotted name of its field (empty: the whole), why, and the value itself."""

    field: str
    kind: str  # pydantic's word for it
    message: str  # pydantic's sentence
    received: object

    @property
    def is_unknown(self) -> bool:
        return self.kind == "extra_forbidden"

    @property
    def is_out_of_range(self) -> bool:
        return self.kind in _RANGE

    def words(self, received: Callable[[object], str] | None = None, *, nullable: bool = False) -> str:
        """One sentence; `received` describes the value (default: `described`, which does not repeat a text).

        `nullable`: the field takes null as well, which a refusal of the type says.
        """
        if self.is_unknown:
            return f"{self.field} is not a known field"
        if self.kind == "missing":
            return f"{self.field} is missing"
        value = (received or described)(self.received)
        name = self.field or "body"
        if wanted := _WANTED.get(self.kind):
            return f"{name} must be {wanted}{' or null' if nullable else ''}; received {value}"
        return f"{name}: {self.message.removeprefix('Value error, ')}; received {value}"


def refusals(error: _Refusing, *, skip: int = 0) -> list[Refusal]:
    """What a pydantic `ValidationError` holds, in the order of the fields; `skip` parts of each name are left out."""
    return [
        Refusal(
            field=".".join(str(part) for part in problem["loc"][skip:]),
            kind=problem["type"],
            message=problem["msg"],
            received=problem.get("input"),
        )
        for problem in error.errors()
    ]


def described(value: object) -> str:
    """A received value for a message that must not repeat it: JSON's name of its type; a fraction or NaN as it is."""
    if isinstance(value, int) and abs(value) >= 10**18:
        return short(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else short(value)  # 8.0 is refused where 8 is taken
    return json_type(value)


def json_type(value: object) -> str:
    """What JSON calls the type of the value, with its article."""
    names: dict[type, str] = {
        type(None): "null",
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), f"a {type(value).__name__}")


def short(value: float) -> str:
    """A received number in few characters: 10^4000 is not written out."""
    if isinstance(value, int) and abs(value) >= 10**18:
        return "an integer of more than 18 digits"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return f"{value:g}" if isinstance(value, float) else str(value)
