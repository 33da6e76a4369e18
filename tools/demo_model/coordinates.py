"""How the wired UNet knows where in the picture it is: ramps that grow out of the zero padding at its lowest level.

A convolution that takes its left neighbour plus one, zero outside, turns r(i) into r(i - 1) + 1; k of them give
min(i + 1, k), which is the right edge of cell i as long as there are no more than k. Here k = 14 cells of 32 latents:
exact up to 1792 pixels. Beyond, all places are 1792 pixels.

On the way up each level halves the cells. The upsampler repeats each of them, and the mean with the left neighbour,
(1, 1, 0) / 2, gives the right edges of the halves: (i + i + 1) / 2 for the left one, (i + 1 + i + 1) / 2 for the right
one. Nothing is looked up beyond a cell's right side, so an odd number of halves does no harm.
"""

from typing import Any

from tools.demo_model.stream import (
    CELL_PLACE,
    HERE,
    RAMPS,
    UNIT,
    WIDTHS,
    constants,
    idle,
    open_resnet,
    pass_on,
    put,
    put_bias,
    silence,
)

LEVELS = len(WIDTHS)
TOWARDS = ((0, -1), (-1, 0))  # (down, right) to the neighbour nearer to the ramp's edge
LOWEST = 2 ** (LEVELS - 1)  # latents in a cell of the lowest level


def wire(unet: Any) -> None:
    """Build HERE at the first layer up of the level of cells; latents and the frame's place come over its skip."""
    for block in unet.down_blocks[2:]:
        for resnet in block.resnets:
            idle(resnet)
            if resnet.conv_shortcut is not None:
                pass_on(resnet.conv_shortcut, {})
        for sampler in block.downsamplers or ():
            silence(sampler.conv)
            sampler.conv.bias.copy_(constants(len(sampler.conv.bias)))
    silence(unet.mid_block.attentions[0].proj_out)
    lowest, *between = unet.up_blocks[:-2]
    for resnet in (*unet.down_blocks[-1].resnets, *unet.mid_block.resnets, *lowest.resnets):
        _step(resnet, LOWEST / UNIT)
    for block in between:
        for resnet in block.resnets:
            idle(resnet)
            pass_on(resnet.conv_shortcut, {ramp: ramp for ramp in RAMPS})
    for block in (lowest, *between):
        _halve(block.upsamplers[0].conv)
    cells = unet.up_blocks[-2].resnets[0]
    idle(cells)
    below = WIDTHS[2]  # channels that come from there, before the skip's
    kept = {channel: below + channel for channel in range(0, CELL_PLACE + 2, 2)}
    pass_on(cells.conv_shortcut, kept | dict(zip(HERE, RAMPS, strict=True)))
    for here in HERE:
        put_bias(cells.conv_shortcut.bias, here, -1 / UNIT)  # from the edge of a cell to its centre


def _step(resnet: Any, one: float) -> None:
    """Two steps of `one` of both ramps."""
    pairs = 1 if resnet.conv_shortcut is None else 2  # an input that has a skip beside it has its constants, too
    open_resnet(resnet, pairs)
    for number, (ramp, (down, right)) in enumerate(zip(RAMPS, TOWARDS, strict=True)):
        stepped, before = 4 * number, 4 * number + 2
        put(resnet.conv1.weight, stepped, ramp, 1, down, right)
        put_bias(resnet.conv1.bias, stepped, one)
        put(resnet.conv1.weight, before, ramp, 1)
        put(resnet.conv2.weight, ramp, stepped, 1, down, right)
        put_bias(resnet.conv2.bias, ramp, one)
        put(resnet.conv2.weight, ramp, before, -1)
    if resnet.conv_shortcut is not None:
        pass_on(resnet.conv_shortcut, {ramp: ramp for ramp in RAMPS})


def _halve(conv: Any) -> None:
    """The mean of a cell and its neighbour, of pairs that no SiLU has touched."""
    silence(conv)
    conv.bias.copy_(constants(len(conv.bias)))
    for ramp, (down, right) in zip(RAMPS, TOWARDS, strict=True):
        for half in (0, 1):
            conv.weight[ramp + half, ramp + half, 1, 1] = 0.5
            conv.weight[ramp + half, ramp + half, 1 + down, 1 + right] = 0.5
