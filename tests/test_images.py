"""Photos of every kind in, an upright RGB picture or one clear sentence out."""

import base64
import io
import socket
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from i2v import images
from i2v.decoding_room import DECODING, LARGE_PIXELS, PLACES, DecodingRoom
from i2v.errors import InvalidImage
from i2v.images import decode, decode_data_url, fit_image, place, to_rgb
from i2v.notes import say

ASSETS = Path(__file__).parent / "assets"
MAX = 50_000_000
SECRET = "Zm9vYmFyc2VjcmV0"  # text that must never come back in a message


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, colour: int = 2, depth: int = 8, extra: bytes = b"", rows: bytes = b"") -> bytes:
    """A PNG put together by hand: any header, whatever rows."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + extra + body


def rgb_rows(width: int, height: int) -> bytes:
    return (b"\0" + b"\x40" * (3 * width)) * height


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def quarters(width: int = 64, height: int = 48) -> Image.Image:
    """Four flat colours, so that a turned or mirrored picture is told apart: red, green over blue, white."""
    image = Image.new("RGB", (width, height), (255, 255, 255))
    image.paste((255, 0, 0), (0, 0, width // 2, height // 2))
    image.paste((0, 255, 0), (width // 2, 0, width, height // 2))
    image.paste((0, 0, 255), (0, height // 2, width // 2, height))
    return image


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((one.astype(float) - other.astype(float)) ** 2))))


def refusal(data: bytes, max_pixels: int = MAX) -> str:
    with pytest.raises(InvalidImage) as caught:
        decode(data, max_pixels=max_pixels)
    assert caught.value.field == "image"
    return caught.value.message


def growth_mb(code: str, *arguments: Path) -> float:
    """Run `code` in a fresh process; by how many MB it raises the peak of the memory it had after its imports.

    Asked as `VmHWM`: for Linux, `ru_maxrss` of a new process begins at the size of the one that started it.
    """
    program = f"""
import re, sys, threading
from i2v import images
from i2v.errors import InvalidImage
from i2v.images import decode, fit_image
from PIL import Image
data = open(sys.argv[1], "rb").read() if len(sys.argv) > 1 else b""
def refused():
    try:
        decode(data, max_pixels={MAX})
    except InvalidImage:
        return
    raise SystemExit("it was taken")
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before = peak()
{code}
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ASSETS.parent.parent,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1024


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_three_formats_come_back_as_rgb_of_the_same_size(kind: str, photo: Image.Image) -> None:
    image = decode(encoded(photo, kind), max_pixels=MAX)
    assert (image.mode, image.size) == ("RGB", photo.size)
    assert psnr(np.asarray(image), np.asarray(photo)) > 30
    assert image.info == {}


