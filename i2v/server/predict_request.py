"""The positional dialect of `POST /api/predict/`: a list of seven to nine values becomes one `GenerateRequest`.

Types are strict, and each refusal names the field, what was wanted and what was received. Knows no HTTP.
"""

import math
from typing import TypeVar

from PIL import Image
from pydantic import ValidationError

from i2v.errors import InvalidRequest, NotFound
from i2v.images import decode_data_url
from i2v.request import MAX_PROMPT, MAX_SEED, GenerateRequest, clean_text
from i2v.server.answers import invalid, json_type
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

_N = TypeVar("_N", int, float)


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


def read_predict(data: list[object], settings: Settings) -> tuple[GenerateRequest, Image.Image]:
    """The request and the decoded photo. Raises `InvalidRequest` or `InvalidImage`.

    The photo comes last: it is the only part that costs more than microseconds.
    """
    request = read_parameters(data, settings)
    return request, decode_data_url(
        _string("image", data[0], "a data URL string"), max_pixels=settings.max_image_pixels
    )


def read_parameters(data: list[object], settings: Settings) -> GenerateRequest:
    """Everything but the photo."""
    if not REQUIRED <= len(data) <= len(FIELDS):
        raise InvalidRequest(
            f"data has {len(data)} values; {REQUIRED} are wanted ({', '.join(FIELDS[:REQUIRED])}), "
            f"and {' and '.join(FIELDS[REQUIRED:])} may follow",
            field="data",
        )
    limits = settings.limits
    _string("image", data[0], "a data URL string")
    prompt = _prompt(data[1])
    resolution = _integer("resolution", data[2])
    if resolution not in limits.resolutions:
        wanted = ", ".join(str(size) for size in limits.resolutions)
        raise InvalidRequest(f"resolution is {_shown(resolution)}; one of {wanted} is wanted", field="resolution")
    try:
        request = GenerateRequest(
            prompt=prompt,
            width=resolution,
            height=resolution,
            num_frames=_within("num_frames", _integer("num_frames", data[3]), limits.num_frames),
            fps=_within("fps", _integer("fps", data[4]), limits.fps),
            steps=_within("steps", _integer("steps", data[5]), limits.steps),
            guidance_scale=_within("guidance_scale", _number("guidance_scale", data[6]), limits.guidance_scale),
            seed=_seed(data[7]) if len(data) > 7 else None,
            negative_prompt=_negative_prompt(data[8]) if len(data) > 8 else None,
            preset=settings.default_preset,
        )
    except ValidationError as error:
        raise invalid(error) from None
    return limits.check(request)


def _string(name: str, value: object, wanted: str = "a string") -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be {wanted}; received {json_type(value)}", field=name)
    return value


def _prompt(value: object) -> str:
    text = _text("prompt", value)
    if not text:
        raise InvalidRequest(f"prompt is empty; 1 to {MAX_PROMPT} characters are wanted", field="prompt")
    return text


def _negative_prompt(value: object) -> str | None:
    return None if value is None else _text("negative_prompt", value, "a string or null")


def _text(name: str, value: object, wanted: str = "a string") -> str:
    try:
        text = clean_text(_string(name, value, wanted))
    except ValueError as error:
        raise InvalidRequest(f"{name} {error}", field=name) from None
    if len(text) > MAX_PROMPT:
        raise InvalidRequest(f"{name} has {len(text)} characters; at most {MAX_PROMPT} are taken", field=name)
    return text


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{name} must be a number; received {json_type(value)}", field=name)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidRequest(f"{name} must be a finite number; received {_shown(value)}", field=name)
    return number


def _integer(name: str, value: object, wanted: str = "an integer") -> int:
    """An int as it is, an integral float as its int; a boolean is no number here."""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        received = _shown(value) if isinstance(value, float) else json_type(value)
        raise InvalidRequest(f"{name} must be {wanted}; received {received}", field=name)
    return value


def _seed(value: object) -> int | None:
    return None if value is None else _within("seed", _integer("seed", value, "an integer or null"), (0, MAX_SEED))


def _within(name: str, value: _N, bounds: tuple[_N, _N]) -> _N:
    """The value, unchanged; refused outside `bounds`, both ends included."""
    low, high = bounds
    if not low <= value <= high:
        raise InvalidRequest(f"{name} is {_shown(value)}; {_shown(low)} to {_shown(high)} is wanted", field=name)
    return value


def _shown(value: float) -> str:
    """A received number, short: 10^4000 is not written out."""
    if isinstance(value, int) and abs(value) >= 10**18:
        return "an integer of more than 18 digits"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return f"{value:g}" if isinstance(value, float) else str(value)
