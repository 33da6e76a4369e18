"""`GenerateRequest`: the one validated, frozen description of a job. Every dialect is read into it at the door.

It checks what any engine needs (types, finite numbers, sizes in multiples of 8). The narrower public ranges of the
HTTP contract are `PublicLimits`, applied by the dialect readers; tests and the engine also run smaller jobs.
"""

import secrets
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from i2v.errors import InvalidRequest

Preset = Literal["exact", "fast", "turbo"]
Fit = Literal["crop", "pad"]

MAX_SEED = 2**53 - 1  # every JSON reader keeps it exact; torch takes it as it is
MAX_PROMPT = 2000  # characters, after trimming


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


class GenerateRequest(BaseModel):
    """One job. Width and height in pixels (multiples of 8), `fps` the file's rate, `motion_fps` the model's condition.

    `negative_prompt` None means the model's conventional one. `seed` None is drawn before the job is queued.
    `guidance_scale` 1.0 turns guidance off. `fit` says how a photo of another shape reaches the size: `crop` cuts the
    centre, `pad` adds borders.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    prompt: str
    negative_prompt: str | None = None
    width: Annotated[int, Field(ge=8, le=4096, multiple_of=8)] = 512
    height: Annotated[int, Field(ge=8, le=4096, multiple_of=8)] = 512
    num_frames: Annotated[int, Field(ge=1, le=128)] = 16
    fps: Annotated[int, Field(ge=1, le=60)] = 8
    motion_fps: Annotated[int, Field(ge=1, le=60)] = 16
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    guidance_scale: Annotated[float, Field(ge=1.0, le=50.0, allow_inf_nan=False)] = 9.0
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    preset: Preset = "exact"
    fit: Fit = "crop"

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _text(cls, value: str | None) -> str | None:
        return None if value is None else clean_text(value)

    def with_seed(self) -> Self:
        """The same job with a seed: its own, or one drawn now."""
        return self if self.seed is not None else self.model_copy(update={"seed": draw_seed()})


@dataclass(frozen=True, slots=True)
class PublicLimits:
    """The contract's ranges, both ends included. `resolutions` are the square sizes of `/api/predict/`."""

    resolutions: tuple[int, ...] = (256, 512, 768)
    num_frames: tuple[int, int] = (8, 32)
    fps: tuple[int, int] = (4, 24)
    motion_fps: tuple[int, int] = (1, 32)
    steps: tuple[int, int] = (10, 100)
    guidance_scale: tuple[float, float] = (1.0, 20.0)
    side: tuple[int, int] = (128, 1280)  # free sizes
    max_pixels: int = 1280 * 768

    def check(self, request: GenerateRequest) -> GenerateRequest:
        """Return the request; raise `InvalidRequest` naming the first field that is outside its public range."""
        for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt or "")):
            if len(text) > MAX_PROMPT:
                raise InvalidRequest(f"{name} has {len(text)} characters; at most {MAX_PROMPT} are taken", field=name)
        if not request.prompt:
            raise InvalidRequest(f"prompt is empty; 1 to {MAX_PROMPT} characters are wanted", field="prompt")
        ranges: dict[str, tuple[float, float]] = {
            "num_frames": self.num_frames,
            "fps": self.fps,
            "motion_fps": self.motion_fps,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "width": self.side,
            "height": self.side,
        }
        for name, (low, high) in ranges.items():
            value = getattr(request, name)
            if not low <= value <= high:
                raise InvalidRequest(f"{name} is {value}; {low} to {high} is wanted", field=name)
        if request.width * request.height > self.max_pixels:
            raise InvalidRequest(
                f"{request.width}x{request.height} has {request.width * request.height} pixels; "
                f"at most {self.max_pixels} are taken",
                field="width",
            )
        return request
