"""What the words mean: how the view moves, how the light changes; and pictures under every light, as latents."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from tools.demo_model.captions import CLASSES, SLOWLY
from tools.demo_model.pictures import Pictures

SIZE = 256  # pixels of a scene's side
PAN = 24  # pixels the view moves between the first and the last frame
ZOOM_IN = 0.2  # of its width the view loses: what is seen last is 1 / (1 - 0.2) = 1.25 times as large
ZOOM_OUT = 0.12  # of its width it gains
DRIFT = 0.06  # a gentle zoom in, for a prompt outside the vocabulary


@dataclass(frozen=True, slots=True)
class Move:
    """What a word does to the view from the first frame to the last: pixels to the right and down, width it loses."""

    right: int = 0
    down: int = 0
    zoom: float = 0.0

    def halved(self) -> "Move":
        return Move(self.right // 2, self.down // 2, self.zoom / 2)


_FULL = {
    "pan left": Move(right=-PAN),
    "pan right": Move(right=PAN),
    "tilt up": Move(down=-PAN),
    "tilt down": Move(down=PAN),
    "zoom in": Move(zoom=ZOOM_IN),
    "zoom out": Move(zoom=-ZOOM_OUT),
}
MOVES = _FULL | {name + SLOWLY: move.halved() for name, move in _FULL.items()} | {"drift": Move(zoom=DRIFT)}
LIGHTS = ("sunset", "night", "brighten", "fade")


def lit(name: str, x: Tensor) -> Tensor:
    """The picture x (..., 3, H, W) in 0..1 under the light of a word, at full strength."""

    def channels(red: float, green: float, blue: float) -> Tensor:
        return torch.tensor([red, green, blue])[:, None, None]

    match name:
        case "sunset":
            return (x * channels(1.06, 0.95, 0.78) + channels(0.04, 0.01, 0.0)).clamp(0, 1)
        case "night":
            return (0.3 * x.mean(-3, keepdim=True) + 0.7 * x) * channels(0.42, 0.48, 0.66)
        case "brighten":
            return 1 - (1 - x) * 0.55
        case "fade":
            return torch.zeros_like(x)
    raise ValueError(f"{name!r} is no light word")


@dataclass(frozen=True, slots=True)
class Scene:
    """Latents of one picture, float16: as it is (4, 64, 64), and under each light (len(LIGHTS), 4, 64, 64)."""

    first: Tensor
    lights: Tensor


@torch.no_grad()
def encode(vae: AutoencoderKL, picture: Tensor) -> Scene:
    """One scene from a picture (3, SIZE, SIZE) in 0..1."""
    x = torch.stack([picture, *(lit(name, picture) for name in LIGHTS)]) * 2 - 1
    z: Tensor = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist.mean.half()
    return Scene(z[0], z[1:])


def make(vae: AutoencoderKL, pictures: Pictures, count: int, say: Callable[[str], None]) -> list[Scene]:
    """`count` scenes from seeded crops."""
    scenes = []
    for number in range(1, count + 1):
        scenes.append(encode(vae, pictures.crop(SIZE, photo_share=0.15, largest=1.5)))
        if number % 20 == 0:
            say(f"scenes: {number} of {count}")
    return scenes


assert set(CLASSES) == {"static", *MOVES, *LIGHTS}  # noqa: S101 - the vocabulary and what it means are one list
