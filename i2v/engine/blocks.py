"""The levels of the UNet, one resolution each, and how the config lays them out: down, middle, up.

A level holds its layers under their published names. `unet.py` runs the layers one after the other in a flat loop, so
that no caller's frame keeps an activation alive that nobody needs any more.
"""

from typing import cast

from torch import nn

from i2v.engine.layers import Downsample, ResnetBlock, TemporalConvBlock, Transformer, Upsample
from i2v.engine.unet_config import UNetConfig


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
