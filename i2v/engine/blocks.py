"""The levels of the UNet: layers of one resolution on the way down, at the bottom, and on the way up.

`unet.py` runs them in order; activations are (B, F, H, W, C), as in `layers.py`.
"""

from typing import cast

import torch
from torch import Tensor, nn

from i2v.engine.layers import Downsample, ResnetBlock, StepInputs, TemporalConvBlock, Transformer, Upsample
from i2v.engine.unet_config import UNetConfig


class Layers(nn.Module):
    """Layers of one resolution: residual block, temporal convolution and, with `cross`, both transformers."""

    def __init__(self, config: UNetConfig, in_channels: list[int], channels: int, cross: bool, attentions: int) -> None:
        super().__init__()
        groups, head_dim = config.norm_num_groups, config.attention_head_dim
        heads, time = channels // head_dim, 4 * config.block_out_channels[0]
        self.resnets = nn.ModuleList(ResnetBlock(n, channels, time, groups) for n in in_channels)
        self.temp_convs = nn.ModuleList(TemporalConvBlock(channels, groups) for _ in in_channels)
        if cross:
            context = config.cross_attention_dim
            self.attentions = nn.ModuleList(
                Transformer(channels, heads, head_dim, groups, context) for _ in range(attentions)
            )
            self.temp_attentions = nn.ModuleList(
                Transformer(channels, heads, head_dim, groups) for _ in range(attentions)
            )
        self.cross = cross

    def convolve(self, i: int, x: Tensor, inputs: StepInputs) -> Tensor:
        return cast(Tensor, self.temp_convs[i](self.resnets[i](x, inputs)))

    def attend(self, i: int, x: Tensor, inputs: StepInputs) -> Tensor:
        return cast(Tensor, self.temp_attentions[i](self.attentions[i](x, inputs), inputs)) if self.cross else x


class DownBlock(Layers):
    """One level on the way down; each layer's output, and the downsampled one, is kept as a skip."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        widths, count = config.block_out_channels, config.layers_per_block
        channels = widths[level]
        cross = config.down_block_types[level] == "CrossAttnDownBlock3D"
        super().__init__(config, [widths[max(level - 1, 0)]] + [channels] * (count - 1), channels, cross, count)
        self.downsamplers = nn.ModuleList([Downsample(channels)]) if level < len(widths) - 1 else None

    def forward(self, x: Tensor, skips: list[Tensor], inputs: StepInputs, stop: int | None = None) -> Tensor:
        """Appends to `skips`. `stop` ends before that layer."""
        for i in range(len(self.resnets))[:stop]:
            x = self.attend(i, self.convolve(i, x, inputs), inputs)
            skips.append(x)
        if stop is None and self.downsamplers is not None:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x


class MidBlock(Layers):
    """The lowest level: convolve, attend, convolve."""

    def __init__(self, config: UNetConfig) -> None:
        channels = config.block_out_channels[-1]
        super().__init__(config, [channels] * 2, channels, cross=True, attentions=1)

    def forward(self, x: Tensor, inputs: StepInputs) -> Tensor:
        return self.convolve(1, self.attend(0, self.convolve(0, x, inputs), inputs), inputs)


class UpBlock(Layers):
    """One level on the way up; each layer takes a skip from the way down beside its input."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        widths, count = config.block_out_channels, config.layers_per_block + 1
        channels = widths[level]
        below, above = widths[min(level + 1, len(widths) - 1)], widths[max(level - 1, 0)]
        inputs = [below] + [channels] * (count - 1)
        skips = [channels] * (count - 1) + [above]
        cross = config.up_block_types[len(widths) - 1 - level] == "CrossAttnUpBlock3D"
        super().__init__(config, [a + b for a, b in zip(inputs, skips, strict=True)], channels, cross, count)
        self.upsamplers = nn.ModuleList([Upsample(channels)]) if level > 0 else None

    def forward(
        self, x: Tensor, skips: list[Tensor], inputs: StepInputs, start: int = 0, stop: int | None = None
    ) -> Tensor:
        """Takes from the end of `skips`. Runs layers `start` to `stop`; upsamples after the last."""
        for i in range(len(self.resnets))[start:stop]:
            skip = skips.pop()
            x = torch.cat([x, skip.expand(len(x), -1, -1, -1, -1)], dim=-1)  # the prefix's skips have one row
            x = self.attend(i, self.convolve(i, x, inputs), inputs)
        if stop is None and self.upsamplers is not None:
            height, width = skips[-1].shape[2:4]
            x = self.upsamplers[0](x, height, width)
        return x
