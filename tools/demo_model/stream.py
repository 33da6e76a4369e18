"""The stream of the wired UNet: what its channels hold, and the layers that pass them on unchanged.

It has `GROUPS` groups of four channels [a, -a, +BIG, -BIG], the same on all levels. The two constants fix the group
norm's deviation, so that it passes a unchanged; -a keeps the mean at zero and makes SiLU linear, since
silu(a) - silu(-a) = a. Zero padding makes the constants tell where the picture ends.
"""

import math
from typing import Any

import torch
from torch import Tensor

GROUPS = 10
CHANNELS = 4 * GROUPS
BIG = 100.0

# First channel of each pair. Latent i is at 4 i.
PLACE = 16  # position of the frame in 0..1, from the mask; far below zero on frame 0
ACROSS, DOWN = 20, 24  # where in the picture a cell is, from its centre, in `UNIT`s
TO_ACROSS, TO_DOWN = 28, 32  # where the frame's content is to be taken from
SQUARE = 36  # ACROSS^2 + DOWN^2
UNIT = 64.0  # latents


def silence(layer: Any) -> None:
    """A layer that gives zero."""
    layer.weight.zero_()
    if layer.bias is not None:
        layer.bias.zero_()


def constants(big: float = BIG) -> Tensor:
    return torch.tensor([0.0, 0.0, big, -big]).repeat(GROUPS)


def open_norm(norm: Any) -> None:
    """A group norm that returns a group [a, -a, BIG, -BIG] as it is, or eight channels of two such groups."""
    norm.weight.fill_(BIG / math.sqrt(2))
    norm.bias.zero_()


def put(weight: Tensor, row: int, column: int, value: float, down: int = 0, right: int = 0) -> None:
    """Add `value` x the pair `column` of the cell at (down, right) to the pair `row`, after a SiLU. (O, I, 3, 3)."""
    for sign, channel in ((1, row), (-1, row + 1)):
        weight[channel, column, 1 + down, 1 + right] += sign * value
        weight[channel, column + 1, 1 + down, 1 + right] -= sign * value


def put_constant(weight: Tensor, row: int, value: float, down: int, right: int, column: int = 0) -> None:
    """Add `value` to the pair `row` where the cell at (down, right) is in the picture; `column` begins any group."""
    for sign, channel in ((1, row), (-1, row + 1)):
        weight[channel, column + 2, 1 + down, 1 + right] += sign * value / BIG


def put_bias(bias: Tensor, row: int, value: float) -> None:
    bias[row] += value
    bias[row + 1] -= value


def pass_on(conv: Any, kept: dict[int, int]) -> None:
    """A 1x1 shortcut that keeps pairs, row by column of its input, and renews the constants."""
    silence(conv)
    conv.bias.copy_(constants())
    for row, column in kept.items():
        for half in (0, 1):
            conv.weight[row + half, column + half, 0, 0] = 1


def idle(resnet: Any) -> None:
    """A residual block that adds nothing."""
    silence(resnet.conv2)
