"""What the command line is given: photos, videos made here, and the place a new video goes to.

Every refusal is one sentence that names the file. Knows no engine and no terminal.
"""

import errno
import secrets
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import ValidationError

from i2v import images, video
from i2v.errors import I2VError, InvalidImage, InvalidRequest, StorageFull, refusals
from i2v.request import GenerateRequest, parse_size
from i2v.settings import Settings


def read_photo(path: Path, settings: Settings) -> Image.Image:
    """The photo in a file, upright RGB. Raises `InvalidImage`."""
    if str(path).startswith(("http:", "https:")):
        raise InvalidImage("an address is not taken; download the photo and give its path", field="image")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidImage(f"the photo {path} cannot be read: {error.strerror}", field="image") from None
    return images.decode(data, max_pixels=settings.max_image_pixels)


def sized(size: object, width: int | None, height: int | None) -> tuple[int | None, int | None]:
    """Width and height from a size `WxH`, or as they are. Raises `InvalidRequest`."""
    if size is None:
        if (width is None) != (height is None):
            raise InvalidRequest("--width and --height go together", field="width")
        return width, height
    if width is not None or height is not None:
        raise InvalidRequest("give --size or --width and --height, not both", field="size")
    return parse_size(str(size).lower())


def build_request(asked: dict[str, Any], settings: Settings) -> GenerateRequest:
    """The request of the options that were given; the rest are the defaults. Raises `InvalidRequest`."""
    if not asked.get("prompt"):
        raise InvalidRequest("a prompt is missing; say what happens in the video", field="prompt")
    try:
        request = GenerateRequest.model_validate({**settings.limits.defaults, **asked})
    except ValidationError as error:
        refusal = refusals(error)[0]
        raise InvalidRequest(refusal.words(repr), field=refusal.field) from None
    if not request.prompt:
        raise InvalidRequest("the prompt is empty; say what happens in the video", field="prompt")
    return request


def read_settings(path: Path) -> GenerateRequest:
    """The request that a video made here holds. Raises `InvalidRequest`."""
    stored = _metadata(path).get("request")
    if stored is None:
        raise InvalidRequest(f"{path} holds no settings; only videos made by i2v do", field="video")
    try:
        return GenerateRequest.model_validate_json(stored)
    except ValidationError:
        raise InvalidRequest(f"the settings in {path} are of another version or damaged", field="video") from None


def first_frame(path: Path) -> Image.Image:
    """The first frame of a video, which is nearly the photo it was made from. Raises `InvalidRequest`."""
    return Image.fromarray(video.read_frames(path, max_frames=1)[0])


def describe_video(path: Path) -> dict[str, object]:
    """What a video is and the settings it was made with, for `i2v inspect`; each fact once. Raises `InvalidRequest`.

    A setting (`request.*`) is left out where it has no value or the file itself shows it, and what the file was marked
    with where a setting says the same; so a guidance scale that the model kept in its range stays beside the one asked.
    """
    metadata = _metadata(path)
    facts = video.probe(path)
    found: dict[str, object] = {
        "file": str(path),
        "frames": facts.frames,
        "fps": facts.fps,
        "size": f"{facts.width}x{facts.height}",
        "codec": facts.codec,
        "pix_fmt": facts.pix_fmt,
    }
    settings = video.read_flat(metadata.pop("request", "{}"))
    if settings is None:
        return found | metadata | {"request": "damaged"}
    seen = {"num_frames": facts.frames, "fps": facts.fps, "width": facts.width, "height": facts.height}
    found |= {name: text for name, text in metadata.items() if text != str(settings.get(name))}
    return found | {
        f"request.{name}": value
        for name, value in settings.items()
        if value is not None and not (name in seen and seen[name] == value)
    }


def job_facts(found: dict[str, Any]) -> dict[str, object]:
    """The server's object of a job as people read it: what is known, local times, one value a line."""
    facts: dict[str, object] = {}
    for name, value in found.items():
        if name == "object" or value in (None, [], {}):
            continue
        if name.endswith("_at"):
            facts[name] = f"{datetime.fromtimestamp(value).astimezone():%Y-%m-%d %H:%M:%S}"
        elif isinstance(value, dict):
            facts |= {f"{name}.{inner}": _short(one) for inner, one in value.items()}
        elif isinstance(value, list):
            facts[name] = " ".join(str(one) for one in value)
        else:
            facts[name] = _short(value)
    return facts


def check_target(path: Path) -> Path:
    """The path of a video to be written, looked at before minutes of work. Raises `I2VError` when it cannot be."""
    if path.suffix.lower() != ".mp4":
        raise InvalidRequest(f"{path} does not end in .mp4; only MP4 is written", field="out")
    return check_writable(path)


def check_writable(path: Path) -> Path:
    """The path of a file to be written, whatever is there now kept. Raises `I2VError` when it cannot be."""
    if path.is_dir():
        raise InvalidRequest(f"{path} is a folder", field="out")
    if not path.parent.is_dir():
        raise InvalidRequest(f"there is no folder {path.parent}", field="out")
    trial = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part")
    try:
        trial.touch()
        trial.unlink()
    except OSError as error:
        kind = StorageFull if error.errno == errno.ENOSPC else I2VError
        raise kind(f"{path.parent} cannot be written to: {error.strerror}") from None
    return path


def _metadata(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise InvalidRequest(f"there is no file {path}", field="video")
    return video.read_metadata(path)


def _short(value: object) -> object:
    return round(value, 3) if isinstance(value, float) else value
