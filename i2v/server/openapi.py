"""What `/openapi.json` says about routes that read their own bodies. Data only."""

from typing import Any

from pydantic import BaseModel

from i2v.server.video_request import CreateVideo, ExtendVideo, RemixVideo

ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error", "detail"],
    "properties": {
        "error": {"type": "string"},
        "detail": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["loc", "msg"],
                "properties": {
                    "loc": {"type": "array", "items": {"type": ["string", "integer"]}},
                    "msg": {"type": "string"},
                    "type": {"type": "string"},
                },
            },
        },
    },
}

_REASONS = {
    400: "the body cannot be read",
    401: "a token is wanted",
    403: "a foreign page or Host",
    404: "no such thing",
    405: "another method is wanted",
    409: "not in this state",
    413: "the body is too large",
    416: "the range lies outside the file",
    422: "a value is refused; the answer names the field",
    429: "this caller's share of the queue is full",
    500: "the job failed",
    503: "full, starting or out of memory; Retry-After says when to ask again",
    507: "the disk is full",
}


def errors(*statuses: int, schema: dict[str, Any] = ERROR_SCHEMA) -> dict[int | str, dict[str, Any]]:
    """Entries of a route's `responses` for the given statuses."""
    content = {"application/json": {"schema": schema}}
    return {status: {"description": _REASONS[status], "content": content} for status in statuses}


_PREDICT_BODY = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "data": {
            "type": "array",
            "minItems": 7,
            "maxItems": 9,
            "prefixItems": [
                {"type": "string", "title": "image", "description": "data:image/<type>;base64,..."},
                {"type": "string", "title": "prompt", "minLength": 1, "maxLength": 2000},
                {"type": "integer", "title": "resolution", "enum": [256, 512, 768]},
                {"type": "integer", "title": "num_frames", "minimum": 8, "maximum": 32},
                {"type": "integer", "title": "fps", "minimum": 4, "maximum": 24},
                {"type": "integer", "title": "steps", "minimum": 10, "maximum": 100},
                {"type": "number", "title": "guidance_scale", "minimum": 1, "maximum": 20},
                {"type": ["integer", "null"], "title": "seed", "minimum": 0, "maximum": 2**53 - 1},
                {"type": ["string", "null"], "title": "negative_prompt", "maxLength": 2000},
            ],
        },
        "fn_index": {"enum": [None, 0, "0"]},
    },
}

_PREDICT_ANSWER = {
    "type": "object",
    "required": ["data", "is_generating", "duration", "average_duration"],
    "additionalProperties": False,
    "properties": {
        "data": {
            "type": "array",
            "minItems": 3,
            "maxItems": 3,
            "items": {"type": "string"},
            "description": "path of the MP4 on the server, readable summary, inference time",
        },
        "is_generating": {"const": False},
        "duration": {"type": "number"},
        "average_duration": {"type": "number"},
    },
}

PREDICT: dict[str, Any] = {
    "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": _PREDICT_BODY}}}},
    "responses": {
        200: {
            "description": "the finished video",
            "content": {"application/json": {"schema": _PREDICT_ANSWER}},
            "headers": {
                "X-Job-Id": {"schema": {"type": "string"}, "description": "the job, as in /v1/videos"},
                "X-Video-Url": {"schema": {"type": "string"}, "description": "where the MP4 can be fetched"},
            },
        },
        **errors(400, 401, 403, 404, 409, 413, 422, 429, 500, 503, 507),
    },
}

OPENAI_ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}

_VIDEO_OBJECT: dict[str, Any] = {
    "type": "object",
    "required": ["id", "object", "created_at", "status", "progress", "prompt", "seconds", "size"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "video"},
        "created_at": {"type": "integer"},
        "completed_at": {"type": ["integer", "null"]},
        "expires_at": {"type": ["integer", "null"]},
        "status": {"enum": ["queued", "in_progress", "completed", "failed", "cancelled"]},
        "progress": {"type": "integer", "minimum": 0, "maximum": 100},
        "error": {
            "type": ["object", "null"],
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
        },
        "model": {"type": ["string", "null"]},
        "prompt": {"type": "string"},
        "seconds": {"type": "string"},
        "size": {"type": "string"},
        "seed": {"type": "integer"},
        "position": {"type": ["integer", "null"]},
        "eta_s": {"type": ["number", "null"]},
        "stage_seconds": {"type": ["object", "null"]},
        "peak_memory_mb": {"type": ["number", "null"]},
        "notes": {"type": "array", "items": {"type": "string"}},
    },
}


def _of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _route(answer: dict[str, Any], *statuses: int, body: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Keyword arguments of a `/v1` route: its 200, the errors it can give, its body."""
    common = (401, 403, 500, 503)
    route: dict[str, Any] = {
        "responses": {
            200: {"description": more.pop("description", "done"), "content": answer},
            **errors(*common, *statuses, schema=OPENAI_ERROR_SCHEMA),
        }
    }
    if body is not None:
        route["openapi_extra"] = {"requestBody": {"required": True, "content": body}}
    return route


def _body(model: type[BaseModel], file_field: str | None = None) -> dict[str, Any]:
    """A body that may be JSON, and a form where a file can be part of it."""
    schema = model.model_json_schema()
    schema.update(_inlined(schema, schema.pop("$defs", {})))
    if file_field is None:
        return _of(schema)
    form = {**schema, "properties": {**schema["properties"], file_field: {"type": "string", "format": "binary"}}}
    return {**_of(schema), "multipart/form-data": {"schema": form}}


def _inlined(value: Any, definitions: dict[str, Any]) -> Any:
    """The schema with its references written out; `/openapi.json` has no place of its own for them."""
    if isinstance(value, list):
        return [_inlined(item, definitions) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return _inlined(definitions[value["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(item, definitions) for key, item in value.items()}


_JOB_ERRORS = (400, 404, 409, 413, 422, 429, 507)
_LIST_OF = {"type": "object", "properties": {"object": {"const": "list"}, "data": {"type": "array"}}}

CREATE = _route(_of(_VIDEO_OBJECT), *_JOB_ERRORS, body=_body(CreateVideo, "input_reference"), description="queued")
SYNC = _route({"video/mp4": {}}, *_JOB_ERRORS, body=_body(CreateVideo, "input_reference"), description="the MP4")
EXTEND = _route(_of(_VIDEO_OBJECT), *_JOB_ERRORS, body=_body(ExtendVideo, "video"), description="queued")
REMIX = _route(_of(_VIDEO_OBJECT), *_JOB_ERRORS, body=_body(RemixVideo), description="queued")
LIST = _route(_of(_LIST_OF), 404, 422)
RETRIEVE = _route(_of(_VIDEO_OBJECT), 404)
CONTENT = _route({"video/mp4": {}, "image/jpeg": {}, "image/gif": {}, "image/webp": {}}, 404, 409, 416, 422)
EVENTS = _route({"text/event-stream": {}}, 404)
CANCEL = _route(_of(_VIDEO_OBJECT), 404, 409)
DELETE = _route(_of({"type": "object"}), 404)
MODELS = _route(_of(_LIST_OF))
MODEL = _route(_of({"type": "object"}), 404)
