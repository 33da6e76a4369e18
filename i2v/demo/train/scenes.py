"""Scenes: what a picture looks like under every word, as latents. Encoded once, then drawn from by the motion training.

Pans are exact: the same picture is encoded at every second pixel of shift and cut at whole latents, so no warping error
enters. Light is a picture transform at full strength; between the frames it is mixed in linearly.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from i2v.demo.train.captions import CLASSES
from i2v.demo.train.pictures import Pictures

SIZE = 256  # pixels of a training clip's side
LATENT = SIZE // 8
PAN = 24  # pixels the camera moves between the first and the last frame
DRIFT = 8  # pixels it moves for a prompt outside the vocabulary: gentle, to the right
PHASES = (0, 2, 4, 6)  # sub-latent shifts that are encoded, pixels
MARGIN = 24 + 8  # pixels around the clip that a pan can reach, a multiple of 8
MOVES = {"pan left": (-1, 0), "pan right": (1, 0), "tilt up": (0, -1), "tilt down": (0, 1), "drift": (1, 0)}


def lit(name: str, x: Tensor) -> Tensor:
    """The picture x (..., 3, H, W) in 0..1 under the light of a word, at full strength."""

    def channels(red: float, green: float, blue: float) -> Tensor:
        return torch.tensor([red, green, blue])[:, None, None]

    match name:
        case "sunset":
            return (x * channels(1.15, 0.80, 0.50) + channels(0.12, 0.02, 0.0)).clamp(0, 1)
        case "night":
            return (0.3 * x.mean(-3, keepdim=True) + 0.7 * x) * channels(0.22, 0.27, 0.45)
        case "brighten":
            return 1 - (1 - x) * 0.55
        case "fade":
            return torch.zeros_like(x)
    raise ValueError(f"{name!r} is no light word")


LIGHTS = ("sunset", "night", "brighten", "fade")


@dataclass(frozen=True, slots=True)
class Scene:
    """Latents of one picture, float16: `first` (4, 32, 32); `shifted` by axis and phase (2, 4, 4, L, L); `lights`."""

    first: Tensor
    shifted: Tensor
    lights: Tensor

    def frame(self, name: str, position: float) -> Tensor:
        """The latents (4, 32, 32) at `position` 0..1 of a clip that follows the word `name`."""
        if name in MOVES:
            return self._moved(*MOVES[name], round(position * (DRIFT if name == "drift" else PAN) / 2) * 2)
        first = self.first.float()
        if name in LIGHTS:
            return first + (self.lights[LIGHTS.index(name)].float() - first) * position
        return first

    def _moved(self, right: int, down: int, pixels: int) -> Tensor:
        if pixels == 0:
            return self.first.float()
        x, y = MARGIN + right * pixels, MARGIN + down * pixels
        axis, phase = (0, x % 8) if right else (1, y % 8)
        left, top = x // 8, y // 8
        return self.shifted[axis, phase // 2, :, top : top + LATENT, left : left + LATENT].float()


@torch.no_grad()
def encode(vae: AutoencoderKL, picture: Tensor) -> Scene:
    """One scene from a picture (3, S, S) in 0..1 with S = SIZE + 2 * MARGIN + 8."""
    side = SIZE + 2 * MARGIN
    moved = [picture[:, :side, shift : shift + side] for shift in PHASES]
    moved += [picture[:, shift : shift + side, :side] for shift in PHASES[1:]]
    z = _latents(vae, torch.stack(moved))
    shifted = torch.stack([z[:4], torch.cat([z[:1], z[4:]])])
    middle = picture[:, MARGIN : MARGIN + SIZE, MARGIN : MARGIN + SIZE]
    still = _latents(vae, torch.stack([middle, *(lit(name, middle) for name in LIGHTS)]))
    return Scene(still[0], shifted, still[1:])


def _latents(vae: AutoencoderKL, x: Tensor) -> Tensor:
    z: Tensor = vae.encode((x * 2 - 1).contiguous(memory_format=torch.channels_last)).latent_dist.mean
    return z.half()


def make(vae: AutoencoderKL, pictures: Pictures, count: int, say: Callable[[str], None]) -> list[Scene]:
    """`count` scenes from seeded crops; flat pictures, in which no motion can be seen, are mostly left out."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        picture = pictures.crop(SIZE + 2 * MARGIN + 8, photo_share=0.15, largest=1.25)
        if picture.std() < 0.05 and pictures.rng.random() < 0.9:
            continue
        scenes.append(encode(vae, picture))
        if len(scenes) % 50 == 0:
            say(f"scenes: {len(scenes)} of {count}")
    return scenes


assert set(CLASSES) == {"static", *MOVES, *LIGHTS}  # noqa: S101 - the vocabulary and the scenes are one list
