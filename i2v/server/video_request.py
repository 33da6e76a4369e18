"""The named dialect of `/v1/videos`: JSON or a form becomes a `GenerateRequest` and a photo.

Strict: an unknown field or a wrong type is refused by name. Knows no jobs and writes no answers.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Request
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile

from i2v.errors import InvalidImage, InvalidRequest
from i2v.images import decode, decode_data_url, place
from i2v.request import MAX_SEED, Fit, GenerateRequest, Preset
from i2v.server.answers import invalid, json_type, unknown_field
from i2v.server.body import parse_json, read_body, refuse_compressed, whole
from i2v.settings import Settings

DEFAULT_FRAMES, DEFAULT_FPS = 16, 8
MAX_FORM_FIELDS = 40
MAX_SECONDS = 3600

_INTEGERS = frozenset({"num_frames", "fps", "motion_fps", "steps", "seed"})
_NUMBERS = frozenset({"guidance_scale"})
_OBJECTS = frozenset({"input_reference", "video"})

_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", re.ASCII)
_INTEGER = re.compile(r"-?[0-9]{1,16}", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,9}(?:\.[0-9]{1,9})?", re.ASCII)

# Numbers far beyond every range are stopped here, so that no message has to write out 4000 digits.
_Int = Annotated[int, Field(ge=-MAX_SEED, le=MAX_SEED)]
_Float = Annotated[float, Field(allow_inf_nan=False)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ImageReference(_Body):
    """A photo inside JSON."""

    image_url: str = Field(description="data:image/<type>;base64,...; addresses are not fetched")


class CreateVideo(_Body):
    """The body of `POST /v1/videos`; in a form every value is text, and `input_reference` a file."""

    prompt: str = Field(description="what should happen, in English", max_length=200_000)
    input_reference: ImageReference | None = Field(None, description="the photo the video starts from")
    model: str | None = Field(None, description="the loaded model's name, or nothing")
    seconds: str | _Int | _Float | None = Field(None, description="length; seconds x fps gives the frames")
    size: str | None = Field(None, description="WIDTHxHEIGHT in pixels, multiples of 8; 512x512 when left out")
    num_frames: _Int | None = Field(None, description="frames, instead of seconds; 16 when neither is given")
    fps: _Int | None = Field(None, description="frames a second of the file; 8 when left out")
    motion_fps: _Int | None = Field(None, description="how fast the model lets things move")
    steps: _Int | None = Field(None, description="denoising steps")
    guidance_scale: _Float | None = Field(None, description="how closely the prompt is followed")
    negative_prompt: str | None = Field(None, description="what should not be seen", max_length=200_000)
    seed: _Int | None = Field(None, description="the same seed gives the same video; drawn when left out")
    preset: Preset | None = Field(None, description="exact, fast or turbo")
    fit: Fit | None = Field(None, description="how a photo of another shape gets the size: crop or pad")
    webhook: str | None = Field(None, max_length=2000, description="address that is told when the job has ended")


class RemixVideo(_Body):
    """The body of `POST /v1/videos/{id}/remix`."""

    prompt: str = Field(description="the new prompt", max_length=200_000)


class VideoReference(_Body):
    """A finished video of this server."""

    id: str = Field(max_length=200)


class ExtendVideo(_Body):
    """The body of `POST /v1/videos/extensions`; in a form, `video` may be a file that was made here."""

    prompt: str = Field(description="what should happen next", max_length=200_000)
    seconds: str | _Int | _Float = Field(description="length of the new part")
    video: VideoReference | None = Field(None, description="the finished video to continue")


@dataclass(frozen=True, slots=True)
class Received:
    """A body as it came: plain values by field, at most one uploaded file, and whether all values are text."""

    values: dict[str, Any]
    file: bytes | None = None
    is_form: bool = False


_Model = TypeVar("_Model", bound=_Body)


async def receive(request: Request, file_field: str | None) -> Received:
    """Read a JSON object, or a form whose one file is `file_field` (None takes none).

    `a[b]` in a form is `{"a": {"b": ...}}`.
    """
    refuse_compressed(request)
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        values = parse_json(await read_body(request))
        if not isinstance(values, dict):
            raise InvalidRequest(f"the body must be an object; received {json_type(values)}")
        return Received(values)
    # A photo may come as text, so a part may be as long as the body, which the layers outside have limited.
    with whole():
        form = await request.form(max_files=1, max_fields=MAX_FORM_FIELDS, max_part_size=2**30)
    try:
        values = _plain(form, file_field)
        file = form.get(file_field) if file_field else None
        return Received(values, await file.read() if isinstance(file, UploadFile) else None, is_form=True)
    finally:
        await form.close()


def _plain(form: FormData, file_field: str | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if file_field is None:
                raise unknown_field(name)
            if name != file_field:
                raise InvalidRequest(f"the file must be sent as {file_field}", field=file_field)
            continue
        outer, bracket, inner = name.partition("[")
        target, key = (values.setdefault(outer, {}), inner.removesuffix("]")) if bracket else (values, name)
        if not isinstance(target, dict) or key in target:
            raise InvalidRequest("a field of the form was sent twice")
        target[key] = value
    return values


def parse(model: type[_Model], received: Received) -> _Model:
    """The checked body. In a form, digits count as numbers and JSON text as objects."""
    values = received.values
    if received.is_form:
        values = {name: _typed(name, value) for name, value in values.items()}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise invalid(error) from None


def _typed(name: str, value: Any) -> Any:
    """A form's text as what its field holds; what does not look like it stays text, and is refused by its type."""
    if not isinstance(value, str):
        return value
    if name in _INTEGERS and _INTEGER.fullmatch(value):
        return int(value)
    if name in _NUMBERS and _NUMBER.fullmatch(value):
        return float(value)
    if name in _OBJECTS and value.startswith("{"):
        return parse_json(value.encode("utf-8", "replace"))
    return value


