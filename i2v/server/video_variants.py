"""Pictures made from a finished video when they are asked for: thumbnail, sprite sheet, GIF, WebP."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

from i2v import video
from i2v.engine.interface import Frames

KEPT_BYTES: Final = 128 * 2**20  # a gallery of thumbnails asks for the same ones again and again; a GIF may be 30 MB

# variant -> media type, file ending, maker of frames and fps
_MAKERS: Final[dict[str, tuple[str, str, Callable[[Frames, int], bytes]]]] = {
    "thumbnail": ("image/jpeg", "jpg", lambda frames, _fps: video.thumbnail(frames)),
    "spritesheet": ("image/jpeg", "jpg", lambda frames, _fps: video.spritesheet(frames)),
    "gif": ("image/gif", "gif", video.gif),
    "webp": ("image/webp", "webp", video.webp),
}
VARIANTS: Final = ("video", *_MAKERS)


class Variants:
    """Makes a variant once and keeps the last ones in memory, `kept_bytes` of them at most; thread-safe.

    `known` answers at once; `get` takes seconds for a long clip, and the route bounds how many do so side by side.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._lock = threading.Lock()
        self._kept_bytes = kept_bytes
        self._bytes = 0
        self._made: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    def known(self, path: Path, variant: str) -> bytes | None:
        """The bytes of a variant that was made before."""
        key = (path.name, variant)
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
            return self._made.get(key)

    def get(self, path: Path, fps: int, variant: str) -> bytes:
        """The bytes of a variant other than `video`. Raises `InvalidRequest` when the file cannot be decoded."""
        made = self.known(path, variant)
        if made is None:
            made = _MAKERS[variant][2](video.read_frames(path), fps)
            with self._lock:
                self._bytes += len(made) - len(self._made.get((path.name, variant), b""))
                self._made[path.name, variant] = made
                while self._bytes > self._kept_bytes:
                    self._bytes -= len(self._made.popitem(last=False)[1])
        return made


def media_type(variant: str) -> str:
    return _MAKERS[variant][0]


def file_name(path: Path, variant: str) -> str:
    return f"{path.stem}_{variant}.{_MAKERS[variant][1]}"
