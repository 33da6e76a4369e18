"""Bytes or a data URL -> an upright RGB photo, with every limit; and the one place that decides crop and padding.

Knows nothing of HTTP, jobs or tensors, opens no file and no connection. Called by every door before a job is queued,
and by the engine for the fit. Messages say what was received and what is accepted, and never repeat the caller's input.
"""

import base64
import binascii
import io
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from i2v.decoding_room import DECODING
from i2v.errors import InvalidImage, json_type
from i2v.notes import Note

log = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP")  # anything else Pillow could open is more attack surface than use
MIN_SIDE = 16  # pixels; smaller is a tracking dot or a mistake, and the model sees nothing in it
MAX_JPEG_SCANS = 40  # each scan is a pass over the whole picture; real progressive files have about ten
MAX_PARTS = (
    20_000  # PNG chunks, JPEG segments: a million tiny ones take Pillow 10 s; real photos have at most thousands
)
MAX_ICC_CHUNKS = 4  # PNG allows one; Pillow inflates each of them

BAND_PIXELS = 2_000_000  # a large photo's colours are converted so many at a time: each form of them is a copy

_PREFIX = re.compile(r"\s*data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w.-]+=[\w.+-]+)*;base64,", re.IGNORECASE | re.ASCII)
_WANTED = "send it as data:image/<type>;base64,<data> (PNG, JPEG or WebP)"


def decode_data_url(value: object, *, max_pixels: int) -> Image.Image:
    """Read `data:image/<type>;base64,...` as `decode` does; the stated type is not trusted, the bytes decide.

    Anything else (an address, a path, a dictionary, bare base64) raises `InvalidImage` whose text contains
    `Invalid image input`; nothing is fetched or opened.
    """
    if not isinstance(value, str):
        raise _invalid(f"Invalid image input: {json_type(value)} came; {_WANTED}")
    prefix = _PREFIX.match(value[:200])
    if prefix is None:
        raise _invalid(f"Invalid image input: {_what_string(value)}; {_WANTED}")
    media_type = (prefix["type"] or "").lower()
    if not media_type.startswith("image/"):
        raise _invalid(f"Invalid image input: the data URL is not of type image/...; {_WANTED}")
    text = "".join(value[prefix.end() :].split())  # MIME encoders break the line every 76 characters
    _refuse_kind(_from_base64(text[:1024]))  # before megabytes are decoded
    return decode(_from_base64(text), max_pixels=max_pixels)


def decode(data: bytes, *, max_pixels: int) -> Image.Image:
    """An upright RGB image of PNG, JPEG or WebP bytes (of an animation, the first frame).

    EXIF orientation is applied, an embedded colour profile converted to sRGB, transparency composited on white, 16-bit
    grey scaled by 1/257. The size is read from the header and refused (`InvalidImage`) before anything is decoded
    when it has more than `max_pixels` pixels or a side under 16. The result carries no metadata.
    """
    _refuse_kind(data)
    _refuse_slow(data)
    try:
        with DECODING as room, Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, max_pixels)
            room.grow(image.width * image.height)
            image.load()
            try:
                ImageOps.exif_transpose(image, in_place=True)
            except MemoryError:
                raise
            except Exception:  # a broken EXIF block: the photo is good, so it is shown as it is stored
                log.debug("the photo's EXIF block cannot be read")
            return to_rgb(image)
    except InvalidImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _invalid(f"the photo has too many pixels; at most {max_pixels} are taken") from None
    except Exception:  # Pillow's plugins raise anything on broken input: SyntaxError, struct.error, OverflowError ...
        raise _invalid("the photo cannot be read: its data is damaged, incomplete or too large when unpacked") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """An RGB copy of an image of any mode: transparency on white, wide greys scaled to 8 bits, profile to sRGB."""
    if image.width * image.height <= BAND_PIXELS or image.mode in ("I", "F"):  # the last two by their largest number
        return _band_to_rgb(image)
    rgb = Image.new("RGB", image.size)
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(image.height, top + rows)))
        rgb.paste(_band_to_rgb(band), (0, top))
    return rgb


def _band_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        rgb = _wide_grey(image, image.info.get("transparency"))
    elif image.mode in ("I", "F"):
        rgb = _number_grey(image)
    elif image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        rgb = _on_white(image)
    else:
        rgb = _to_srgb(image) or image.convert("RGB")
    rgb.info = {}
    return rgb


