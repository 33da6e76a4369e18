"""The photo of a job as the table holds it: every attempt of the job runs on exactly this picture."""

import io
from dataclasses import dataclass

from PIL import Image

from i2v.decoding_room import DECODING
from i2v.errors import NotFound
from i2v.images import decode, decode_data_url

STORED_SIDE = 2560  # px; a larger photo is stored reduced: twice what the largest video shows of it


@dataclass(frozen=True, slots=True)
class TakenPhoto:
    """A photo as a job will have it, RGB, and the `size` in pixels that it came with."""

    picture: Image.Image
    size: tuple[int, int]


def take(source: bytes | str, *, max_pixels: int) -> TakenPhoto:
    """A photo of the bytes of its file or of a data URL. The whole of it lives in the decoding room alone; stay in
    there (`with DECODING:`) until the job is prepared, so that no more than two such pictures are held.

    Raises `InvalidImage`.
    """
    with DECODING:
        if isinstance(source, str):
            whole = decode_data_url(source, max_pixels=max_pixels)
        else:
            whole = decode(source, max_pixels=max_pixels)
        return TakenPhoto(reduce(whole), whole.size)


def as_taken(picture: Image.Image) -> TakenPhoto:
    """A picture that is here already: the last frame of a video, the photo of another job."""
    return TakenPhoto(picture, picture.size)


def reduce(photo: Image.Image) -> Image.Image:
    """An RGB photo itself, or where its longer side is over `STORED_SIDE` px a copy that is so long."""
    longer = max(photo.size)
    if longer <= STORED_SIDE:
        return photo
    width, height = (max(1, round(side * STORED_SIDE / longer)) for side in photo.size)
    return photo.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def encode_png(picture: Image.Image) -> bytes:
    """A PNG of an RGB picture, packed lightly: a caller waits for it."""
    data = io.BytesIO()
    picture.save(data, "PNG", compress_level=1)
    return data.getvalue()


def decode_png(data: bytes) -> Image.Image:
    """The stored photo, RGB. Raises `NotFound` for bytes that are no photo."""
    try:
        picture = Image.open(io.BytesIO(data), formats=("PNG",))
        picture.load()
        return picture
    except (OSError, ValueError, SyntaxError):  # SyntaxError: how Pillow calls a broken chunk
        raise NotFound("the photo that was stored with this job cannot be read") from None
