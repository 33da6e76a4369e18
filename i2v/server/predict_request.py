"""The positional dialect of `POST /api/predict/`: a list of seven to nine values becomes one `GenerateRequest`.

Types are strict, and each refusal names the field, what was wanted and what was received. Knows no HTTP.
"""

import math
from typing import Any

from i2v.errors import InvalidRequest, NotFound, described, json_type, short
from i2v.jobs.photo import TakenPhoto, take
from i2v.request import GenerateRequest
from i2v.settings import Settings

FIELDS = (
    "image",
    "prompt",
    "resolution",
    "num_frames",
    "fps",
    "steps",
    "guidance_scale",
    "seed",
    "negative_prompt",
)
REQUIRED = 7
_IGNORED_FN_INDEX = (None, 0, "0")


def data_of(body: object) -> list[object]:
    """The `data` list of a request body; other keys are what old clients send along, and are ignored."""
    if not isinstance(body, dict):
        raise InvalidRequest(f'the body must be an object {{"data": [...]}}; received {json_type(body)}')
    fn_index = body.get("fn_index")
    if isinstance(fn_index, bool) or fn_index not in _IGNORED_FN_INDEX:
        raise NotFound("this server has one function; leave fn_index out or send 0", field="fn_index")
    if "data" not in body:
        raise InvalidRequest('the body has no "data"; a list of 7 values is wanted', field="data")
    data = body["data"]
    if not isinstance(data, list):
        raise InvalidRequest(f"data must be a list of 7 values; received {json_type(data)}", field="data")
    return data


def read_parameters(data: list[object], settings: Settings) -> GenerateRequest:
    """Everything but the photo, whose type alone is looked at."""
    if not REQUIRED <= len(data) <= len(FIELDS):
        raise InvalidRequest(
            f"data has {len(data)} values; {REQUIRED} are wanted ({', '.join(FIELDS[:REQUIRED])}), "
            f"and {' and '.join(FIELDS[REQUIRED:])} may follow",
            field="data",
        )
    values: dict[str, Any] = {name: _whole(value) for name, value in zip(FIELDS, data, strict=False)}
    image, side = values.pop("image"), values.pop("resolution")
    if not isinstance(image, str):
        raise InvalidRequest(f"image must be a data URL string; received {json_type(image)}", field="image")
    if isinstance(side, bool) or not isinstance(side, int):
        raise InvalidRequest(f"resolution must be an integer; received {described(side)}", field="resolution")
    limits = settings.limits
    if side not in limits.resolutions:
        wanted = ", ".join(map(str, limits.resolutions))
        raise InvalidRequest(f"resolution is {short(side)}; one of {wanted} is wanted", field="resolution")
    return limits.read({"width": side, "height": side, **values})


def read_image(data: list[object], settings: Settings) -> TakenPhoto:
    """The photo, the only part that costs more than microseconds. Raises `InvalidImage`."""
    return take(str(data[0]), max_pixels=settings.max_image_pixels)


def _whole(value: object) -> object:
    """512.0 as 512: JSON writers differ in how they write whole numbers."""
    return int(value) if isinstance(value, float) and math.isfinite(value) and value.is_integer() else value
