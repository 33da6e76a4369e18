"""What a clip does to its photo, in numbers: sharpness, movement, size, light. Frames are (H, W, 3) uint8."""

from dataclasses import dataclass
from math import log

import numpy as np
from PIL import Image

from tools.demo_model.scenes import MOVES, Move

REACH = 32  # pixels of movement that are looked for to each side
SCALES = tuple(np.round(np.arange(0.80, 1.365, 0.01), 2).tolist())
THIRD, FIFTH = 1 / 3, 0.2  # how much of its intended size a motion must have, and how much a light must change


@dataclass(frozen=True, slots=True)
class Measured:
    """One clip. `shift` is how far the picture's content moved, (down, right) in pixels; ratios are last over first.

    `psnr` in dB is that of frame 0 against the photo; `moved` that of the last frame against the photo moved exactly as
    its word says, where both show it; None for a word that does not shift the view.
    """

    word: str
    photo: str
    seed: int
    psnr: float
    shift: tuple[float, float]
    scale: float
    brightness: float
    warmth: float
    contrast: float
    moved: float | None = None

    @property
    def follows(self) -> bool:
        """Whether the clip does what its word says: the right way, by a third of the motion or a fifth of the light."""
        match self.word:
            case "static":
                return max(map(abs, self.shift)) <= 1 and abs(self.scale - 1) <= 0.01
            case "sunset":
                return self.warmth >= 1 + FIFTH
            case "brighten":
                return self.brightness >= 1 + FIFTH
            case "night" | "fade":
                return self.brightness <= 1 - FIFTH
        move = MOVES[self.word]
        if move.zoom:
            return log(self.scale) / -log(1 - move.zoom) >= THIRD
        wanted = (-move.down, -move.right)  # the content moves against the view
        return sum(a * b for a, b in zip(self.shift, wanted, strict=True)) >= THIRD * sum(w * w for w in wanted)


def measure(word: str, photo: str, seed: int, source: np.ndarray, frames: np.ndarray) -> Measured:
    """Measure frames (F, H, W, 3) against the fitted photo `source` (H, W, 3)."""
    first, last = frames[0].astype(np.float64), frames[-1].astype(np.float64)
    shift, scale = registered(first.mean(-1), last.mean(-1))
    return Measured(
        word=word,
        photo=photo,
        seed=seed,
        psnr=decibels(first, source),
        shift=shift,
        scale=scale,
        brightness=float(last.mean() / first.mean()),
        warmth=_warmth(last) / _warmth(first),
        contrast=float(last.std() / first.std()),
        moved=_moved(word, source, last),
    )


def decibels(picture: np.ndarray, wanted: np.ndarray) -> float:
    """PSNR of two pictures of one shape, values in 0..255."""
    error = float(np.square(picture.astype(np.float64) - wanted.astype(np.float64)).mean())
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def _moved(word: str, source: np.ndarray, last: np.ndarray) -> float | None:
    move = MOVES.get(word, Move())
    if not (move.down or move.right):
        return None
    height, width = source.shape[:2]

    def inside(down: int, right: int) -> tuple[slice, slice]:
        return slice(max(0, down), height + min(0, down)), slice(max(0, right), width + min(0, right))

    return decibels(last[inside(-move.down, -move.right)], source[inside(move.down, move.right)])


def _warmth(frame: np.ndarray) -> float:
    return float((frame[..., 0].mean() + 1) / (frame[..., 2].mean() + 1))


def registered(first: np.ndarray, last: np.ndarray) -> tuple[tuple[float, float], float]:
    """How the content of `first` (H, W) became `last`: moved (down, right) in pixels along one axis, or scaled.

    The best normalised correlation over whole pixels and hundredths of size. Phase correlation was tried and fails on
    the soft pictures of the
    model before: the autoencoder's grid of 8 pixels stayed in place and won.
    """
    shifts = [(0, 0)] + [(s * way, s * (1 - way)) for way in (0, 1) for s in range(-REACH, REACH + 1) if s]
    inside = slice(REACH, -REACH)
    target = _whitened(last[inside, inside])

    def likeness(picture: np.ndarray) -> float:
        return float((_whitened(picture[inside, inside]) * target).mean())

    moved = {shift: likeness(np.roll(first, shift, (0, 1))) for shift in shifts}
    sized = {scale: likeness(scaled(first, scale)) for scale in SCALES if scale != 1}
    (down, right), scale = max(moved, key=moved.__getitem__), max(sized, key=sized.__getitem__)
    if sized[scale] > moved[down, right]:
        return (0.0, 0.0), scale
    return (float(down), float(right)), 1.0


def _whitened(picture: np.ndarray) -> np.ndarray:
    centred = picture - picture.mean()
    return np.asarray(centred / (centred.std() + 1e-9))


def scaled(picture: np.ndarray, scale: float) -> np.ndarray:
    """`picture` (H, W) seen `scale` times as large about its middle."""
    height, width = picture.shape
    keep = 1 / scale
    matrix = (keep, 0, width / 2 * (1 - keep), 0, keep, height / 2 * (1 - keep))
    image = Image.fromarray(picture.astype(np.float32))
    return np.asarray(image.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC))
