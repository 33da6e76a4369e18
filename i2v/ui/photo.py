"""The photo of the form: an uploaded file that `i2v.images` reads, with all its limits, and nothing else opens.

Gradio's own reading of images would open any format and any size, so events take the field's raw value: a dictionary
whose `path` Gradio has checked to lie in its upload folder.
"""

from pathlib import Path
from typing import Any

from PIL import Image

from i2v.errors import InvalidImage
from i2v.images import decode


def read_photo(value: Any, max_pixels: int) -> Image.Image | None:
    """Upright RGB, or None when there is none. Raises `InvalidImage`, also when the upload is no longer there."""
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str):
        return None
    try:
        data = Path(path).read_bytes()
    except OSError:
        raise InvalidImage("the photo is no longer on the server; choose it again", field="image") from None
    return decode(data, max_pixels=max_pixels)
