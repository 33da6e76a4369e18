"""Turns an `I2VError` into the one answer a client sees. Every error body of the server is written here.

Two shapes: `/v1` speaks OpenAI's `{"error": {...}}`, every other path `{"error": text, "detail": [...]}`.
Knows nothing of jobs or of where an error came from.
"""

import json
from dataclasses import replace
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from i2v.errors import (
    BadRequest,
    BodyTooLarge,
    I2VError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Refusal,
    refusals,
)

UNKNOWN_PATH = "no such path; generate with POST /api/predict/ or POST /v1/videos, and see /docs"
UNEXPECTED = "the server met an unexpected error; its log has the details under this request id"

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Answer(BaseModel):
    """A body that this server writes: frozen, and with every field always there."""

    model_config = ConfigDict(frozen=True, json_schema_serialization_defaults_required=True)


class Problem(Answer):
    """What is wrong, and where: `loc` leads to the value."""

    loc: list[str | int]
    msg: str
    type: str = Field(description="the stable code")


class ErrorAnswer(Answer):
    """Every error outside `/v1`."""

    error: str = Field(description="for people")
    detail: list[Problem]


class OpenAIError(Answer):
    """One error in OpenAI's shape."""

    message: str = Field(description="for people")
    type: str
    param: str | None = Field(description="the field at fault")
    code: str = Field(description="stable")


class OpenAIErrorAnswer(Answer):
    """Every error of `/v1`."""

    error: OpenAIError


class JSONAnswer(Response):
    """JSON in pure ASCII, so that no string can break the encoding; NaN is refused rather than written."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


def speaks_openai(path: str) -> bool:
    return path == "/v1" or path.startswith("/v1/")


def error_body(error: I2VError, path: str) -> dict[str, Any]:
    """The body for `error` on `path`, in the shape that path speaks."""
    if speaks_openai(path):
        kind = _OPENAI_TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
        told = OpenAIError(message=error.message, type=kind, param=error.field, code=error.code)
        return OpenAIErrorAnswer(error=told).model_dump()
    loc: list[str | int] = ["body", "data", error.field] if error.field else ["body"]
    problem = Problem(loc=loc, msg=error.message, type=error.code)
    return ErrorAnswer(error=error.message, detail=[problem]).model_dump()


def error_answer(error: I2VError, path: str, headers: dict[str, str] | None = None) -> Response:
    """The whole answer: status, body, and `Retry-After` where the error carries one."""
    all_headers = dict(headers or {})
    if error.retry_after is not None:
        all_headers["Retry-After"] = str(max(1, error.retry_after))
    return JSONAnswer(error_body(error, path), status_code=error.status, headers=all_headers)


def invalid(refusal: Refusal) -> InvalidRequest:
    """What was refused, without the value. The name is cut short: callers choose it where it is unknown."""
    shown = replace(refusal, field=refusal.field.encode("ascii", "backslashreplace").decode()[:60])
    return InvalidRequest(shown.words(), field=shown.field or None)


async def answer_i2v_error(request: Request, error: I2VError) -> Response:
    return error_answer(error, request.url.path)


async def answer_validation_error(request: Request, error: RequestValidationError) -> Response:
    return error_answer(invalid(refusals(error, skip=1)[0]), request.url.path)  # the first part says query or path


async def answer_http_exception(request: Request, error: HTTPException) -> Response:
    """What the framework itself refuses: unknown paths, methods, broken forms."""
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return error_answer(NotFound(UNKNOWN_PATH), request.url.path, headers)
    if error.status_code == 405:
        allow = headers.get("Allow", "POST")
        return error_answer(MethodNotAllowed(f"this path takes {allow}"), request.url.path, headers)
    if error.status_code == 413:
        return error_answer(BodyTooLarge("the request body is too large"), request.url.path, headers)
    return error_answer(BadRequest("the request body cannot be read"), request.url.path, headers)
