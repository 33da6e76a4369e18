"""Training pictures of clean licence: procedural ones, drawn from a seed, and photos that scikit-image ships as CC0
or public domain. Everything is RGB float in 0..1, (3, H, W).
"""

import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIDE = 400  # pixels of the shorter side of every source picture

# Licences as scikit-image states them beside each file. Never used here: astronaut, chelsea, coffee and rocket, which
# are the held-out photos, and files of unclear licence (coins, ihc, the motorcycle pair).
FREE_PHOTOS = {
    "brick.png": "CC0",
    "camera.png": "CC0",
    "cell.png": "CC0",
    "clock_motion.png": "CC0",
    "grass.png": "CC0",
    "gravel.png": "CC0",
    "hubble_deep_field.jpg": "public domain (NASA)",
    "microaneurysms.png": "CC0",
    "moon.png": "public domain (NASA)",
    "retina.jpg": "CC0",
    "text.png": "CC0",
}


def free_photos() -> list[Tensor]:
    """The photos of `FREE_PHOTOS`, each (3, H, W) with a shorter side of `SIDE`."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    return [tensor(_fit(Image.open(folder / name))) for name in FREE_PHOTOS]


def _fit(image: Image.Image) -> Image.Image:
    image = image.convert("RGB")
    scale = SIDE / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _fractal(rng: np.random.Generator, n: int, power: float) -> np.ndarray:
    """Noise with a 1/f^power spectrum, the three channels half correlated: (n, n, 3), zero mean, unit deviation."""
    frequency = np.fft.fftfreq(n)
    radius = np.hypot(frequency[:, None], frequency[None])
    radius[0, 0] = 1
    shared = np.fft.fft2(rng.normal(size=(n, n)))
    layers = []
    for _ in range(3):
        layer = np.fft.ifft2((np.fft.fft2(rng.normal(size=(n, n))) * 0.5 + shared) / radius**power).real
        layers.append((layer - layer.mean()) / layer.std())
    return np.stack(layers, -1)


class _Palette:
    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        base = rng.uniform(0, 255, (int(rng.integers(2, 9)), 3))
        self.colours = base * rng.uniform(0.3, 1) + rng.uniform(0, 60, 3)

    def draw(self) -> tuple[int, int, int]:
        colour = self.colours[self.rng.integers(len(self.colours))]
        red, green, blue = np.clip(colour * self.rng.uniform(0.5, 1.4) + self.rng.normal(0, 12, 3), 0, 255)
        return int(red), int(green), int(blue)


def _dead_leaves(draw: ImageDraw.ImageDraw, n: int, rng: np.random.Generator, palette: _Palette) -> None:
    """Occluding shapes with a heavy-tailed size, the classic statistical stand-in for photographs."""
    for _ in range(int(rng.integers(60, 500))):
        r = min(n * 0.35, n * 0.012 / max(rng.random(), 1e-3) ** 0.6)
        x, y = rng.uniform(-0.1, 1.1, 2) * n
        match int(rng.integers(0, 3)):
            case 0:
                draw.ellipse([x - r, y - r, x + r, y + r], fill=palette.draw())
            case 1:
                draw.rectangle([x - r, y - r * rng.uniform(0.3, 1), x + r, y + r * 0.8], fill=palette.draw())
            case _:
                angles = np.sort(rng.uniform(0, 2 * math.pi, int(rng.integers(3, 7))))
                draw.polygon([(x + r * math.cos(a), y + r * math.sin(a)) for a in angles], fill=palette.draw())


def _few_shapes(draw: ImageDraw.ImageDraw, n: int, rng: np.random.Generator, palette: _Palette) -> None:
    for _ in range(int(rng.integers(3, 14))):
        r = rng.uniform(0.05, 0.3) * n
        x, y = rng.uniform(0, 1, 2) * n
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape([x - r, y - r, x + r, y + r], fill=palette.draw())
    for _ in range(int(rng.integers(0, 12))):
        ends = [tuple(rng.uniform(0, 1, 2) * n) for _ in range(2)]
        draw.line(ends, fill=palette.draw(), width=int(rng.integers(2, 16)))


def _letters(draw: ImageDraw.ImageDraw, n: int, rng: np.random.Generator, palette: _Palette) -> None:
    alphabet = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789  ")
    for _ in range(int(rng.integers(4, 20))):
        font = ImageFont.load_default(size=int(rng.integers(24, 140)))
        word = "".join(rng.choice(alphabet, int(rng.integers(3, 12))))
        x, y = rng.uniform(-0.1, 0.9, 2) * n
        draw.text((x, y), word, fill=palette.draw(), font=font)


def _skyline(draw: ImageDraw.ImageDraw, n: int, rng: np.random.Generator, palette: _Palette) -> None:
    """Layers of hills with houses whose windows are lit: horizon, depth and fine regular detail."""
    for layer in range(int(rng.integers(2, 6))):
        ridge = np.cumsum(rng.normal(0, 1, n // 8))
        ridge -= np.linspace(ridge[0], ridge[-1], len(ridge))
        ridge *= rng.uniform(0.02, 0.2) / (np.abs(ridge).max() + 1e-6)
        base = 0.25 + 0.6 * (layer + rng.random()) / 6
        hills = [(i * 8, (base + height) * n) for i, height in enumerate(ridge)]
        draw.polygon([(0, n), *hills, (n, n)], fill=palette.draw())
        for _ in range(int(rng.integers(0, 8))):
            x, width, height = rng.random() * n, rng.uniform(0.02, 0.15) * n, rng.uniform(0.05, 0.35) * n
            colour = palette.draw()
            draw.rectangle([x, base * n - height, x + width, base * n + 0.1 * n], fill=colour)
            lit = tuple(min(255, int(c * 1.3 + 20)) for c in colour)
            for a in np.arange(x + 4, x + width - 6, 14):
                for b in np.arange(base * n - height + 5, base * n, 18):
                    draw.rectangle([a, b, a + 6, b + 8], fill=lit)


def procedural(seed: int, n: int = SIDE) -> Tensor:
    """One drawn picture, (3, n, n) in 0..1; the same seed draws the same picture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:n, 0:n] / n - 0.5
    if rng.random() < 0.1:
        texture = _fractal(rng, n, rng.uniform(0.9, 2)) * rng.uniform(20, 60) + rng.uniform(60, 190, 3)
        return torch.from_numpy(np.clip(texture, 0, 255) / 255).permute(2, 0, 1).float()
    palette = _Palette(rng)
    first, second, angle = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3), rng.uniform(0, 2 * math.pi)
    ramp = (x * math.cos(angle) + y * math.sin(angle) + 0.7) / 1.4
    background = np.clip(first + (second - first) * ramp[..., None], 0, 255).astype(np.uint8)
    canvas = Image.fromarray(background).resize((2 * n, 2 * n))
    kinds = (_dead_leaves, _dead_leaves, _dead_leaves, _few_shapes, _letters, _skyline, _skyline)
    kinds[rng.integers(len(kinds))](ImageDraw.Draw(canvas), 2 * n, rng, palette)
    picture = np.asarray(canvas.resize((n, n), Image.Resampling.LANCZOS)).astype(np.float64)
    if rng.random() < 0.8:  # surfaces have grain
        picture *= 1 + _fractal(rng, n, rng.uniform(0.8, 1.4)) * rng.uniform(0.02, 0.2)
        picture += _fractal(rng, n, 1.2) * rng.uniform(0, 10)
    if rng.random() < 0.5:  # and light falls from one side
        slope = x * math.cos(angle + 1) + y * math.sin(angle + 1)
        picture *= (1 + slope * rng.uniform(0.3, 1.2))[..., None]
    return torch.from_numpy(np.clip(picture, 0, 255) / 255).permute(2, 0, 1).float()