def photo_of(received: Received, body: CreateVideo, settings: Settings) -> Image.Image:
    """The photo, from the file or from the data URL; errors name `input_reference`."""
    if received.file is not None and body.input_reference is not None:
        raise InvalidRequest("input_reference was sent as a file and as a data URL; send one", field="input_reference")
    try:
        if received.file is not None:
            return decode(received.file, max_pixels=settings.max_image_pixels)
        if body.input_reference is not None:
            return decode_data_url(body.input_reference.image_url, max_pixels=settings.max_image_pixels)
    except InvalidImage as error:
        raise InvalidImage(error.message, field="input_reference") from None
    raise InvalidRequest(
        "input_reference is missing; a photo is wanted, as a file or a data URL", field="input_reference"
    )


def request_of(body: CreateVideo, settings: Settings) -> GenerateRequest:
    """The job that a body describes, within the public ranges."""
    width, height = _size(body.size)
    frames, fps = _length(body, settings)
    values: dict[str, Any] = {
        "prompt": body.prompt.strip(),
        "negative_prompt": body.negative_prompt,
        "width": width,
        "height": height,
        "num_frames": frames,
        "fps": fps,
        "seed": body.seed,
        "preset": body.preset or settings.default_preset,
    }
    for name in ("motion_fps", "steps", "guidance_scale", "fit"):
        if getattr(body, name) is not None:
            values[name] = getattr(body, name)
    return checked(values, settings)


def checked(values: dict[str, Any], settings: Settings) -> GenerateRequest:
    """A `GenerateRequest` of `values`. The public ranges are looked at first, because their words name them."""
    try:
        settings.limits.check(GenerateRequest.model_construct(**values))
    except InvalidRequest as error:
        field = "size" if error.field in ("width", "height") else error.field
        raise InvalidRequest(error.message, field=field) from None
    try:
        return GenerateRequest(**values)
    except ValidationError as error:
        raise invalid(error) from None


def check_model(wanted: str | None, loaded: str | None) -> None:
    """Callers may name the model that is loaded, and no other."""
    if wanted is not None and loaded is not None and wanted not in (loaded, loaded.rpartition("/")[2]):
        raise InvalidRequest(f"this server runs the model {loaded}; leave model out, or name it", field="model")


def placement_note(photo: Image.Image, request: GenerateRequest) -> str:
    """How the photo will be cut or padded to the size, in a sentence."""
    return place(photo.size, (request.width, request.height), request.fit).describe()


def frames_for(seconds: str | float, fps: int) -> int:
    """Whole frames in `seconds` (text or number) at `fps`."""
    return round(_seconds(seconds) * fps)


def _length(body: CreateVideo, settings: Settings) -> tuple[int, int]:
    """Frames and fps. Without fps, a clip too long for 8 a second gets as many as its frames allow."""
    if body.seconds is None:
        frames = DEFAULT_FRAMES if body.num_frames is None else body.num_frames
        return frames, DEFAULT_FPS if body.fps is None else body.fps
    limits, seconds = settings.limits, _seconds(body.seconds)
    fps = body.fps
    if fps is None:
        fps = max(limits.fps[0], min(DEFAULT_FPS, int(limits.num_frames[1] / seconds)))
    if not limits.fps[0] <= fps <= limits.fps[1]:
        raise InvalidRequest(f"fps is {fps}; {limits.fps[0]} to {limits.fps[1]} is wanted", field="fps")
    frames = round(seconds * fps)
    low, high = limits.num_frames
    if not low <= frames <= high:
        raise InvalidRequest(
            f"{seconds:g} s at {fps} fps are {frames} frames; {low} to {high} are wanted "
            f"(at {fps} fps, {low / fps:g} to {high / fps:g} s)",
            field="seconds",
        )
    if body.num_frames is not None and body.num_frames != frames:
        raise InvalidRequest(
            f"{seconds:g} s at {fps} fps are {frames} frames, but num_frames is {body.num_frames}; send one of both",
            field="num_frames",
        )
    return frames, fps


def _seconds(value: str | float) -> float:
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        raise InvalidRequest('seconds must be a number, such as "4"', field="seconds")
    seconds = float(value)
    if not 0 < seconds <= MAX_SECONDS:
        raise InvalidRequest(
            f"seconds is {seconds:g}; more than 0 and at most {MAX_SECONDS} is wanted", field="seconds"
        )
    return seconds


def _size(text: str | None) -> tuple[int, int]:
    if text is None:
        return 512, 512
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidRequest('size must be WIDTHxHEIGHT in pixels, such as "1280x720"', field="size")
    width, height = int(match[1]), int(match[2])
    if width % 8 or height % 8:
        near = f"{max(8, round(width / 8) * 8)}x{max(8, round(height / 8) * 8)}"
        raise InvalidRequest(f"size is {width}x{height}; multiples of 8 are wanted, such as {near}", field="size")
    return width, height
