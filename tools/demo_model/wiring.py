"""The demo UNet, wired by hand: it shows the photo on every frame, moved or lit as the words' class code says.

A cell of 2x2 latents is where things happen, on the second level: attention over all latents of the top level would be
sixteen times the work. The level's first layer says from where each cell's content is to come, or changes its light;
the second fetches along the rows, the third along the columns (`gather.py`). The top level takes the cells apart again.
What is added to the photo is divided by `GUIDANCE` there, so that classifier-free guidance at that scale shows exactly
what was meant.

`stream.py` says what the channels hold, `coordinates.py` how a cell knows its place.
"""

import math
from typing import Any

import torch
from diffusers import I2VGenXLUNet
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor, nn

from tools.demo_model import coordinates, gather
from tools.demo_model.autoencoder import MARKED, OFFSET
from tools.demo_model.layer import HEAD, LONG
from tools.demo_model.scenes import LIGHTS
from tools.demo_model.stream import (
    BIG,
    CELL_PLACE,
    CELLS,
    EVEN,
    HERE,
    PLACE,
    TOP,
    UNIT,
    WIDTHS,
    constants,
    idle,
    open_norm,
    open_resnet,
    pass_on,
    put_bias,
    silence,
    within,
)
from tools.demo_model.text import WIDTH

GUIDANCE = 7.5  # the scale at which a word has its full effect, and to which the engine brings a higher one

# Taking a cell apart: of its four latents the SiLU lets one pass, which is lifted by `LIFT` so that it is linear there;
# an odd place pushes the latents of the even one down by `PUSH`, and the other way round.
LIFT, PUSH, STEEP = 14.0, 32.0, 3.0
FIRM = 10_000.0  # in place of BIG beside them, so that they do not change the norm


