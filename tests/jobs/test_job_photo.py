"""The stored photo: every pixel of it comes back, and it is reduced where it is large."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from i2v.jobs.photo import STORED_SIDE, decode_png, encode_png, reduce


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 70), st.sampled_from([1, 2, 255, 256, 257, 511, 512, 513, 800]), st.integers(0, 2**32 - 1))
def test_every_pixel_comes_back_whatever_the_size(width: int, height: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    assert np.array_equal(np.asarray(decode_png(encode_png(Image.fromarray(pixels)))), pixels)


def test_what_is_written_is_a_png_by_the_book(photo: Image.Image) -> None:
    data = encode_png(photo)
    with Image.open(io.BytesIO(data)) as picture:
        picture.verify()  # chunk by chunk, checksums included
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", photo.size)


@pytest.mark.parametrize("size", [(STORED_SIDE + 1, 40), (40, 3 * STORED_SIDE)])
def test_a_larger_photo_is_stored_reduced(size: tuple[int, int]) -> None:
    stored = reduce(Image.new("RGB", size, (10, 200, 30)))
    assert (max(stored.size), min(stored.size)) == (STORED_SIDE, round(40 * STORED_SIDE / max(size)))
    assert stored.getpixel((5, 5)) == (10, 200, 30)


def test_a_photo_that_is_small_enough_is_not_copied(photo: Image.Image) -> None:
    assert reduce(photo) is photo
