"""Photos of every kind and photos that are none, through the door that scripts use."""

import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import requests
from PIL import Image

from i2v.video import read_frames
from tests.conftest import ASSETS
from tests.qa.live_server import assert_refusal, data_url, encode

PHOTO = Image.open(ASSETS / "coffee.jpg").convert("RGB").resize((96, 64))
RAMP = Image.fromarray(np.linspace(0, 255, 96 * 64, dtype=np.uint8).reshape(64, 96))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG that says it is that large and holds a few bytes."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + body + chunk(b"IEND", b"")


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(PHOTO, "JPEG", exif=exif.tobytes())


TAKEN = {
    "PNG": encode(PHOTO),
    "JPEG": encode(PHOTO, "JPEG"),
    "WebP": encode(PHOTO, "WEBP"),
    "RGBA": encode(PHOTO.convert("RGBA")),
    "grey with alpha": encode(PHOTO.convert("LA")),
    "palette": encode(PHOTO.quantize(16)),
    "one bit": encode(PHOTO.convert("1")),
    "16-bit grey": encode(Image.fromarray(np.asarray(RAMP).astype(np.uint16) * 257)),
    "CMYK": encode(PHOTO.convert("CMYK"), "JPEG"),
    "EXIF rotation": rotated(),
    "broken EXIF": encode(PHOTO, "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff"),
    "odd profile": encode(PHOTO, icc_profile=b"nonsense"),
    "animated WebP": encode(PHOTO, "WEBP", save_all=True, append_images=[PHOTO.rotate(90)]),
    "animated PNG": encode(PHOTO, "PNG", save_all=True, append_images=[PHOTO.rotate(90)]),
    "tail behind the end": encode(PHOTO) + b"PK\x03\x04" + b"x" * 100,
    "16x16": encode(PHOTO.resize((16, 16))),
    "very wide": encode(PHOTO.resize((2000, 16))),
}

REFUSED = {
    "nothing": b"",
    "text": b"hello",
    "HTML": b"<html><script>alert(1)</script></html>",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "PDF": b"%PDF-1.7\n",
    "GIF": encode(PHOTO.quantize(16), "GIF"),
    "TIFF": encode(PHOTO, "TIFF"),
    "ICO": encode(PHOTO.resize((32, 32)), "ICO"),
    "BMP": encode(PHOTO, "BMP"),
    "PSD": b"8BPS\x00\x01" + bytes(100),
    "cut off PNG": encode(PHOTO)[:500],
    "cut off JPEG": encode(PHOTO, "JPEG")[:500],
    "bad check sum": encode(PHOTO).replace(b"IDAT", b"IDAX"),
    "0x0": png_header(0, 0),
    "1x1": encode(PHOTO.resize((1, 1))),
    "15x15": encode(PHOTO.resize((15, 15))),
    "20000x1": encode(PHOTO.resize((20000, 1))),
    "60000x60000": png_header(60000, 60000),
    "12000x12000 of zeros": png_header(12000, 12000),
    "compressed text bomb": png_header(
        64, 64, chunk(b"zTXt", b"a\x00\x00" + zlib.compress(bytes(50_000_000))), chunk(b"zTXt", b"b\x00\x00x")
    ),
    "profile bomb": png_header(64, 64, chunk(b"iCCP", b"a\x00\x00" + zlib.compress(bytes(50_000_000)))),
}

WORDS = {
    "no prefix": "iVBORw0KGgo=",
    "empty": "",
    "prefix only": "data:image/png;base64,",
    "no comma": "data:image/png;base64",
    "not base64": "data:image/png;base64,!!!!",
    "bad padding": "data:image/png;base64,iVBORw0KGgo",
    "not base64 encoded": "data:image/png,abc",
    "another type": data_url(encode(PHOTO), "text/html"),
    "path": "/etc/passwd",
    "file address": "file:///etc/passwd",
    "http address": "http://127.0.0.1:9/a.png",
    "surrogate": "data:image/png;base64,\udc80",
    "NUL": "data:image/png;base64,\x00",
}


def post(server, image, **more) -> requests.Response:
    body = {"data": [image, "the scene at sunset", 256, 8, 8, 10, 7.5]}
    return server.session.post(f"{server.url}/api/predict/", json=body, timeout=60)