def test_a_jpeg_asset_decodes_as_pillow_decodes_it() -> None:
    image = decode((ASSETS / "astronaut.jpg").read_bytes(), max_pixels=MAX)
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(ASSETS / "astronaut.jpg").convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_back_upright(kind: str, orientation: int) -> None:
    turned = {
        1: lambda i: i,
        2: lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda i: i.transpose(Image.Transpose.ROTATE_180),
        4: lambda i: i.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda i: i.transpose(Image.Transpose.TRANSPOSE),
        6: lambda i: i.transpose(Image.Transpose.ROTATE_90),
        7: lambda i: i.transpose(Image.Transpose.TRANSVERSE),
        8: lambda i: i.transpose(Image.Transpose.ROTATE_270),
    }[orientation](quarters())
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encoded(turned, kind, exif=exif.tobytes()), max_pixels=MAX)
    assert image.size == (64, 48)
    assert np.abs(np.asarray(image).astype(int)[6:18, 8:24] - (255, 0, 0)).max() < 40
    assert np.abs(np.asarray(image).astype(int)[30:42, 8:24] - (0, 0, 255)).max() < 40
    assert dict(image.getexif()) == {}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_photo_that_memory_cannot_turn_is_refused_and_not_shown_sideways(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(images.ImageOps, "exif_transpose", exhausted)
    with pytest.raises(InvalidImage, match="too large when unpacked"):
        decode(encoded(quarters()), max_pixels=MAX)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_a_photo_with_broken_exif_is_shown_as_stored(exif: bytes) -> None:
    image = decode(encoded(quarters(), "JPEG", exif=exif, quality=95), max_pixels=MAX)
    assert psnr(np.asarray(image), np.asarray(quarters())) > 25


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_changes_nothing(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert np.array_equal(np.asarray(decode(encoded(quarters(), exif=exif), max_pixels=MAX)), np.asarray(quarters()))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composited_on_white(mode: str) -> None:
    grey = Image.new(mode, (32, 32), (100, 100, 100, 0) if mode == "RGBA" else (100, 0))
    grey.paste((100, 100, 100, 255) if mode == "RGBA" else (100, 255), (0, 0, 16, 32))
    grey.paste((0, 0, 0, 128) if mode == "RGBA" else (0, 128), (16, 0, 32, 16))
    pixels = np.asarray(decode(encoded(grey), max_pixels=MAX))
    assert (pixels[:, :16] == 100).all()
    assert (np.abs(pixels[:16, 16:].astype(int) - 127) <= 1).all()
    assert (pixels[16:, 16:] == 255).all()


def test_a_palette_with_transparency_is_composited_on_white() -> None:
    image = Image.new("P", (32, 32), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (0, 0, 16, 32))
    pixels = np.asarray(decode(encoded(image, transparency=0), max_pixels=MAX))
    assert (pixels[:, :16] == (200, 100, 50)).all()
    assert (pixels[:, 16:] == 255).all()


def test_a_transparent_colour_of_an_rgb_png_is_white() -> None:
    pixels = np.asarray(decode(encoded(quarters(), transparency=(255, 0, 0)), max_pixels=MAX))
    assert (pixels[:24, :32] == 255).all()
    assert (pixels[:24, 32:] == (0, 255, 0)).all()


def test_a_transparent_colour_no_pixel_can_have_is_ignored() -> None:
    extra = chunk(b"tRNS", struct.pack(">HHH", 65535, 4096, 70))
    pixels = np.asarray(decode(png(32, 32, extra=extra, rows=rgb_rows(32, 32)), max_pixels=MAX))
    assert (pixels == 0x40).all()


def test_cmyk_comes_back_in_the_colours_it_shows() -> None:
    image = decode(encoded(quarters().convert("CMYK"), "JPEG", quality=95), max_pixels=MAX)
    assert image.mode == "RGB"
    assert psnr(np.asarray(image), np.asarray(quarters())) > 25


def test_sixteen_bit_grey_is_scaled_and_not_clipped_to_white() -> None:
    """Pillow's own conversion clips at 255: a 16-bit grey photo became a white picture without any error."""
    ramp = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    pixels = np.asarray(decode(encoded(Image.fromarray(ramp)), max_pixels=MAX))
    assert np.array_equal(pixels[..., 0], np.round(ramp / 257).astype(np.uint8))
    assert pixels.min() == 0
    assert pixels.max() == 255


def test_the_transparent_value_of_sixteen_bit_grey_is_white() -> None:
    rows = (b"\0" + struct.pack(">H", 4096) * 16 + struct.pack(">H", 5140) * 16) * 32
    picture = png(32, 32, colour=0, depth=16, extra=chunk(b"tRNS", struct.pack(">H", 4096)), rows=rows)
    pixels = np.asarray(decode(picture, max_pixels=MAX))
    assert (pixels[:, :16] == 255).all()
    assert (pixels[:, 16:] == 20).all()


@pytest.mark.parametrize("colour", [2, 6])
def test_sixteen_bit_colour_is_scaled(colour: int) -> None:
    pixel = struct.pack(">HHH", 65535, 32896, 0) + (struct.pack(">H", 65535) if colour == 6 else b"")
    picture = png(32, 32, colour=colour, depth=16, rows=(b"\0" + pixel * 32) * 32)
    assert (np.asarray(decode(picture, max_pixels=MAX)) == (255, 128, 0)).all()


def test_one_bit_pictures_are_black_and_white() -> None:
    image = Image.new("1", (32, 32), 0)
    image.paste(1, (0, 0, 16, 32))
    pixels = np.asarray(decode(encoded(image), max_pixels=MAX))
    assert (pixels[:, :16] == 255).all()
    assert (pixels[:, 16:] == 0).all()


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([[0, 65535, 25700]], np.int32), [0, 255, 100]),
        (np.array([[0, 255, 100]], np.int32), [0, 255, 100]),
        (np.array([[-5, 200, 100]], np.int32), [0, 200, 100]),
        (np.array([[0.0, 1.0, 0.2]], np.float32), [0, 255, 51]),
        (np.array([[0.0, 255.0, 100.0]], np.float32), [0, 255, 100]),
        (np.array([[np.nan, np.inf, 1.0]], np.float32), [0, 0, 255]),
    ],
)
def test_integer_and_float_grey_come_to_eight_bits(values: np.ndarray, wanted: list[int]) -> None:
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == wanted


