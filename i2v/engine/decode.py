"""From latents to pictures: the whole video in chunks, or a small preview for nearly nothing.

Called by `engine.generate` after and during sampling. One copy to the CPU at the end, of uint8 frames.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from i2v.engine.interface import Frames
from i2v.errors import InvalidOutput

OnDecoded = Callable[[int, int], None]  # (chunk from 1, chunks)


def decode_frames(
    vae: Any, latents: Tensor, latent_scale: float, chunk: int = 1, on_chunk: OnDecoded | None = None
) -> Frames:
    """Scaled latents (1, 4, F, h, w) to uint8 RGB (F, H, W, 3) on the CPU, `chunk` frames at a time.

    The decoder treats frames apart, so `chunk` changes memory and speed alone. Raises InvalidOutput on numbers that are
    not finite.
    """
    stack = (latents[0].transpose(0, 1) / latent_scale).contiguous(memory_format=torch.channels_last)  # (F, 4, h, w)
    pieces: list[Tensor] = []
    starts = range(0, stack.shape[0], chunk)
    for number, start in enumerate(starts, 1):
        pixels = vae.decode(stack[start : start + chunk].to(vae.dtype), return_dict=False)[0].float()
        if not bool(torch.isfinite(pixels).all()):
            raise InvalidOutput("the decoded frames are not finite numbers; another seed or a wider dtype may help")
        pieces.append(to_uint8(pixels))
        if on_chunk is not None:
            on_chunk(number, len(starts))
    frames: Frames = torch.cat(pieces).cpu().numpy()
    return frames


def to_uint8(pixels: Tensor) -> Tensor:
    """(N, 3, H, W) in -1..1 to (N, H, W, 3) uint8, rounded to the nearest."""
    return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@dataclass(frozen=True, slots=True)
class Preview:
    """A linear map from one latent pixel to one RGB pixel in 0..1: `weight` (4, 3), `bias` (3,), fp32 on the CPU."""

    weight: Tensor
    bias: Tensor

    def __call__(self, latents: Tensor) -> NDArray[np.uint8]:
        """One frame's scaled latents (4, h, w), fp32 on the CPU, as uint8 RGB (h, w, 3)."""
        colours = torch.tensordot(latents, self.weight, dims=([0], [0])) + self.bias  # (h, w, 3)
        picture: NDArray[np.uint8] = (colours.nan_to_num(0.5).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        return picture


def fit_preview(vae: Any, latent_scale: float, factor: int, device: torch.device) -> Preview:
    """Fit the map to this VAE by least squares, on latents of a few drawn patterns against their shrunken pictures.

    16x16 latents of four patterns give 1024 equations for 15 unknowns.
    """
    pictures = _patterns(16 * factor)  # (4, 3, S, S) in -1..1
    encoded = vae.encode(pictures.to(device, vae.dtype)).latent_dist.mean.float().cpu() * latent_scale  # (4, 4, 16, 16)
    known = encoded.permute(0, 2, 3, 1).reshape(-1, encoded.shape[1])
    wanted = torch.nn.functional.avg_pool2d(pictures, factor).permute(0, 2, 3, 1).reshape(-1, 3) / 2 + 0.5
    known = torch.cat([known, torch.ones(len(known), 1)], dim=1)
    solution = torch.linalg.lstsq(known.double(), wanted.double(), driver="gelsd").solution.float()  # (5, 3)
    return Preview(solution[:-1], solution[-1])


def _patterns(size: int) -> Tensor:
    """Four smooth colour pictures that span hue and brightness: random low-resolution colours, enlarged."""
    generator = torch.Generator().manual_seed(0)
    pictures = []
    for cells in (2, 4, 8, 16):
        colours = torch.rand(1, 3, cells, cells, generator=generator)
        pictures.append(torch.nn.functional.interpolate(colours, (size, size), mode="bilinear", align_corners=False))
    return torch.cat(pictures) * 2 - 1