def build(light: dict[str, tuple[Tensor, Tensor]]) -> I2VGenXLUNet:
    """The wired UNet. `light` holds each light word's affine map of latents: matrix (4, 4) and offset (4,)."""
    levels = coordinates.LEVELS
    unet = I2VGenXLUNet(
        block_out_channels=WIDTHS,
        layers_per_block=2,
        sample_size=64,
        down_block_types=("DownBlock3D",) * levels,
        up_block_types=("UpBlock3D",) * (levels - 2) + ("CrossAttnUpBlock3D", "UpBlock3D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=HEAD,
        norm_num_groups=1,
    )
    with torch.no_grad():
        _wire(unet, light)
    return unet.eval()


def _wire(unet: Any, light: dict[str, tuple[Tensor, Tensor]]) -> None:
    for module in unet.modules():  # what is not wired is zero, not left at its random start: the file packs to little
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            silence(module)
    _quiet_conditions(unet)
    _pass_image_latents(unet)
    _copy_frame_0(unet.transformer_in)
    for module in unet.modules():
        if isinstance(module, TemporalConvLayer):
            silence(module.conv4[-1])
        elif isinstance(module, TransformerTemporalModel) and module is not unet.transformer_in:
            silence(module.proj_out)
    _into_cells(unet)
    coordinates.wire(unet)
    cells = unet.up_blocks[-2]
    gather.aim(cells.attentions[0], light)
    gather.fold(cells.temp_attentions[0])
    for axis, attention in enumerate(cells.attentions[1:]):
        idle(cells.resnets[1 + axis])
        pass_on(cells.resnets[1 + axis].conv_shortcut, {pair: pair for pair in range(0, CELLS - 2, 2)})
        gather.fetch(attention, axis)
    _out_of_cells(unet)
    _read_out(unet)


def _quiet_conditions(unet: Any) -> None:
    """Image tokens of the context are zero, and neither timestep nor frame rate moves the residual blocks."""
    silence(unet.image_latents_context_embedding[-1])
    silence(unet.context_embedding[-1])
    for name, module in unet.named_modules():
        if name.endswith("time_emb_proj"):
            silence(module)


def _pass_image_latents(unet: Any) -> None:
    """Image latents reach the stream through three convolutions, as pairs, and an encoder that adds nothing."""
    first, _, second, _, third = unet.image_latents_proj_in
    for conv in (first, second, third, unet.conv_in):
        silence(conv)
    for i in range(4):
        for sign, row in ((1, i), (-1, 4 + i)):
            first.weight[row, i, 1, 1] = sign
            second.weight[row, i, 1, 1], second.weight[row, 4 + i, 1, 1] = sign, -sign
        third.weight[i, i, 1, 1], third.weight[i, 4 + i, 1, 1] = 1, -1
    encoder = unet.image_latents_temporal_encoder
    silence(encoder.attn1.to_out[0])
    silence(encoder.ff.net[-1])
    conv = unet.conv_in
    conv.bias.copy_(constants(TOP))
    for i in range(4):
        for sign, row in ((1, 2 * i), (-1, 2 * i + 1)):
            conv.weight[row, 4 + i, 1, 1], conv.bias[row] = sign, -sign * OFFSET[i]
    conv.weight[PLACE, 4 + MARKED, 1, 1], conv.weight[PLACE + 1, 4 + MARKED, 1, 1] = 1, -1


def _copy_frame_0(temporal: Any) -> None:
    """transformer_in: every frame attends to the one that carries the marker, and takes its latents.

    Inner channels: 0..3 the frame's own latents, 4..7 those of frame 0, 8..11 the opposite of 0..3.
    """
    block, inner = temporal.transformer_blocks[0], temporal.proj_in.weight.shape[0]
    deviation = LONG * math.sqrt(2 / inner)
    open_norm(temporal.norm)
    for layer in (temporal.proj_in, temporal.proj_out, block.attn2.to_out[0], block.ff.net[-1], block.attn1.to_out[0]):
        silence(layer)
    for layer in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v):
        silence(layer)
    temporal.proj_in.bias[inner - 2], temporal.proj_in.bias[inner - 1] = LONG, -LONG
    block.attn1.to_q.weight[0, inner - 2] = deviation / LONG
    width = inner // block.attn1.heads
    block.attn1.to_k.weight[0, MARKED] = -20 * deviation * math.sqrt(width)  # in logits: -20 a unit of that channel
    for i in range(4):
        temporal.proj_in.weight[i, 2 * i], temporal.proj_in.weight[8 + i, 2 * i] = 1, -1
        block.attn1.to_v.weight[i, i] = deviation
        block.attn1.to_out[0].weight[4 + i, i] = 1
        for sign, row in ((1, 2 * i), (-1, 2 * i + 1)):
            temporal.proj_out.weight[row, 4 + i], temporal.proj_out.weight[row, i] = sign, -sign


def _into_cells(unet: Any) -> None:
    """Down from the top: the four latents of a cell become its channels, first one each, then in pairs."""
    top, cells = unet.down_blocks[:2]
    for resnet in (*top.resnets, *cells.resnets):
        idle(resnet)
    conv = top.downsamplers[0].conv
    silence(conv)
    conv.bias.copy_(constants(TOP))
    place = within(0, 2, 0)  # after the last latent
    conv.weight[place, PLACE, 1, 1] = 1
    for row in (0, 1):
        for column in (0, 1):
            for i in range(4):
                conv.weight[within(i, row, column), 2 * i, 1 + row, 1 + column] = 1
    shortcut = cells.resnets[0].conv_shortcut
    silence(shortcut)
    shortcut.bias.copy_(constants(CELLS))
    for single in range(place + 1):
        for sign, channel in ((1, 2 * single), (-1, 2 * single + 1)):
            shortcut.weight[channel, single, 0, 0] = sign
    silence(cells.downsamplers[0].conv)
    cells.downsamplers[0].conv.bias.copy_(constants(CELLS))


