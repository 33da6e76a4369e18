"""The photo of a job as the table holds it: every attempt of the job runs on exactly this picture."""

import io

from PIL import Image

STORED_SIDE = 2560  # px; a larger photo is stored reduced: twice what the largest video shows of it


def normalise(image: Image.Image) -> Image.Image:
    """A copy in RGB, at most `STORED_SIDE` px on its longer side."""
    picture = image.convert("RGB")
    if max(picture.size) > STORED_SIDE:
        picture.thumbnail((STORED_SIDE, STORED_SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return picture


def decode_png(data: bytes) -> Image.Image:
    """The stored photo, RGB."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        return picture.convert("RGB")
