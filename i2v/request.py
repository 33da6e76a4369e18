"""`GenerateRequest`: the one validated, frozen description of a job. Every dialect is read into it at the door.

A field stands here once: its type, the range of any engine and the public one, its default and its description. The
bodies of `/v1/videos`, the values of `/api/predict/`, the page's form, the command line's options and `/openapi.json`
take them from here. Tests and the engine also run jobs outside the public ranges, which `PublicLimits` checks.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationError, field_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from i2v.errors import InvalidRequest, Refusal, refusals, short

Preset = Literal["exact", "fast", "turbo"]
Fit = Literal["crop", "pad"]

MAX_SEED = 2**53 - 1  # every JSON reader keeps it exact; torch takes it as it is
MAX_PROMPT = 2000  # characters, after trimming
MAX_SIDE = 4096  # pixels; what an engine is ever asked for
MAX_PIXELS = 1280 * 768
SIDES = (128, 1280)  # pixels, of free sizes
RESOLUTIONS = (256, 512, 768)  # pixels, the square sizes of `/api/predict/`

_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", re.ASCII)


def draw_seed() -> int:
    """A fresh random seed in 0..2**32-1: short enough to read out."""
    return secrets.randbelow(2**32)


def clean_text(value: str) -> str:
    """Trim, and refuse what no prompt holds: NUL, other control characters, lone surrogates."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode text; a lone surrogate was found") from None
    if any(ord(c) < 32 and c not in "\t\n\r" for c in value) or "\x7f" in value:
        raise ValueError("must not hold control characters")
    return value.strip()


def parse_size(text: str) -> tuple[int, int]:
    """Width and height in pixels of "512x512". Raises `InvalidRequest`, for sides that are no multiples of 8 too."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidRequest('size must be WIDTHxHEIGHT in pixels, such as "1280x720"', field="size")
    width, height = int(match[1]), int(match[2])
    if width % 8 or height % 8:
        near = f"{max(8, round(width / 8) * 8)}x{max(8, round(height / 8) * 8)}"
        raise InvalidRequest(f"size is {width}x{height}; multiples of 8 are wanted, such as {near}", field="size")
    return width, height


@dataclass(frozen=True, slots=True)
class Public:
    """The public range of a number, both ends included, or of a text's length in characters.

    The type does not check it, `PublicLimits` does; in a JSON schema it stands in place of what any engine takes.
    """

    low: float
    high: float

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        value = next((part for part in schema.get("anyOf", []) if part["type"] != "null"), schema)
        least, most = ("minLength", "maxLength") if value["type"] == "string" else ("minimum", "maximum")
        value |= {least: self.low, most: self.high}
        return schema


class GenerateRequest(BaseModel):
    """One job. `width` and `height` in pixels; `fps` is the file's rate, `motion_fps` the model's condition.

    `negative_prompt` None means the model's conventional one. `seed` None is drawn before the job is queued.
    `guidance_scale` 1.0 turns guidance off. `fit` says how a photo of another shape reaches the size: `crop` cuts the
    centre, `pad` adds borders.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    prompt: Annotated[str, Public(1, MAX_PROMPT)] = Field(description="what should happen, in English")
    negative_prompt: Annotated[str | None, Public(0, MAX_PROMPT)] = Field(None, description="what should not be seen")
    width: int = Field(512, ge=8, le=MAX_SIDE, multiple_of=8, description="pixels, a multiple of 8")
    height: int = Field(512, ge=8, le=MAX_SIDE, multiple_of=8, description="pixels, a multiple of 8")
    num_frames: Annotated[int, Public(8, 32)] = Field(16, ge=1, le=128, description="frames")
    fps: Annotated[int, Public(4, 24)] = Field(8, ge=1, le=60, description="frames a second of the file")
    motion_fps: Annotated[int, Public(1, 32)] = Field(
        16, ge=1, le=60, description="frames a second the model is told: how fast it lets things move"
    )
    steps: Annotated[int, Public(10, 100)] = Field(50, ge=1, le=1000, description="denoising steps")
    guidance_scale: Annotated[float, Public(1.0, 20.0)] = Field(
        9.0, ge=1.0, le=50.0, allow_inf_nan=False, description="how closely the prompt is followed"
    )
    seed: Annotated[int | None, Public(0, MAX_SEED)] = Field(
        None, ge=0, le=MAX_SEED, description="the same seed gives the same video; drawn when left out"
    )
    preset: Preset = Field("exact", description="how many shortcuts the sampler takes")
    fit: Fit = Field("crop", description="how a photo of another shape gets the size")

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _text(cls, value: str | None) -> str | None:
        return None if value is None else clean_text(value)

    def with_seed(self) -> Self:
        """The same job with a seed: its own, or one drawn now."""
        return self if self.seed is not None else self.model_copy(update={"seed": draw_seed()})