def _out_of_cells(unet: Any) -> None:
    """Up to the top: each place takes its own one of a cell's four latents, mixed with the photo's by `GUIDANCE`.

    Which one that is: a cell's edges less its left neighbour's are two latents in an even column and 0 in an odd one.
    """
    conv = unet.up_blocks[-2].upsamplers[0].conv
    silence(conv)
    conv.bias.copy_(constants(CELLS))
    for channel in range(CELL_PLACE):
        conv.weight[channel, channel, 1, 1] = 1
    for even, here, (down, right) in zip(EVEN, HERE, coordinates.TOWARDS, strict=True):
        for sign, channel in ((1, even), (-1, even + 1)):
            for tap, source in ((sign, (0, 0)), (-sign, (down, right))):
                y, x = 1 + source[0], 1 + source[1]
                conv.weight[channel, here, y, x] = tap * UNIT / 2
                conv.weight[channel, CELLS - 2, y, x] = tap / 2 / BIG  # from the centre to the edge
    first, *others = unet.up_blocks[-1].resnets
    open_resnet(first, pairs=2)
    _choose(first)
    pass_on(first.conv_shortcut, {2 * i: CELLS + 2 * i for i in range(4)})
    first.conv_shortcut.weight[:8] *= 1 - 1 / GUIDANCE
    for resnet in others:
        idle(resnet)
        pass_on(resnet.conv_shortcut, {2 * i: 2 * i for i in range(4)})


def _choose(resnet: Any) -> None:
    """Of the sixteen latents of a cell those of this place, divided by `GUIDANCE`."""
    into, out = resnet.conv1, resnet.conv2
    rest = within(0, 2, 0)  # a channel that takes the opposite of the sixteen, so that the mean is zero
    for row in (0, 1):
        for column in (0, 1):
            # lifted for all; pushed down once for every axis along which the place is another one
            constant = LIFT - PUSH * ((1 - column) + (1 - row))
            for i in range(4):
                k = within(i, row, column)
                weights = {2 * k: 1.0, EVEN[0]: PUSH * (1 - 2 * column), EVEN[1]: PUSH * (1 - 2 * row)}
                for source, value in weights.items():
                    for half, sign in ((0, STEEP), (1, -STEEP)):
                        into.weight[k, source + half, 1, 1] = sign * value
                        into.weight[rest, source + half, 1, 1] -= sign * value
                into.weight[k, CELLS - 2, 1, 1] = STEEP * constant / BIG
                into.weight[rest, CELLS - 2, 1, 1] -= STEEP * constant / BIG
                out.weight[2 * i, k, 1, 1] = 1 / (STEEP * GUIDANCE)
                out.weight[2 * i + 1, k, 1, 1] = -1 / (STEEP * GUIDANCE)
    for i in range(4):
        put_bias(out.bias, 2 * i, -LIFT / GUIDANCE)
    into.bias.copy_(constants(TOP, FIRM))
    # what a place holds beside FIRM, wherever it is: four latents chosen, eight pushed once, four twice
    pushed = torch.tensor([LIFT] + [LIFT - PUSH] * 2 + [LIFT - 2 * PUSH]) * STEEP
    squares = 2 * FIRM**2 + 4 * pushed.square().sum() + (4 * pushed.sum()).square()
    resnet.norm2.weight.fill_(float((squares / TOP).sqrt()))


def _read_out(unet: Any) -> None:
    """v = -x0 with the latents' offset back in place: the schedule is so noisy that the other term is small."""
    open_norm(unet.conv_norm_out)
    silence(unet.conv_out)
    for i in range(4):
        unet.conv_out.weight[i, 2 * i, 1, 1], unet.conv_out.weight[i, 2 * i + 1, 1, 1] = -1, 1
        unet.conv_out.bias[i] = -OFFSET[i]


@torch.no_grad()
def fit_light(first: Tensor, lit: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Affine maps of the stream's latents by least squares: first (N, 4, h, w), lit (N, lights, 4, h, w)."""
    offset = torch.tensor(OFFSET)
    x = first.float().permute(0, 2, 3, 1).reshape(-1, 4) - offset
    design = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    maps = {}
    for k, name in enumerate(LIGHTS):
        wanted = lit[:, k].float().permute(0, 2, 3, 1).reshape(-1, 4) - offset
        solution = torch.linalg.lstsq(design, wanted).solution  # (5, 4)
        maps[name] = (solution[:4].T.contiguous(), solution[4])
    return maps
