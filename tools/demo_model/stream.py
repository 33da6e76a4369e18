"""The stream of the wired UNet: what its channels hold, and the layers that pass them on unchanged.

Values stand in pairs [a, -a]: their mean is zero, and they make SiLU linear, since silu(a) - silu(-a) = a. The last two
channels of every level are the constants [+BIG, -BIG]: they fix the deviation of the one norm group, so that it passes
every pair unchanged, and zero padding makes them tell where the picture ends.
"""

import math
from typing import Any

import torch
from torch import Tensor

TOP, CELLS, LOW = 24, 64, 32  # channels of the top level, of the level of 2x2 latents, and of the lower ones
WIDTHS = (TOP, CELLS, LOW, LOW, LOW, LOW)
BIG = 1000.0
UNIT = 64.0  # latents: places are held in it

# First channel of each pair on the top level. Latent i is at 2 i.
PLACE = 8  # position of the frame in 0..1, from the mask; far below zero on frame 0

# On the level of cells, of 2x2 latents each: latent i at (row, column) in the cell is at 2 `within(i, row, column)`.
CELL_PLACE = 32
HERE = (34, 36)  # the cell's centre, from the left and from the upper edge of the picture, in `UNIT`s
FROM = ((38, 40), (42, 44))  # from where the content of its columns and rows is to be taken, in `UNIT`s
SQUARE = 46  # of the cell's distance from the middle cell, in UNIT^2
END = (48, 50)  # the centre of the last cell along either axis

# On the lower levels
RAMPS = (0, 2)  # the right and the lower edge of a cell, in `UNIT`s

# What the cells' upsampler gives to the top level: their latents as above, and where an even column or row is
EVEN = (32, 34)


def within(latent: int, row: int, column: int) -> int:
    """The number of a latent's channel at (row, column) of a cell."""
    return 4 * (2 * row + column) + latent


def silence(layer: Any) -> None:
    """A layer that gives zero."""
    layer.weight.zero_()
    if layer.bias is not None:
        layer.bias.zero_()


def constants(channels: int, big: float = BIG) -> Tensor:
    values = torch.zeros(channels)
    values[-2], values[-1] = big, -big
    return values


def open_norm(norm: Any, pairs: int = 1) -> None:
    """A group norm that returns its channels as they are; `pairs` of constants are among them."""
    norm.weight.fill_(BIG * math.sqrt(2 * pairs / len(norm.weight)))
    norm.bias.zero_()


def open_resnet(resnet: Any, pairs: int = 1) -> None:
    """A residual block whose norms are open, and that adds nothing yet."""
    for norm, count in ((resnet.norm1, pairs), (resnet.norm2, 1)):
        open_norm(norm, count)
    silence(resnet.conv1)
    silence(resnet.conv2)
    resnet.conv1.bias.copy_(constants(len(resnet.conv1.bias)))


def put(weight: Tensor, row: int, column: int, value: float, down: int = 0, right: int = 0) -> None:
    """Add `value` x the pair `column` of the cell at (down, right) to the pair `row`, after a SiLU. (O, I, 3, 3)."""
    for sign, channel in ((1, row), (-1, row + 1)):
        weight[channel, column, 1 + down, 1 + right] += sign * value
        weight[channel, column + 1, 1 + down, 1 + right] -= sign * value


def put_bias(bias: Tensor, row: int, value: float) -> None:
    bias[row] += value
    bias[row + 1] -= value


def pass_on(conv: Any, kept: dict[int, int]) -> None:
    """A 1x1 shortcut that keeps pairs, row by column of its input, and renews the constants."""
    silence(conv)
    conv.bias.copy_(constants(len(conv.bias)))
    for row, column in kept.items():
        for half in (0, 1):
            conv.weight[row + half, column + half, 0, 0] = 1


def idle(resnet: Any) -> None:
    """A residual block that adds nothing."""
    silence(resnet.conv2)
