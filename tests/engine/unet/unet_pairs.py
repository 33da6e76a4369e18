"""Our UNet and diffusers' with the same random weights, and the inputs both take: the oracle of the UNet's tests.

diffusers leaves some layers zero at the start; they are filled, so that no path is a no-op that hides a mistake.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from i2v.engine.unet.model import I2VGenXLUNet, RequestState

if TYPE_CHECKING:
    from diffusers import I2VGenXLUNet as Upstream

TOKENS = 9
TIMESTEPS = (981, 501, 1)

PUBLISHED = {  # the published family, narrow
    "block_out_channels": (16, 32, 64, 64),
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "attention_head_dim": 16,
}
DEMO = {  # plain level first: the guidance-shared prefix is long
    "block_out_channels": (16, 32, 48),
    "down_block_types": ("DownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D"),
    "up_block_types": ("CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "UpBlock3D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
}
UNEVEN_HEADS = {  # a head width that does not divide the channels: attention is narrower than its level
    "block_out_channels": (40, 48),
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "norm_num_groups": 8,
    "cross_attention_dim": 16,
    "attention_head_dim": 16,
}
OTHER_CHANNELS = {  # three layers a level, other numbers of latent channels
    "in_channels": 6,
    "out_channels": 5,
    "block_out_channels": (16, 24),
    "down_block_types": ("CrossAttnDownBlock3D",) * 2,
    "up_block_types": ("CrossAttnUpBlock3D",) * 2,
    "layers_per_block": 3,
    "norm_num_groups": 4,
    "cross_attention_dim": 20,
    "attention_head_dim": 4,
}
ONE_LEVEL = {
    "block_out_channels": (24,),
    "down_block_types": ("CrossAttnDownBlock3D",),
    "up_block_types": ("CrossAttnUpBlock3D",),
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "attention_head_dim": 12,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "published": PUBLISHED,
    "demo": DEMO,
    "uneven heads": UNEVEN_HEADS,
    "other channels": OTHER_CHANNELS,
    "one level": ONE_LEVEL,
}


def upstream(config: dict[str, Any], seed: int = 0) -> "Upstream":
    """diffusers' UNet with random weights everywhere."""
    from diffusers import I2VGenXLUNet as Upstream  # seconds that `alone` is spared

    torch.manual_seed(seed)
    unet = Upstream(**config).eval().requires_grad_(False)
    fill(unet)
    return unet


def alone(config: dict[str, Any], seed: int = 0) -> I2VGenXLUNet:
    """Ours with random weights everywhere, where no other is compared with it."""
    torch.manual_seed(seed)
    unet = I2VGenXLUNet.from_config(config).requires_grad_(False)
    fill(unet)
    return unet


def fill(unet: nn.Module) -> None:
    """Random numbers where a layer starts with zeros."""
    for parameter in unet.parameters():
        if not parameter.any():
            parameter.normal_(0, 0.05)


def own(reference: "Upstream") -> I2VGenXLUNet:
    """Ours, with the same config and weights."""
    unet = I2VGenXLUNet.from_config(dict(reference.config))
    unet.load_state_dict(reference.state_dict())
    return unet.requires_grad_(False)


@dataclass(frozen=True)
class Inputs:
    """One job's tensors: G = 2 rows of context with guidance, 1 without; one row of latents and image latents."""

    text: Tensor
    image_embeddings: Tensor
    image_latents: Tensor
    latents: Tensor
    fps: int = 16

    def begin(self, unet: I2VGenXLUNet, **options: Any) -> RequestState:
        times = torch.tensor(TIMESTEPS)
        return unet.begin(self.text, self.image_embeddings, self.image_latents, self.fps, times, **options)

    def upstream(self, unet: "Upstream", index: int = 1, image_latents: Tensor | None = None) -> Tensor:
        """What diffusers predicts at timestep `index`."""
        rows = len(self.text)
        images = self.image_latents if image_latents is None else image_latents
        return unet(
            self.latents.expand(rows, -1, -1, -1, -1),
            torch.tensor(TIMESTEPS[index]),
            torch.full((rows,), self.fps),
            images.expand(rows, -1, -1, -1, -1),
            self.image_embeddings,
            self.text,
        ).sample


def inputs(config: dict[str, Any], frames: int, height: int, width: int, rows: int = 2, seed: int = 1) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    context = config["cross_attention_dim"]

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return Inputs(
        text=random(rows, TOKENS, context),
        image_embeddings=random(rows, 1, context),
        image_latents=random(1, 4, frames, height, width),
        latents=random(1, config.get("in_channels", 4), frames, height, width),
    )


def difference(result: Tensor, expected: Tensor) -> float:
    """Relative error in the Euclidean norm; infinite when the shapes differ or anything is not finite."""
    if result.shape != expected.shape or not bool(torch.isfinite(result).all()):
        return float("inf")
    return float((result - expected).norm() / expected.norm())