def default_of(name: str) -> Any:
    """What a field is when a request leaves it out, at every door."""
    return GenerateRequest.model_fields[name].default


def plain_type(annotation: Any) -> Any:
    """The type within `Annotated`, and the first one of a union that is not None: `int` of `int | None`."""
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return plain_type(parts[0])
    if get_origin(annotation) in (Union, UnionType):
        return plain_type(next(part for part in parts if part is not type(None)))
    return annotation


TEXTS = ("prompt", "negative_prompt")
RANGES: Mapping[str, tuple[float, float]] = {
    name: (public.low, public.high)
    for name, found in GenerateRequest.model_fields.items()
    for public in found.metadata
    if isinstance(public, Public) and name not in TEXTS
}


@dataclass(frozen=True, slots=True)
class PublicLimits:
    """What the doors take, both ends included, and what a request that names nothing gets.

    `RANGES` hold for every operator; `resolutions` (the square sizes of `/api/predict/`), `side`, `max_pixels` and
    `defaults` (fields with a default of the operator's) are theirs to set.
    """

    resolutions: tuple[int, ...] = RESOLUTIONS
    side: tuple[int, int] = SIDES
    max_pixels: int = MAX_PIXELS
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def read(self, values: Mapping[str, Any]) -> GenerateRequest:
        """The job that `values` describe, within the public limits. Raises `InvalidRequest` with the field's name."""
        for name in TEXTS:  # before its characters are looked at one by one
            _refuse_long(name, values.get(name))
        try:
            return self.check(GenerateRequest.model_validate({**self.defaults, **values}))
        except ValidationError as error:
            raise self._refused(refusals(error)[0]) from None

    def changed(self, request: GenerateRequest, **changes: Any) -> GenerateRequest:
        """The same job with some fields changed, checked as a new one: limits may be narrower than they were."""
        return self.read(dict(request) | changes)

    def check(self, request: GenerateRequest) -> GenerateRequest:
        """The request; raises `InvalidRequest` that names the first field outside the public limits."""
        for name in TEXTS:
            _refuse_long(name, getattr(request, name))
        if not request.prompt:
            raise InvalidRequest(f"prompt is empty; 1 to {MAX_PROMPT} characters are wanted", field="prompt")
        for name in (*RANGES, "width", "height"):
            self.check_number(name, getattr(request, name))
        pixels = request.width * request.height
        if pixels > self.max_pixels:
            said = f"{request.width}x{request.height} has {pixels} pixels; at most {self.max_pixels} are taken"
            raise InvalidRequest(said, field="size")
        return request

    def range(self, name: str) -> tuple[float, float]:
        """The public range of a number, both ends included."""
        return self.side if name in ("width", "height") else RANGES[name]

    def check_number(self, name: str, value: float | None) -> None:
        """Raise `InvalidRequest` for a number outside its public range; None stands for one that was left out."""
        low, high = self.range(name)
        if value is not None and not low <= value <= high:
            said = f"{name} is {short(value)}; {short(low)} to {short(high)} is wanted"
            raise InvalidRequest(said, field="size" if name in ("width", "height") else name)

    def _refused(self, refusal: Refusal) -> InvalidRequest:
        """Outside any engine's range is outside the public one, which is what the sentence names."""
        if refusal.is_out_of_range and isinstance(refusal.received, int | float):
            self.check_number(refusal.field, refusal.received)
        field = GenerateRequest.model_fields.get(refusal.field)
        nullable = field is not None and type(None) in get_args(field.annotation)
        return InvalidRequest(refusal.words(nullable=nullable), field=refusal.field)


def _refuse_long(name: str, text: object) -> None:
    if isinstance(text, str) and len(text.strip()) > MAX_PROMPT:
        said = f"{name} has {len(text.strip())} characters; at most {MAX_PROMPT} are taken"
        raise InvalidRequest(said, field=name)
