"""The levels of the UNet, one resolution each, and how the config lays them out: down, middle, up.

A level holds its layers under their published names. `model.py` runs the layers one after the other in a flat loop, so
that no caller's frame keeps an activation alive that nobody needs any more.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self, cast

from torch import nn

from i2v.engine.unet.layers import Downsample, ResnetBlock, TemporalConvBlock, Transformer, Upsample

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UNetConfig:
    """The published `unet/config.json`. `attention_head_dim` is the width of a head; heads = channels // it."""

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",)
    up_block_types: tuple[str, ...] = ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    cross_attention_dim: int = 1024
    attention_head_dim: int = 64
    num_attention_heads: int | None = None  # in the file, and without effect, as upstream

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        if not len(self.down_block_types) == len(self.up_block_types) == levels:
            raise ValueError(
                f"block_out_channels has {levels} levels, down_block_types {len(self.down_block_types)} and "
                f"up_block_types {len(self.up_block_types)}; these numbers must be equal"
            )
        for value, known in (
            (self.down_block_types, ("DownBlock3D", "CrossAttnDownBlock3D")),
            (self.up_block_types, ("UpBlock3D", "CrossAttnUpBlock3D")),
        ):
            unknown = set(value) - set(known)
            if unknown:
                raise ValueError(f"unknown block type {sorted(unknown)[0]!r}; it must be one of {', '.join(known)}")
        for name in ("attention_head_dim", "norm_num_groups", "layers_per_block"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one integer for all levels")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """From a config file's content. Keys that begin with `_` are its writer's; other unknown ones are only logged.

        So does diffusers with the VAE's config: a newer writer adds keys. One that changes the layers shows in the
        names and shapes of the weights, which are read strictly. A known key with a wrong value raises TypeError or
        ValueError.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(key for key in config if key not in known and not key.startswith("_"))
        if unknown:
            log.warning("the UNet's config has unknown keys, which are ignored: %s", ", ".join(unknown))
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in known}
        return cls(**values)


class Level(nn.Module):
    """Layer i is `resnets[i]`, `temp_convs[i]` and, if it attends, `attentions[i]` and `temp_attentions[i]`."""

    def __init__(self, config: UNetConfig, in_channels: list[int], channels: int, attentions: int) -> None:
        super().__init__()
        groups, head_dim, context = config.norm_num_groups, config.attention_head_dim, config.cross_attention_dim
        heads, time = channels // head_dim, 4 * config.block_out_channels[0]
        self.resnets = nn.ModuleList(ResnetBlock(n, channels, time, groups) for n in in_channels)
        self.temp_convs = nn.ModuleList(TemporalConvBlock(channels, groups) for _ in in_channels)
        self.attentions = nn.ModuleList(
            Transformer(channels, heads, head_dim, groups, context) for _ in range(attentions)
        )
        self.temp_attentions = nn.ModuleList(Transformer(channels, heads, head_dim, groups) for _ in range(attentions))

    def layers(self) -> list[list[nn.Module]]:
        """Each layer's modules in order; all are called with (x, inputs)."""
        kinds = (self.resnets, self.temp_convs, self.attentions, self.temp_attentions)
        return [[kind[i] for kind in kinds if i < len(kind)] for i in range(len(self.resnets))]


class DownLevel(Level):
    """`layers_per_block` layers and, above the lowest level, a downsampler."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        widths, count = config.block_out_channels, config.layers_per_block
        channels, above = widths[level], widths[max(level - 1, 0)]
        attends = config.down_block_types[level] == "CrossAttnDownBlock3D"
        super().__init__(config, [above] + [channels] * (count - 1), channels, count if attends else 0)
        self.downsamplers = nn.ModuleList([Downsample(channels)] if level < len(widths) - 1 else [])

    def layers(self) -> list[list[nn.Module]]:
        """The downsampler is the last layer."""
        return super().layers() + [[part] for part in self.downsamplers]


class MidLevel(Level):
    """Two layers at the lowest resolution, the first of which attends."""

    def __init__(self, config: UNetConfig) -> None:
        channels = config.block_out_channels[-1]
        super().__init__(config, [channels] * 2, channels, attentions=1)


class UpLevel(Level):
    """One layer more than on the way down, each with a skip beside its input; below the top, an upsampler."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        widths, count = config.block_out_channels, config.layers_per_block + 1
        channels, above, below = widths[level], widths[max(level - 1, 0)], widths[min(level + 1, len(widths) - 1)]
        inputs, skips = [below] + [channels] * (count - 1), [channels] * (count - 1) + [above]
        attends = config.up_block_types[len(widths) - 1 - level] == "CrossAttnUpBlock3D"
        both = [a + b for a, b in zip(inputs, skips, strict=True)]
        super().__init__(config, both, channels, count if attends else 0)
        self.upsamplers = nn.ModuleList([Upsample(channels)] if level > 0 else [])

    @property
    def upsampler(self) -> Upsample | None:
        return cast(Upsample, self.upsamplers[0]) if len(self.upsamplers) else None
