"""The named dialect of `/v1/videos`: JSON or a form becomes a `GenerateRequest` and a photo.

Strict: an unknown field or a wrong type is refused by name. Knows no jobs and writes no answers.
"""

import re
from dataclasses import dataclass
from inspect import isclass
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from i2v.errors import BadRequest, InvalidImage, InvalidRequest, Refusal, json_type, refusals, short
from i2v.images import place
from i2v.jobs.photo import TakenPhoto, take
from i2v.notes import say
from i2v.request import MAX_PROMPT, GenerateRequest, Public, PublicLimits, default_of, parse_size, plain_type
from i2v.server.answers import invalid
from i2v.server.body import parse_json, read_json, refuse_compressed, whole
from i2v.settings import Settings

MAX_FORM_FIELDS = 40
MAX_SECONDS = 3600

_INTEGER = re.compile(r"-?[0-9]{1,16}", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,9}(?:\.[0-9]{1,9})?", re.ASCII)

Prompt = Annotated[str, Public(1, MAX_PROMPT)]


def _number_or_text(value: object) -> object:
    """One refusal in place of one for each type that a length may have."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError('must be a number or its digits as a text, such as "4"')
    return value


Seconds = Annotated[str | int | float, BeforeValidator(_number_or_text)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ImageReference(_Body):
    """A photo inside JSON."""

    image_url: str = Field(description="data:image/<type>;base64,...; addresses are not fetched")


class NewVideo(_Body):
    """The fields of `CREATE_VIDEO` that have a meaning of their own in this dialect."""

    prompt: Prompt = Field(description=GenerateRequest.model_fields["prompt"].description)
    input_reference: ImageReference | None = Field(None, description="the photo the video starts from")
    model: str | None = Field(None, description="the loaded model's name, or nothing")
    seconds: Seconds | None = Field(None, description="length of the clip, instead of num_frames: seconds x fps")
    size: str | None = Field(None, description="WIDTHxHEIGHT in pixels, multiples of 8")
    webhook: str | None = Field(None, max_length=2000, description="address that is told when the job has ended")


def _or_nothing(field: FieldInfo) -> Any:
    """A field of the job as a caller may send it: a value of its type, or nothing; `PublicLimits` checks its range."""
    ranges = [mark for mark in field.metadata if isinstance(mark, Public)]
    kind: Any = Annotated[field.annotation, ranges[0]] if ranges else field.annotation
    return kind | None, Field(None, description=field.description)


_REST: dict[str, Any] = {
    name: _or_nothing(field)
    for name, field in GenerateRequest.model_fields.items()
    if name not in {"width", "height", *NewVideo.model_fields}
}
# With every other field of the job: one that is added to `GenerateRequest` is taken here too.
CREATE_VIDEO = create_model(
    "CreateVideo",
    __base__=NewVideo,
    __doc__="The body of `POST /v1/videos`; in a form every value is text, and `input_reference` a file.",
    **_REST,
)


class RemixVideo(_Body):
    """The body of `POST /v1/videos/{id}/remix`."""

    prompt: Prompt = Field(description="the new prompt")


class VideoReference(_Body):
    """A finished video of this server."""

    id: str = Field(max_length=200)


class ExtendVideo(_Body):
    """The body of `POST /v1/videos/extensions`; in a form, `video` may be a file that was made here."""

    prompt: Prompt = Field(description="what should happen next")
    seconds: Seconds = Field(description="length of the new part")
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
        values = await read_json(request)
        if not isinstance(values, dict):
            raise InvalidRequest(f"the body must be an object; received {json_type(values)}")
        return Received(values)
    # A photo may come as text, so a part may be as long as the body, which the layers outside have limited.
    # The request's own `form` would keep what it has read for as long as the answer takes.
    reader = MultiPartParser(
        request.headers, request.stream(), max_files=1, max_fields=MAX_FORM_FIELDS, max_part_size=2**30
    )
    with whole():
        try:
            form = await reader.parse()
        except MultiPartException:
            raise BadRequest("the request body cannot be read") from None
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
                raise invalid(Refusal(name, "extra_forbidden", "", None))
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
        kinds = {name: plain_type(field.annotation) for name, field in model.model_fields.items()}
        values = {name: _typed(kinds.get(name), value) for name, value in values.items()}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise invalid(refusals(error)[0]) from None


def _typed(kind: Any, value: Any) -> Any:
    """A form's text as what its field holds; what does not look like it stays text, and is refused by its type."""
    if not isinstance(value, str):
        return value
    if kind is int and _INTEGER.fullmatch(value):
        return int(value)
    if kind is float and _NUMBER.fullmatch(value):
        return float(value)
    if isclass(kind) and issubclass(kind, BaseModel) and value.startswith("{"):
        return parse_json(value.encode("utf-8", "replace"))
    return value