@pytest.mark.parametrize("kind", TAKEN)
def test_a_readable_photo_becomes_a_video_that_starts_with_it(healthy, kind):
    answer = post(healthy, data_url(TAKEN[kind]))
    assert answer.status_code == 200, answer.text
    frames = read_frames(healthy.outputs / answer.json()["data"][0].rpartition("/")[2])
    assert frames.shape == (8, 256, 256, 3)
    assert frames[0].std() > 5  # not one flat colour


def test_what_is_no_photo_is_refused(healthy, subtests):
    for kind, data in REFUSED.items():
        with subtests.test(kind):
            answer = post(healthy, data_url(data))
            assert_refusal(answer, 422)
            assert answer.json()["detail"][0]["loc"][-1] == "image"


def test_a_string_that_holds_no_photo_is_refused(healthy, subtests):
    for kind, text in WORDS.items():
        with subtests.test(kind):
            answer = post(healthy, text)
            assert_refusal(answer, 400, 422)
            assert "passwd" not in answer.text


def test_a_photo_of_another_type_than_stated_is_read_by_its_bytes(healthy):
    assert post(healthy, data_url(encode(PHOTO), "image/jpeg")).status_code == 200


@pytest.mark.fault("empty test", "damaged photos", before="270 of 300 were refused for their steps, undecoded")
def test_damaged_photos_never_break_the_server(healthy, record_property):
    """Photos with flipped bits: each is read and becomes a video, or is refused as a photo. Nothing else is wrong with
    the request, so each one is decoded.
    """
    photos = [bytearray(encode(PHOTO, kind)) for kind in ("PNG", "JPEG", "WEBP")]
    chance = np.random.default_rng(1)
    read = refused = 0
    for number in range(90):
        damaged = bytearray(photos[number % 3])
        for _ in range(1 + number % 8):
            damaged[chance.integers(len(damaged))] ^= 1 << chance.integers(8)
        answer = post(healthy, data_url(bytes(damaged)))
        if answer.status_code == 200:
            read += 1
        else:
            assert_refusal(answer, 422)
            assert answer.json()["detail"][0]["loc"][-1] == "image"
            refused += 1
    record_property("after", f"of 90, all decoded: {read} became videos, {refused} were refused for the photo")
    assert read > 20
    assert refused > 20


@pytest.mark.fault("empty test", "64 bombs at once", before="all were refused by their head; none was decoded")
def test_64_bombs_at_once_are_refused_and_the_memory_stays(healthy, record_property):
    """Four of them are good photos of nearly as many pixels as are allowed, in a few kB."""
    process = psutil.Process(healthy.process.pid)
    post(healthy, data_url(REFUSED["profile bomb"]))
    before = highest = process.memory_info().rss
    bombs = [REFUSED["60000x60000"], REFUSED["12000x12000 of zeros"], REFUSED["profile bomb"], zeros(12000, 12000)]
    good = zeros(7000, 7000)

    def send(number: int) -> tuple[bool, int]:
        is_good = number % 16 == 0
        body = {"data": [data_url(good if is_good else bombs[number % 4]), "x", 256, 8, 8, 10, 7.5]}
        return is_good, requests.post(f"{healthy.url}/api/predict/", json=body, timeout=200).status_code

    with ThreadPoolExecutor(64) as pool:
        started = time.monotonic()
        answers = [pool.submit(send, number) for number in range(64)]
        while not all(answer.done() for answer in answers):
            assert healthy.session.get(f"{healthy.url}/livez", timeout=60).status_code == 200
            highest = max(highest, process.memory_info().rss)
            assert time.monotonic() - started < 200
            time.sleep(0.02)
    assert {answer.result() for answer in answers} == {(False, 422), (True, 200)}
    more = (highest - before) // 1_000_000
    record_property("after", f"+{more} MB at the peak, with four photos of 49 million pixels among them")
    assert more < 600


def zeros(width: int, height: int) -> bytes:
    """A valid PNG of black pixels, one bit each: 150 kB for a hundred million."""
    return encode(Image.new("1", (width, height)))
