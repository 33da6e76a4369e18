"""The photo of a job as the table holds it: every attempt of the job runs on exactly this picture."""

import io

from PIL import Image

STORED_SIDE = 2560  # px; a larger photo is stored reduced: twice what the largest video shows of it


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
    """The stored photo, RGB."""
    picture = Image.open(io.BytesIO(data), formats=("PNG",))
    picture.load()
    return picture
