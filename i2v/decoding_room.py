"""The room in which photos are decoded: two at once in the whole process, and of large ones one.

A photo of 50 million pixels takes 0.5 GB until it is reduced and packed. Who holds a place keeps it for all of that, so
that no decoded photo stands outside: `with DECODING:` around reading and packing. It may be entered again by the thread
that is in it, as `images.decode` does for callers who have not.
"""

import ctypes
import sys
import threading
from typing import Self

PLACES = 2
LARGE_PIXELS = 12_000_000  # of which one at a time is decoded: 50 MB at 4 bytes a pixel, and copies of that


class DecodingRoom:
    """A semaphore of `PLACES` that a thread may enter again; `grow` makes its stay one of a large photo."""

    def __init__(self) -> None:
        self._places = threading.BoundedSemaphore(PLACES)
        self._large = threading.Lock()
        self._mine = threading.local()  # depth: how often this thread is inside; is_large: whether it holds `_large`

    def __enter__(self) -> Self:
        if not getattr(self._mine, "depth", 0):
            self._places.acquire()
            self._mine.depth, self._mine.is_large = 0, False
        self._mine.depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._mine.depth -= 1
        if self._mine.depth:
            return
        try:
            if self._mine.is_large:
                give_back()
                self._large.release()
        finally:
            self._places.release()

    def grow(self, pixels: int) -> None:
        """The photo that this thread reads has so many pixels: if they are many, wait until no other such is inside."""
        if pixels > LARGE_PIXELS and not self._mine.is_large:
            self._large.acquire()
            self._mine.is_large = True


def give_back() -> None:
    """Hand what was freed back to the system. glibc keeps freed blocks of up to 32 MB, of which Pillow makes a picture,
    for itself: after 48 large photos 2 GB.
    """
    if _TRIM is not None:
        _TRIM(0)


_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
DECODING = DecodingRoom()
