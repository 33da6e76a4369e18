"""What `/openapi.json` says beyond what the framework reads from the routes. Data only, made from the models.

A route names the models of its answers and of the body that it reads itself; `bodies` describes those within the limits
of one operator, so the document belongs to an app and not to the package.
"""

from typing import Any

from pydantic import BaseModel

from i2v.request import GenerateRequest, PublicLimits, default_of
from i2v.server.answers import ErrorAnswer, OpenAIErrorAnswer
from i2v.server.predict_request import FIELDS, REQUIRED
from i2v.server.video_request import CREATE_VIDEO, ExtendVideo, RemixVideo

Responses = dict[int | str, dict[str, Any]]

_REF = "#/components/schemas/{model}"
_REASONS = {
    400: "the body cannot be read",
    401: "a token is wanted",
    403: "a foreign page or Host",
    404: "no such thing",
    405: "another method is wanted",
    409: "not in this state",
    412: "If-Match names another version",
    413: "the body is too large",
    416: "the range lies outside the file",
    422: "a value is refused; the answer names the field",
    429: "this caller's share of the queue is full",
    500: "the job failed",
    503: "full, starting or out of memory; Retry-After says when to ask again",
    507: "the disk is full",
}
_JOB = (400, 404, 409, 413, 422, 429, 507)  # what a new job may meet


def errors(*statuses: int, model: type[BaseModel] = ErrorAnswer) -> Responses:
    """Entries of a route's `responses` for the given statuses."""
    return {status: {"description": _REASONS[status], "model": model} for status in statuses}


def answer(model: type[BaseModel], *statuses: int, says: str = "done") -> Responses:
    """The answers of a `/v1` route: its 200, and the errors that it can give."""
    return {200: {"description": says, "model": model}, **_v1_errors(*statuses)}


def files(*kinds: str, statuses: tuple[int, ...], says: str = "done") -> Responses:
    """As `answer`, for a route whose 200 is one of these media types."""
    return {200: {"description": says, "content": {kind: {} for kind in kinds}}, **_v1_errors(*statuses)}


def new_job(model: type[BaseModel]) -> Responses:
    """The answers of a `/v1` route that queues a job."""
    return answer(model, *_JOB, says="queued")


def _v1_errors(*statuses: int) -> Responses:
    return errors(401, 403, 500, 503, *statuses, model=OpenAIErrorAnswer)


def takes(name: str, *, form: bool = False) -> dict[str, Any]:
    """`openapi_extra` of a route that reads the body `name` of `bodies` itself; `form`: or a form with a file."""
    content = {"application/json": {"schema": {"$ref": _REF.format(model=name)}}}
    if form:
        content["multipart/form-data"] = {"schema": {"$ref": _REF.format(model=f"{name}Form")}}
    return {"requestBody": {"required": True, "content": content}}


MP4_FOR_NEW_JOB = files("video/mp4", statuses=_JOB, says="the MP4")


def bodies(limits: PublicLimits) -> dict[str, Any]:
    """Schemas by name of the bodies that routes read themselves, as one operator's limits allow them."""
    found: dict[str, Any] = {"PredictBody": _predict_body(limits)}
    for model, file in ((CREATE_VIDEO, "input_reference"), (ExtendVideo, "video"), (RemixVideo, None)):
        schema = model.model_json_schema(ref_template=_REF)
        found |= schema.pop("$defs", {})
        _tell_defaults(schema["properties"], limits)
        found[model.__name__] = schema
        if file is not None:
            upload = {"type": "string", "format": "binary"}
            found[f"{model.__name__}Form"] = {**schema, "properties": {**schema["properties"], file: upload}}
    return found


def _tell_defaults(properties: dict[str, Any], limits: PublicLimits) -> None:
    """What a field that is left out stands for, and what sizes there are."""
    for name in properties.keys() & GenerateRequest.model_fields.keys() - {"prompt"}:
        properties[name]["default"] = limits.defaults.get(name, default_of(name))
    if "size" in properties:
        low, high = limits.side
        properties["size"]["default"] = f"{default_of('width')}x{default_of('height')}"
        properties["size"]["description"] += f", {low} to {high} each, at most {limits.max_pixels} pixels in all"


def _predict_body(limits: PublicLimits) -> dict[str, Any]:
    values = GenerateRequest.model_json_schema()["properties"] | {
        "image": {"type": "string", "description": "data:image/<type>;base64,..."},
        "resolution": {"type": "integer", "enum": list(limits.resolutions), "description": "pixels, both sides"},
    }
    items = [{**values[name], "title": name} for name in FIELDS]
    for item in items[:REQUIRED]:
        item.pop("default", None)
    data = {"type": "array", "minItems": REQUIRED, "maxItems": len(FIELDS), "prefixItems": items}
    return {
        "type": "object",
        "required": ["data"],
        "properties": {"data": data, "fn_index": {"enum": [None, 0, "0"]}},
    }
