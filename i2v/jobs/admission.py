"""What is stored of a photo, and when two submissions are the same one."""

import hashlib
import io

from PIL import Image

from i2v.request import GenerateRequest

STORED_SIDE = 2560  # px; a larger photo is stored reduced: twice what the largest video shows of it


def encode_png(image: Image.Image) -> bytes:
    """RGB PNG, at most `STORED_SIDE` px on its longer side. Every attempt of a job runs on exactly this picture."""
    picture = image.convert("RGB")
    if max(picture.size) > STORED_SIDE:
        picture.thumbnail((STORED_SIDE, STORED_SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def decode_png(data: bytes) -> Image.Image:
    """The stored photo, RGB."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        return picture.convert("RGB")


def fingerprint(request: GenerateRequest, png: bytes, extends: str | None) -> str:
    """SHA-256 of everything the caller chose. `request` is as it came in: a seed drawn here is no choice."""
    digest = hashlib.sha256(request.model_dump_json().encode())
    digest.update(f"\0{extends}\0".encode())
    digest.update(png)
    return digest.hexdigest()