def photo_of(received: Received, body: NewVideo, settings: Settings) -> TakenPhoto:
    """The photo, from the file or from the data URL; errors name `input_reference`."""
    if received.file is not None and body.input_reference is not None:
        raise InvalidRequest("input_reference was sent as a file and as a data URL; send one", field="input_reference")
    try:
        if received.file is not None:
            return take(received.file, max_pixels=settings.max_image_pixels)
        if body.input_reference is not None:
            return take(body.input_reference.image_url, max_pixels=settings.max_image_pixels)
    except InvalidImage as error:
        raise InvalidImage(error.message, field="input_reference") from None
    raise InvalidRequest(
        "input_reference is missing; a photo is wanted, as a file or a data URL", field="input_reference"
    )


def request_of(body: NewVideo, settings: Settings) -> GenerateRequest:
    """The job that a body describes, within the public limits."""
    values = body.model_dump(include=set(GenerateRequest.model_fields), exclude_none=True)
    if body.size is not None:
        values["width"], values["height"] = parse_size(body.size)
    if body.seconds is not None:
        values["num_frames"], values["fps"] = _length(values, body.seconds, settings.limits)
    return settings.limits.read(values)


def check_model(wanted: str | None, loaded: str | None) -> None:
    """Callers may name the model that is loaded, and no other."""
    if wanted is not None and loaded is not None and wanted not in (loaded, loaded.rpartition("/")[2]):
        raise InvalidRequest(f"this server runs the model {loaded}; leave model out, or name it", field="model")


def placement_note(photo: tuple[int, int], request: GenerateRequest) -> str:
    """How a photo of this size will be cut or padded to the video's, in a sentence."""
    return say(place(photo, (request.width, request.height), request.fit).note())


def frames_for(seconds: str | float, fps: int) -> int:
    """Whole frames in `seconds` (text or number) at `fps`."""
    return round(_seconds(seconds) * fps)


def _length(asked: dict[str, Any], wanted: str | float, limits: PublicLimits) -> tuple[int, int]:
    """Frames and fps of so many seconds. Without fps, 8 a second, or as many as a longer clip's frames allow."""
    seconds = _seconds(wanted)
    low, high = limits.range("num_frames")
    fps = asked.get("fps", int(max(limits.range("fps")[0], min(default_of("fps"), high / seconds))))
    limits.check_number("fps", fps)
    frames = round(seconds * fps)
    if not low <= frames <= high:
        raise InvalidRequest(
            f"{seconds:g} s at {fps} fps are {frames} frames; {low} to {high} are wanted "
            f"(at {fps} fps, {low / fps:g} to {high / fps:g} s)",
            field="seconds",
        )
    if asked.get("num_frames", frames) != frames:
        raise InvalidRequest(
            f"{seconds:g} s at {fps} fps are {frames} frames, but num_frames is {short(asked['num_frames'])}; "
            "send one of both",
            field="num_frames",
        )
    return frames, fps


def _seconds(value: str | float) -> float:
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        raise InvalidRequest('seconds must be a number, such as "4"', field="seconds")
    number = float(value) if isinstance(value, str) else value
    if not 0 < number <= MAX_SECONDS:
        said = f"seconds is {short(number)}; more than 0 and at most {MAX_SECONDS} is wanted"
        raise InvalidRequest(said, field="seconds")
    return float(number)