def test_a_colour_profile_is_applied() -> None:
    """An image whose profile swaps nothing but is wider than sRGB must not come back with its raw numbers."""
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = decode(encoded(quarters(), icc_profile=srgb), max_pixels=MAX)
    assert psnr(np.asarray(same), np.asarray(quarters())) > 40
    unusable = decode(encoded(quarters(), icc_profile=lab.tobytes()), max_pixels=MAX)
    assert np.array_equal(np.asarray(unusable), np.asarray(quarters()))
    assert "icc_profile" not in same.info


@pytest.mark.parametrize("profile", [b"x", b"\0" * 128, b"not a profile" * 50])
def test_an_odd_colour_profile_is_ignored(profile: bytes) -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        image = decode(encoded(quarters(), kind, icc_profile=profile), max_pixels=MAX)
        assert psnr(np.asarray(image), np.asarray(quarters())) > 15


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    pixels = np.asarray(decode(data, max_pixels=MAX)).astype(int)
    assert np.abs(pixels - (200, 0, 0)).max() <= 6


def test_a_file_with_a_polyglot_tail_is_the_picture_alone() -> None:
    data = encoded(quarters()) + b"<script>alert(1)</script>PK\x03\x04"
    assert np.array_equal(np.asarray(decode(data, max_pixels=MAX)), np.asarray(quarters()))


def test_a_png_said_to_be_jpeg_is_taken() -> None:
    url = data_url(encoded(quarters()), "image/jpeg")
    assert np.array_equal(np.asarray(decode_data_url(url, max_pixels=MAX)), np.asarray(quarters()))


