"""The photo field: Gradio's, but the bytes are read by `i2v.images`, with all its limits, and by nothing else."""

from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from i2v.errors import InvalidImage
from i2v.images import decode


class Photo(gr.Image):
    """An image field whose value in events is the path of the uploaded file, never opened by Gradio itself."""

    is_template = True  # Gradio's mark for a variant of a component that uses the component's own frontend

    def preprocess(self, payload: Any) -> str | None:
        """The path inside the upload folder (checked by Gradio before), or None; a data URL does not count."""
        return None if payload is None else payload.path


def read_photo(path: str | None, max_pixels: int) -> Image.Image | None:
    """Upright RGB, or None when there is none. Raises `InvalidImage`, also when the upload is no longer there."""
    if path is None:
        return None
    try:
        data = Path(path).read_bytes()
    except OSError:
        raise InvalidImage("the photo is no longer on the server; choose it again", field="image") from None
    return decode(data, max_pixels=max_pixels)