def jpeg_url(pixels: NDArray[np.uint8]) -> str:
    """A small RGB picture (h, w, 3) as a data URL, so that a preview leaves no file behind."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


@dataclass(frozen=True, slots=True)
class Placement:
    """How a photo came into the size of the video. Boxes are (left, top, right, bottom).

    `box` is the part of the photo that is used, in the photo's pixels (fractions of a pixel included); `inside` is
    where it lies in the video, in the video's pixels: all of it for `crop`, less than that when borders were added.
    """

    source: tuple[int, int]
    size: tuple[int, int]
    fit: Literal["crop", "pad"]
    box: tuple[float, float, float, float]
    inside: tuple[int, int, int, int]

    @property
    def is_whole(self) -> bool:
        """Whether the whole photo is in the picture and fills it (a pixel of rounding aside)."""
        left, top, right, bottom = self.box
        cut = max(left, top, self.source[0] - right, self.source[1] - bottom)
        return cut <= 1 and self.inside == (0, 0, *self.size)

    def note(self) -> Note:
        """What was done to the photo, sizes in pixels."""
        if self.source == self.size:
            return Note("photo_unchanged", {"video": self.size})
        if self.is_whole:
            return Note("photo_scaled", {"photo": self.source, "video": self.size})
        if self.fit == "pad":
            inside = (self.inside[2] - self.inside[0], self.inside[3] - self.inside[1])
            return Note("photo_padded", {"photo": self.source, "inside": inside, "video": self.size})
        left, top, right, bottom = self.box
        middle = (round(right - left), round(bottom - top))
        return Note("photo_cropped", {"photo": self.source, "middle": middle, "video": self.size})


def fit_image(
    image: Image.Image, width: int, height: int, fit: Literal["crop", "pad"] = "crop"
) -> tuple[Image.Image, Placement]:
    """The photo at exactly `width` x `height` pixels, and how it got there.

    `crop` fills the size and cuts the middle out of the longer side; `pad` shows all of the photo with black borders.
    The scaled side is rounded up, so the crop never reaches beyond the photo (the field's pipelines round it down, and
    a black row enters the model). Shrinking averages areas, as the model was trained; enlarging is Lanczos.
    """
    placement = place(image.size, (width, height), fit)
    source, box, inside = placement.source, placement.box, placement.inside
    target = (inside[2] - inside[0], inside[3] - inside[1])
    if box == (0, 0, *source) and target == source:
        scaled = image.copy()
    else:
        shrinks = box[2] - box[0] >= target[0] and box[3] - box[1] >= target[1]
        kernel = Image.Resampling.BOX if shrinks else Image.Resampling.LANCZOS
        scaled = image.resize(target, kernel, box=box)
    if target != (width, height):
        canvas = Image.new("RGB", (width, height))
        canvas.paste(scaled, inside[:2])
        scaled = canvas
    return scaled, placement


def place(source: tuple[int, int], size: tuple[int, int], fit: Literal["crop", "pad"] = "crop") -> Placement:
    """Where `fit_image` would cut or pad a photo of `source` pixels, without touching a pixel."""
    box, inside = _crop_box(source, size) if fit == "crop" else _pad_box(source, size)
    return Placement(source, size, fit, box, inside)


def _crop_box(
    source: tuple[int, int], size: tuple[int, int]
) -> tuple[tuple[float, float, float, float], tuple[int, int, int, int]]:
    """The source box of: scale so that both sides cover, the longer rounded up, then cut the middle in whole pixels."""
    (wide, high), (width, height) = source, size
    if wide * height >= high * width:  # the photo is wider than the video: its height decides
        covered = (-(-wide * height // high), height)
    else:
        covered = (width, -(-high * width // wide))
    left, top = (covered[0] - width) // 2, (covered[1] - height) // 2
    per_x, per_y = wide / covered[0], high / covered[1]
    box = (
        left * per_x,
        top * per_y,
        min(float(wide), (left + width) * per_x),
        min(float(high), (top + height) * per_y),
    )
    return box, (0, 0, width, height)


def _pad_box(
    source: tuple[int, int], size: tuple[int, int]
) -> tuple[tuple[float, float, float, float], tuple[int, int, int, int]]:
    (wide, high), (width, height) = source, size
    if wide * height >= high * width:
        shown = (width, max(1, round(high * width / wide)))
    else:
        shown = (max(1, round(wide * height / high)), height)
    left, top = (width - shown[0]) // 2, (height - shown[1]) // 2
    return (0.0, 0.0, float(wide), float(high)), (left, top, left + shown[0], top + shown[1])


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if min(width, height) < MIN_SIDE:
        raise _invalid(f"the photo is {width}x{height} pixels; each side must have at least {MIN_SIDE}")
    if width * height > max_pixels:
        raise _invalid(f"the photo is {width}x{height} pixels, {width * height} in all; at most {max_pixels} are taken")


def _to_srgb(image: Image.Image) -> Image.Image | None:
    """The image converted by its embedded colour profile; None when it has none, or an unusable one."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "L", "CMYK"):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _on_white(image: Image.Image) -> Image.Image:
    try:
        rgba = image.convert("RGBA")
    except (ValueError, TypeError):  # a transparent colour that the mode cannot hold: there is nothing to see through
        opaque = image.copy()
        opaque.info.pop("transparency", None)
        return opaque.convert("RGB")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _wide_grey(image: Image.Image, transparent: object) -> Image.Image:
    """16-bit grey to 8 bits: 65535 / 257 = 255. Pillow's own conversion clips at 255 and gives a white picture."""
    wide = np.asarray(image).astype(np.uint32)
    grey = ((wide + 128) // 257).astype(np.uint8)
    if isinstance(transparent, int):
        grey[wide == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _number_grey(image: Image.Image) -> Image.Image:
    """I (32-bit) and F (float) grey to 8 bits: F within 0..1 counts as 0..1, above 255 as 16-bit, else as 8-bit."""
    numbers = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    top = numbers.max(initial=0.0)
    if image.mode == "F" and top <= 1.0:
        numbers = numbers * 255
    elif top > 255:
        numbers = numbers / 257
    return Image.fromarray(np.clip(np.rint(numbers), 0, 255).astype(np.uint8)).convert("RGB")


def _from_base64(text: str) -> bytes:
    try:
        if len(text) % 4:
            raise ValueError("padding")  # strict mode alone lets one `=` too many pass
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        raise _invalid("Invalid image input: what follows the comma is not valid base64") from None


def _refuse_kind(data: bytes) -> None:
    """Refuse what is not PNG, JPEG or WebP by its first bytes."""
    if not data:
        raise _invalid("the photo is empty (0 bytes)")
    if not data.startswith((_PNG, _JPEG)) and not (data.startswith(b"RIFF") and data[8:12] == b"WEBP"):
        raise _invalid(f"the photo is {_what_bytes(data)}; PNG, JPEG and WebP are taken")


def _refuse_slow(data: bytes) -> None:
    """Refuse files built to keep a decoder busy for minutes, before it sees them."""
    if data.startswith(_PNG):
        slow = data.count(b"iCCP") > MAX_ICC_CHUNKS or _parts(_png_chunks(data))
    elif data.startswith(_JPEG):
        slow = data.count(b"\xff\xda") > MAX_JPEG_SCANS or _parts(_jpeg_segments(data))
    else:
        slow = False
    if slow:
        raise _invalid("the photo has far more parts than a picture needs; save it anew")


def _parts(parts: Iterator[int]) -> bool:
    return any(number >= MAX_PARTS for number, _ in enumerate(parts))


def _png_chunks(data: bytes) -> Iterator[int]:
    """Where each chunk begins: 4 bytes length, 4 type, the content, 4 checksum."""
    at = len(_PNG)
    while at + 8 <= len(data):
        yield at
        at += 12 + int.from_bytes(data[at : at + 4])


def _jpeg_segments(data: bytes) -> Iterator[int]:
    """Where each segment before the first scan begins: 0xff, marker, 2 bytes length that count themselves.

    Bytes between segments are skipped one by one, as decoders do, and count like segments.
    """
    at = 2
    while at + 4 <= len(data) and data[at : at + 2] != b"\xff\xda":
        yield at
        if data[at] != 0xFF or data[at + 1] == 0xFF:
            at += 1
        elif data[at + 1] in _BARE_MARKERS:
            at += 2
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))