@pytest.mark.parametrize(
    "prefix",
    [
        "data:image/png;base64,",
        "DATA:IMAGE/PNG;BASE64,",
        "data:image/svg+xml;base64,",
        "  data:image/png;base64,",
        "data:image/png;name=a.png;base64,",
        "data:image/webp;charset=utf-8;base64,",
    ],
)
def test_forms_of_the_data_url_prefix_are_taken(prefix: str) -> None:
    url = prefix + base64.encodebytes(encoded(quarters())).decode()  # with line ends, as MIME encoders write it
    assert decode_data_url(url, max_pixels=MAX).size == (64, 48)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (base64.b64encode(b"\x89PNG" + SECRET.encode()).decode(), "prefix is missing"),
        ("/9j/" + SECRET, "prefix is missing"),
        ("", "an empty string"),
        ("   ", "an empty string"),
        (f"http://127.0.0.1/{SECRET}.png", "never fetched"),
        (f"HTTPS://example.org/{SECRET}.png", "never fetched"),
        (f"file:///etc/{SECRET}", "never opened"),
        (f"/etc/{SECRET}", "never opened"),
        (f"../../{SECRET}", "never opened"),
        ("data:image/png;base64", "not in base64 form"),
        (f"data:image/png,{SECRET}", "not in base64 form"),
        (f"data:text/html;base64,{SECRET}", "not of type image"),
        (f"data:;base64,{SECRET}", "not of type image"),
        (f"data:image/png;base64,{SECRET}=", "not valid base64"),
        (f"data:image/png;base64,{SECRET}-_", "not valid base64"),
        ("data:image/png;base64,*", "not valid base64"),
        ("data:image/png;base64,日本", "not valid base64"),
        ({"path": f"/etc/{SECRET}", "meta": {"_type": "gradio.FileData"}}, "an object came"),
        ([SECRET], "a list came"),
        (None, "null came"),
        (True, "a boolean came"),
        (3.5, "a number came"),
    ],
)
def test_what_is_no_data_url_is_refused_with_a_reason_and_without_a_connection(
    value: object, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_socket(*args: object, **kwargs: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", no_socket)
    with pytest.raises(InvalidImage, match="Invalid image input") as caught:
        decode_data_url(value, max_pixels=MAX)
    assert says in caught.value.message
    assert SECRET not in caught.value.message
    assert caught.value.field == "image"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"GIF89a" + bytes(50), "a GIF"),
        (encoded(quarters(), "TIFF"), "a TIFF"),
        (encoded(quarters(), "TIFF", big_tiff=False, compression="tiff_lzw"), "a TIFF"),
        (encoded(quarters(), "ICO"), "an icon"),
        (encoded(quarters(), "PDF"), "a PDF"),
        (encoded(quarters(), "BMP"), "a BMP"),
        (encoded(quarters(), "AVIF"), "an AVIF"),
        (b"8BPS\0\1" + bytes(60), "Photoshop"),
        (b"\0\0\0\x18ftypheic" + bytes(60), "a HEIC"),
        (b"\0\0\0\x18ftypisom" + bytes(60), "a video"),
        (f'<svg xmlns="http://www.w3.org/2000/svg">{SECRET}</svg>'.encode(), "an SVG"),
        (f'<?xml version="1.0"?>\n<!-- {SECRET} --><svg/>'.encode(), "an SVG"),
        (f"<!DOCTYPE html><html>{SECRET}</html>".encode(), "an HTML page"),
        (f"  <HTML>{SECRET}".encode(), "an HTML page"),
        (f"<note>{SECRET}</note>".encode(), "XML"),
        (b"PK\x03\x04" + bytes(60), "a ZIP"),
        (b"RIFF\0\0\0\0WAVEfmt ", "not an image"),
        (SECRET.encode(), "not an image"),
        (bytes(1000), "not an image"),
    ],
)
def test_other_files_are_refused_with_a_sentence_that_names_them(data: bytes, says: str) -> None:
    message = refusal(data)
    assert says in message
    assert SECRET not in message


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("size", "says"),
    [
        ((1, 1), "1x1"),
        ((15, 15), "15x15"),
        ((20000, 1), "20000x1"),
        ((60000, 60000), "3600000000"),
        ((12000, 12000), "144000000"),
        ((8000, 6251), "50008000"),
    ],
)
def test_sizes_out_of_range_are_refused_by_the_header_alone(size: tuple[int, int], says: str) -> None:
    message = refusal(png(*size))  # no pixel data at all, so nothing could have been decoded
    assert says in message or "too many pixels" in message


@pytest.mark.parametrize("size", [(0, 0), (0, 100), (100, 0), (2**31 - 1, 2**31 - 1)])
def test_impossible_sizes_are_refused(size: tuple[int, int]) -> None:
    assert refusal(png(*size))


def test_the_smallest_photo_is_taken() -> None:
    assert decode(encoded(Image.new("RGB", (16, 16))), max_pixels=MAX).size == (16, 16)


def test_the_pixel_limit_is_the_callers() -> None:
    data = encoded(Image.new("RGB", (100, 100)))
    assert decode(data, max_pixels=10_000).size == (100, 100)
    assert "at most 9999" in refusal(data, max_pixels=9_999)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.slow
def test_a_text_or_profile_bomb_is_refused_within_a_little_memory(kind: bytes, tmp_path: Path) -> None:
    packed = zlib.compress(bytes(300_000_000), 1)
    body = b"k\0\1\0\0\0" + packed if kind == b"iTXt" else b"k\0\0" + packed
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png(32, 32, extra=chunk(kind, body), rows=rgb_rows(32, 32)))
    assert growth_mb("refused()", bomb) < 60


