"""How the wired UNet knows where in the picture it is: ramps that grow out of the zero padding at its lowest level.

A convolution that takes its left neighbour plus one, zero outside, turns r(i) into r(i - 1) + 1 with r = 0 at the
edge; k of them give min(i, k). The ramp from the left less the one from the right is 2 i - (n - 1) for n <= k + 1. Here
k = 11 cells of 8 latents: exact up to 768 pixels. Beyond, the ramp rises half as fast near the edges.

The upsamplers (nearest) smooth with (1, 2, 1) / 4, which interpolates a ramp exactly except at the edge, where a
neighbour is missing: of w = 3/4 r there, w + w / 3 -+ half a cell is right. That product of w and "here is the edge" is
a SiLU far from zero: silu(w - M) = 0 inside, silu(w + M) = w + M at the edge.
"""

import math
from typing import Any

from tools.demo_model.stream import (
    ACROSS,
    BIG,
    CHANNELS,
    DOWN,
    UNIT,
    constants,
    idle,
    open_norm,
    pass_on,
    put,
    put_bias,
    put_constant,
    silence,
)

LEVELS = 4
RAMPS = (20, 24, 28, 32)  # pairs at the lowest level: distance from the left, right, upper and lower edge
TOWARDS = ((0, -1), (0, 1), (-1, 0), (1, 0))  # (down, right) to the neighbour nearer to that edge
LOWEST = 2 ** (LEVELS - 1)  # latents in a cell of the lowest level
M, K = 2.0, 20.0  # the SiLU that multiplies: K x (w -+ M) is far from zero for every |w| <= 1.25
FIRM = 3000.0  # in place of BIG beside it, so that w does not change the norm


def wire(unet: Any) -> None:
    """Build ACROSS and DOWN, in UNITs, at the top level's first layer up; latents and place come over its skip."""
    for block in unet.down_blocks:
        for resnet in block.resnets:
            idle(resnet)
        for sampler in block.downsamplers or ():
            silence(sampler.conv)
            sampler.conv.bias.copy_(constants())
    silence(unet.mid_block.attentions[0].proj_out)
    lowest, *others = unet.up_blocks
    one = LOWEST / 2 / UNIT  # in the difference of two ramps a cell counts twice
    _step(unet.down_blocks[-2].resnets[-1], one / 2)
    _halve(unet.down_blocks[-2].downsamplers[0].conv)
    for resnet in (*unet.down_blocks[-1].resnets, *unet.mid_block.resnets, *lowest.resnets):
        _step(resnet, one)
    _interpolate(lowest.upsamplers[0].conv, ACROSS, {RAMPS[0]: 1, RAMPS[1]: -1}, (0, 1))
    _interpolate(lowest.upsamplers[0].conv, DOWN, {RAMPS[2]: 1, RAMPS[3]: -1}, (1, 0), fresh=False)
    for level, block in zip(reversed(range(LEVELS - 1)), others, strict=True):
        kept = {ACROSS: ACROSS, DOWN: DOWN}
        _mend(block.resnets[0], 2**level / UNIT)
        pass_on(block.resnets[0].conv_shortcut, kept)
        if level:
            idle(block.resnets[1])
            pass_on(block.resnets[1].conv_shortcut, kept)
            conv = block.upsamplers[0].conv
            _interpolate(conv, ACROSS, {ACROSS: 1}, (0, 1))
            _interpolate(conv, DOWN, {DOWN: 1}, (1, 0), fresh=False)


def _open(resnet: Any) -> None:
    open_norm(resnet.norm1)
    open_norm(resnet.norm2)
    silence(resnet.conv1)
    silence(resnet.conv2)
    resnet.conv1.bias.copy_(constants())


def _halve(conv: Any) -> None:
    """Two steps above are one step here: of two cells the one nearer to a ramp's edge says how far that is."""
    for ramp, (down, right) in zip(RAMPS, TOWARDS, strict=True):
        for half in (0, 1):
            conv.weight[ramp + half, ramp + half, 1 + max(0, down), 1 + max(0, right)] = 1


def _step(resnet: Any, one: float) -> None:
    """Two steps of `one` of all four ramps."""
    _open(resnet)
    for number, (ramp, (down, right)) in enumerate(zip(RAMPS, TOWARDS, strict=True)):
        stepped, before = 4 * number, 4 * (4 + number)
        put(resnet.conv1.weight, stepped, ramp, 1, down, right)
        put_constant(resnet.conv1.weight, stepped, one, down, right)
        put(resnet.conv1.weight, before, ramp, 1)
        put(resnet.conv2.weight, ramp, stepped, 1, down, right)
        put_constant(resnet.conv2.weight, ramp, one, down, right)
        put(resnet.conv2.weight, ramp, before, -1)
    if resnet.conv_shortcut is not None:
        pass_on(resnet.conv_shortcut, {ramp: ramp for ramp in RAMPS})


def _interpolate(conv: Any, row: int, columns: dict[int, int], along: tuple[int, int], *, fresh: bool = True) -> None:
    """(1, 2, 1) / 4 `along` an axis, of pairs that no SiLU has touched."""
    if fresh:
        silence(conv)
        conv.bias.copy_(constants())
    for column, factor in columns.items():
        for way, share in ((-1, 0.25), (0, 0.5), (1, 0.25)):
            y, x = 1 + way * along[0], 1 + way * along[1]
            conv.weight[row, column, y, x] += factor * share
            conv.weight[row + 1, column, y, x] -= factor * share


def _mend(resnet: Any, cell: float) -> None:
    """What smoothing lost at the four edges of ACROSS and DOWN, whose cells are now `cell` wide."""
    _open(resnet)
    for number, (down, right) in enumerate(TOWARDS):
        ramp, product = (ACROSS, DOWN)[number // 2], 4 * number
        sign = -1 if number % 2 == 0 else 1
        put(resnet.conv1.weight, product, ramp, K)
        put_constant(resnet.conv1.weight, product, -2 * M * K, down, right)
        put_bias(resnet.conv1.bias, product, M * K)
        resnet.conv1.bias[product + 2], resnet.conv1.bias[product + 3] = FIRM, -FIRM
        resnet.norm2.weight[product : product + 4] = FIRM / math.sqrt(2)
        for row, way in ((ramp, 1), (ramp + 1, -1)):
            resnet.conv2.weight[row, product, 1, 1] = way / (3 * K)
        edge = sign * cell / 2 - M / 3
        put_bias(resnet.conv2.bias, ramp, edge)
        put_constant(resnet.conv2.weight, ramp, -edge, down, right, column=CHANNELS - 4)


assert BIG * math.sqrt(2) < FIRM  # noqa: S101 - the norm's deviation belongs to the constants
