"""Every error a caller can meet, as one tree; each class has an HTTP status and a stable code.

    I2VError
    ├── BadRequest 400            unreadable body
    ├── Unauthorized 401
    ├── Forbidden 403             a foreign page, a refused Host
    ├── NotFound 404
    ├── MethodNotAllowed 405
    ├── Conflict 409              not ready, already final, idempotency key reused
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

from typing import Any, ClassVar

EXIT_RESTART = 86  # the process asks its launcher to start it again


class I2VError(Exception):
    """Base of all. `field` is the request field at fault, `retry_after` whole seconds."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, field: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
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

    def __init__(self, message: str, *, field: str | None = None, retry_after: int = 5) -> None:
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
        found |= _tree(child)
    return found


def error_from_code(code: str, message: str) -> I2VError:
    """Rebuild the error that a stored job ended with; an unknown code becomes `JobFailed`."""
    return _tree(I2VError).get(code, JobFailed)(message)