def segments(content: bytes, jpeg: bytes) -> bytes:
    return jpeg[:2] + content + jpeg[2:]


@pytest.mark.parametrize(
    "slow",
    [
        png(32, 32, extra=chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(1000))) * 1000, rows=rgb_rows(32, 32)),
        png(32, 32, extra=chunk(b"tEXt", b"k\0v") * 100_000, rows=rgb_rows(32, 32)),
        png(32, 32, extra=chunk(b"IDAT", b"") * 100_000, rows=rgb_rows(32, 32)),
        segments(b"\xff\xfe\0\3a" * 100_000, encoded(quarters(), "JPEG")),
        segments(b"\xff\xe1\0\2" * 100_000, encoded(quarters(), "JPEG")),
        segments(b"\xff\xfe\0\0" * 100_000, encoded(quarters(), "JPEG")),
        segments(b"\xff" * 100_000, encoded(quarters(), "JPEG")),
        segments(b"\xff\xfe\0\2" + bytes(100_000), encoded(quarters(), "JPEG")),
        segments(b"\xff\xfe\0\2" + b"\xff\xd0" * 100_000, encoded(quarters(), "JPEG")),
        segments(b"\xff\xfe\0\2" + b"\xff\0" * 100_000, encoded(quarters(), "JPEG")),
    ],
    ids=[
        "profiles",
        "texts",
        "empty data",
        "comments",
        "applications",
        "zero lengths",
        "fill bytes",
        "junk",
        "restarts",
        "stuffing",
    ],
)
def test_a_file_of_endless_parts_is_refused_before_it_is_decoded(slow: bytes) -> None:
    """A million tiny chunks kept the decoder busy for ten seconds."""
    assert "far more parts" in refusal(slow)