@dataclass
class Pictures:
    """An endless, seeded source of square crops."""

    photos: list[Tensor]
    drawn: list[Tensor]
    rng: random.Random

    @classmethod
    def make(cls, count: int, seed: int) -> "Pictures":
        """`count` drawn pictures beside the free photos."""
        drawn = [procedural(seed * 100_000 + i) for i in range(count)]
        return cls(free_photos(), drawn, random.Random(seed))  # noqa: S311 - pictures, no secrets

    def crop(self, size: int, *, photo_share: float = 0.3, largest: float = 2.0) -> Tensor:
        """One augmented crop (3, size, size): cut at `size` to `largest` x `size` pixels, scaled down by area."""
        rng = self.rng
        source = rng.choice(self.photos if rng.random() < photo_share else self.drawn)
        side = min(int(size * rng.uniform(1.0, largest)), *source.shape[1:])
        top, left = rng.randint(0, source.shape[1] - side), rng.randint(0, source.shape[2] - side)
        crop = source[None, :, top : top + side, left : left + side]
        if side != size:
            crop = F.interpolate(crop, size=(size, size), mode="area" if side > size else "bicubic").clamp(0, 1)
        return self._augment(crop[0])

    def _augment(self, crop: Tensor) -> Tensor:
        rng = self.rng
        if rng.random() < 0.5:
            crop = crop.flip(-1)
        if rng.random() < 0.4:  # drawn pictures are more colourful than photos
            grey = crop.mean(0, keepdim=True)
            crop = grey + (crop - grey) * rng.uniform(0, 0.7)
        if rng.random() < 0.3:
            crop = (crop * rng.uniform(0.5, 1.2) + rng.uniform(-0.15, 0.15)).clamp(0, 1)
        if rng.random() < 0.1:
            crop = crop[rng.sample(range(3), 3)]
        return crop
