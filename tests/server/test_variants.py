"""Pictures made from finished videos: what is kept of them in memory."""

from pathlib import Path

import pytest

from i2v.server import video_variants
from i2v.server.video_variants import Variants


@pytest.fixture
def sizes(monkeypatch):
    """Sets how large the picture of each video is; the videos themselves are not read."""
    sizes = {}
    monkeypatch.setattr(video_variants.video, "read_frames", lambda path: path.name)
    monkeypatch.setitem(video_variants._MAKERS, "gif", ("image/gif", "gif", lambda name, _fps: b"x" * sizes[name]))
    return sizes


def kept(pictures, sizes):
    return [name for name in sizes if pictures.known(Path(name), "gif") is not None]


def test_what_is_kept_is_bounded_by_bytes_and_the_last_used_stay(sizes):
    """32 pictures were kept, however large: a gigabyte of GIFs."""
    sizes |= {"a": 40, "b": 40, "c": 40, "d": 20}
    pictures = Variants(kept_bytes=100)
    for name in ("a", "b"):
        assert len(pictures.get(Path(name), 8, "gif")) == 40
    pictures.known(Path("a"), "gif")
    pictures.get(Path("c"), 8, "gif")
    assert kept(pictures, sizes) == ["a", "c"]
    pictures.get(Path("d"), 8, "gif")
    assert kept(pictures, sizes) == ["a", "c", "d"]


def test_hundreds_of_small_pictures_are_kept(sizes):
    sizes |= {f"{number}": 10 for number in range(500)}
    pictures = Variants(kept_bytes=5000)
    for name in sizes:
        pictures.get(Path(name), 8, "gif")
    assert kept(pictures, sizes) == list(sizes)


def test_a_picture_larger_than_the_bound_is_answered_and_not_kept(sizes):
    sizes |= {"huge": 101, "after": 100}
    pictures = Variants(kept_bytes=100)
    assert len(pictures.get(Path("huge"), 8, "gif")) == 101
    pictures.get(Path("after"), 8, "gif")
    assert kept(pictures, sizes) == ["after"]