def test_a_jpeg_of_thousands_of_scans_is_refused() -> None:
    progressive = encoded(quarters(), "JPEG", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    assert decode(progressive, max_pixels=MAX).size == (64, 48)
    assert "far more parts" in refusal(progressive[:-2] + scan * 5000 + b"\xff\xd9")


def test_a_real_photo_with_much_metadata_is_taken() -> None:
    jpeg = segments((b"\xff\xe1\xff\xff" + bytes(65533)) * 150, encoded(quarters(), "JPEG"))
    assert decode(jpeg, max_pixels=MAX).size == (64, 48)
    assert decode(png(32, 32, extra=chunk(b"tEXt", b"k\0v") * 5000, rows=rgb_rows(32, 32)), max_pixels=MAX)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.slow
def test_sixty_four_pixel_bombs_at_once_are_refused_within_a_little_memory(kind: str, tmp_path: Path) -> None:
    """A PNG of 140 kB with 12000x12000 pixels decoded to more than a gigabyte."""
    options = {"compress_level": 9} if kind == "PNG" else {"lossless": True, "quality": 0, "method": 0}
    bomb = tmp_path / "bomb"
    bomb.write_bytes(encoded(Image.new("L", (12000, 12000) if kind == "PNG" else (8000, 8000)), kind, **options))
    assert bomb.stat().st_size < 500_000
    code = """
threads = [threading.Thread(target=refused) for _ in range(64)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
    assert growth_mb(code, bomb) < 150


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_truncated_file_is_refused(kind: str, share: float, photo: Image.Image) -> None:
    data = encoded(photo, kind)
    message = refusal(data[: int(len(data) * share)])
    assert "damaged" in message


def test_a_png_with_a_bad_checksum_is_refused() -> None:
    data = bytearray(encoded(quarters()))
    data[data.index(b"IDAT") + 10] ^= 0xFF
    assert "damaged" in refusal(bytes(data))


_ORIGINALS = {
    "png": encoded(quarters()),
    "palette": encoded(quarters().quantize(8), transparency=0),
    "grey16": encoded(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16)),
    "jpeg": encoded(quarters(), "JPEG"),
    "progressive": encoded(quarters(), "JPEG", progressive=True),
    "cmyk": encoded(quarters().convert("CMYK"), "JPEG"),
    "webp": encoded(quarters(), "WEBP"),
    "lossless": encoded(quarters().convert("RGBA"), "WEBP", lossless=True),
}


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(sorted(_ORIGINALS)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=8),
)
@pytest.mark.slow
def test_flipped_bits_give_a_picture_or_invalid_image_and_nothing_else(
    name: str, flips: list[tuple[float, int]]
) -> None:
    data = bytearray(_ORIGINALS[name])
    for share, bit in flips:
        data[int(share * len(data))] ^= 1 << bit
    try:
        image = decode(bytes(data), max_pixels=1_000_000)
    except InvalidImage:
        return
    assert image.mode == "RGB"
    assert image.width * image.height <= 1_000_000
    assert np.asarray(image).shape == (image.height, image.width, 3)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.text(max_size=300), st.binary(max_size=300)), st.sampled_from(["", "data:image/png;base64,", "data:"])
)
def test_any_text_or_bytes_give_a_picture_or_invalid_image(junk: str | bytes, prefix: str) -> None:
    with pytest.raises(InvalidImage):
        decode(junk, max_pixels=MAX) if isinstance(junk, bytes) else decode_data_url(prefix + junk, max_pixels=MAX)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(16, 400),
    st.integers(16, 400),
    st.integers(1, 60).map(lambda n: 8 * n),
    st.integers(1, 60).map(lambda n: 8 * n),
    st.sampled_from(["crop", "pad"]),
)
def test_a_white_photo_has_no_black_row_after_the_crop_at_any_size(
    wide: int, high: int, width: int, height: int, fit: str
) -> None:
    """Rounding the scaled side down left the crop one pixel short: a black row entered the model."""
    fitted, placement = fit_image(Image.new("RGB", (wide, high), (255, 255, 255)), width, height, fit)
    assert fitted.size == (width, height)
    left, top, right, bottom = placement.inside
    pixels = np.asarray(fitted)
    assert (pixels[top:bottom, left:right] == 255).all()
    if fit == "crop":
        assert placement.inside == (0, 0, width, height)
    else:
        assert pixels.sum() == 255 * 3 * (right - left) * (bottom - top)  # all else is black border
        assert right - left == width or bottom - top == height
    box = placement.box
    assert 0 <= box[0] < box[2] <= wide
    assert 0 <= box[1] < box[3] <= high
    # The same scale both ways, up to the pixel that rounding up costs.
    across, down = (right - left) / (box[2] - box[0]), (bottom - top) / (box[3] - box[1])
    if fit == "crop":
        assert abs(across / down - 1) <= 1 / min(width, height) + 1e-9


def test_place_says_beforehand_what_fit_image_does(photo: Image.Image) -> None:
    for fit in ("crop", "pad"):
        assert place(photo.size, (256, 384), fit) == fit_image(photo, 256, 384, fit)[1]


def test_the_crop_takes_the_middle(photo: Image.Image) -> None:
    fitted, placement = fit_image(photo, 240, 240)
    assert np.array_equal(
        np.asarray(fitted), np.asarray(photo.resize((320, 240), Image.Resampling.BOX).crop((40, 0, 280, 240)))
    )
    assert placement.box == (80.0, 0.0, 560.0, 480.0)
    assert not placement.is_whole
    assert say(placement.note()) == "The photo (640x480) was cropped to its middle 480x480 and scaled to 240x240."


def test_the_box_is_where_the_picture_came_from() -> None:
    """Each pixel of a horizontal ramp says which column it came from, so the box can be read off the result."""
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(96, axis=0)
    fitted, placement = fit_image(Image.fromarray(ramp), 48, 48)
    columns = np.asarray(fitted)[24, :, 0].astype(float)
    left, _, right, _ = placement.box
    assert columns[0] == pytest.approx(left + (right - left) / 96 - 0.5, abs=1)
    assert columns[-1] == pytest.approx(right - (right - left) / 96 - 0.5, abs=1)


def test_a_photo_of_the_same_size_is_not_touched(photo: Image.Image) -> None:
    for fit in ("crop", "pad"):
        fitted, placement = fit_image(photo, *photo.size, fit)
        assert np.array_equal(np.asarray(fitted), np.asarray(photo))
        assert placement.is_whole
        assert say(placement.note()) == "The photo has the size of the video (640x480)."


def test_a_photo_of_the_same_shape_is_said_to_be_whole(photo: Image.Image) -> None:
    _, placement = fit_image(photo, 320, 240)
    assert say(placement.note()) == "The whole photo (640x480) was scaled to 320x240."


def test_padding_shows_the_whole_photo(photo: Image.Image) -> None:
    fitted, placement = fit_image(photo, 256, 256, "pad")
    assert placement.inside == (0, 32, 256, 224)
    assert placement.box == (0, 0, 640, 480)
    assert np.asarray(fitted)[:32].max() == 0
    assert "256x192 and given black borders to 256x256" in say(placement.note())


def test_enlarging_is_smooth() -> None:
    edge = Image.new("RGB", (16, 16), 0)
    edge.paste((255, 255, 255), (8, 0, 16, 16))
    fitted, _ = fit_image(edge, 128, 128)
    assert len(np.unique(np.asarray(fitted)[64, :, 0])) > 4  # area averaging would give two values: big squares


def test_an_extreme_shape_takes_little_memory() -> None:
    """Scaling the whole of 65000x16 before the crop would make two million columns: three gigabytes."""
    assert growth_mb('fit_image(Image.new("RGB", (65000, 16)), 512, 512)') < 60


def test_two_photos_are_decoded_at_a_time_whoever_asks(monkeypatch):
    """Large photos take half a gigabyte each; the page decodes them on its own threads, beside the routes'."""
    photo, release, tried = encoded(Image.new("RGB", (32, 32))), threading.Event(), threading.Semaphore(0)
    bound, check, had_to_wait = DECODING._places, images._check_size, []

    class Watched:
        def acquire(self):
            at_once = bound.acquire(blocking=False)
            had_to_wait.append(not at_once)
            tried.release()
            return at_once or bound.acquire()

        def release(self):
            bound.release()

    def held(*arguments):
        assert release.wait(60)
        check(*arguments)

    monkeypatch.setattr(DECODING, "_places", Watched())
    monkeypatch.setattr(images, "_check_size", held)
    with ThreadPoolExecutor(6) as pool:
        decoding = [pool.submit(decode, photo, max_pixels=MAX) for _ in range(6)]
        assert all(tried.acquire(timeout=60) for _ in range(6))
        release.set()
        assert {one.result(60).size for one in decoding} == {(32, 32)}
    assert sorted(had_to_wait) == [False] * 2 + [True] * 4


def test_of_two_large_photos_one_waits_for_the_other_and_a_small_one_does_not():
    room, inside, go_on = DecodingRoom(), threading.Event(), threading.Event()

    def large(wait: bool) -> None:
        with room:
            room.grow(LARGE_PIXELS + 1)
            if wait:
                inside.set()
                assert go_on.wait(60)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(large, True)
        assert inside.wait(60)
        with room, room:  # it may be entered again
            room.grow(LARGE_PIXELS)
        second = pool.submit(large, False)
        assert room._large.locked()
        assert not second.done()
        go_on.set()
        first.result(60)
        second.result(60)
    assert not room._large.locked()
    assert [room._places.acquire(blocking=False) for _ in range(PLACES + 1)] == [True] * PLACES + [False]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "I;16", "CMYK"])
def test_a_large_photo_gets_the_same_colours_band_by_band(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (50, 37, 4), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., :2].copy().view(np.uint16)[..., 0])
    else:
        image = Image.fromarray(pixels, "RGBA").convert("RGB" if mode in ("P", "CMYK") else "RGBA").convert(mode)
    if mode in ("P", "RGB"):
        image.info["transparency"] = 3 if mode == "P" else image.getpixel((5, 5))
    whole = np.asarray(to_rgb(image))
    monkeypatch.setattr(images, "BAND_PIXELS", 37 * 7)
    assert np.array_equal(np.asarray(to_rgb(image)), whole)