_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_BARE_MARKERS = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))  # have no length: stuffing, TEM, RST0..7, SOI, EOI
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"GIF8", "a GIF"),
    (b"II*\x00", "a TIFF"),
    (b"MM\x00*", "a TIFF"),
    (b"8BPS", "a Photoshop file (PSD)"),
    (b"\x00\x00\x01\x00", "an icon (ICO)"),
    (b"\x00\x00\x02\x00", "a cursor (CUR)"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "a PostScript file"),
    (b"BM", "a BMP"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"data:", "a data URL inside a data URL"),
)
_BRANDS = {b"heic": "a HEIC photo", b"heix": "a HEIC photo", b"mif1": "a HEIF photo", b"avif": "an AVIF photo"}


def _what_bytes(data: bytes) -> str:
    """What a file is by its first bytes, in words of ours."""
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "a video")
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in head:
        return "an SVG drawing"
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if head.startswith(b"<"):
        return "XML or HTML text"
    return "not an image of a known kind"


def _what_string(value: str) -> str:
    """What a string without the prefix seems to be. Nothing is looked up."""
    head = value[:64].strip().lower()
    if not head:
        return "an empty string came"
    if head.startswith(("http://", "https://", "ftp://")):
        return "an address came, and addresses are never fetched"
    if head.startswith(("file:", "/", "\\", "./", "../", "~")) and not head.startswith("/9j/"):  # /9j/ begins a JPEG
        return "a file path came, and paths are never opened"
    if head.startswith("data:"):
        return "the data URL is not in base64 form"
    return "the data:image/...;base64, prefix is missing"


def _invalid(message: str) -> InvalidImage:
    return InvalidImage(message, field="image")
