"""What `/openapi.json` says about routes that read their own bodies. Data only."""

from typing import Any

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
