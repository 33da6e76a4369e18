"""The demo UNet, wired by hand: it shows the photo on every frame, moved or lit as the words' class code says.

Motion is a gather: the first attention layer of the top level computes, from the class code, the frame's position and
the place in the picture, where each cell's content is to be taken from, and the self-attention of the second takes it
from there. Any smooth displacement can be asked for so; where it points outside, the nearest cell of the edge answers.
Light is an affine map of the latents. What is added to the photo is divided by `GUIDANCE`, so that classifier-free
guidance at that scale shows exactly what was meant.

`stream.py` says what the channels hold, `coordinates.py` how a cell knows its place.
"""

import math
from typing import Any

import torch
from diffusers import I2VGenXLUNet
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor

from tools.demo_model import coordinates
from tools.demo_model.autoencoder import MARKED, OFFSET
from tools.demo_model.captions import CLASSES
from tools.demo_model.scenes import LIGHTS, MOVES
from tools.demo_model.stream import (
    ACROSS,
    CHANNELS,
    DOWN,
    GROUPS,
    PLACE,
    SQUARE,
    TO_ACROSS,
    TO_DOWN,
    UNIT,
    constants,
    idle,
    open_norm,
    pass_on,
    silence,
)
from tools.demo_model.text import CODE, FLAG, FLAG_AT, WIDTH

GUIDANCE = 8.25  # the scale at which a word has its full effect; 7.5 and the contract's 9 are a tenth to either side
LONG = 300.0  # fixes the layer norms' deviation inside the transformers; opposite channels keep their mean 0
SMALL = 1 / 16  # of the latents there, for the same reason
SHARP = 40.0  # gelu(SHARP * x) / SHARP is nearly relu(x)
CLOSED = 4.0  # what a gate of another class is short of opening
FOCUS = 3.0  # a cell d latents from the wanted place has the weight exp(-FOCUS d^2): near linear interpolation

# Channels inside the spatial transformers: latents, place of the cell, place to take from, square, position, class
# code, what attention found, what is to be added, and the opposite of all that was put in.
X, HERE, THERE, SQUARED, P, C, FOUND, RESULT, SUM = 0, 4, 6, 8, 9, 10, 24, 28, 32
ADDED = 33  # to THERE and SQUARED, in the first of the two


def build(light: dict[str, tuple[Tensor, Tensor]]) -> I2VGenXLUNet:
    """The wired UNet. `light` holds each light word's affine map of latents: matrix (4, 4) and offset (4,)."""
    levels = coordinates.LEVELS
    unet = I2VGenXLUNet(
        block_out_channels=(CHANNELS,) * levels,
        layers_per_block=1,
        sample_size=32,
        down_block_types=("DownBlock3D",) * levels,
        up_block_types=("UpBlock3D",) * (levels - 1) + ("CrossAttnUpBlock3D",),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=GROUPS,
    )
    with torch.no_grad():
        _wire(unet, light)
    return unet.eval()


def _wire(unet: Any, light: dict[str, tuple[Tensor, Tensor]]) -> None:
    _quiet_conditions(unet)
    _pass_image_latents(unet)
    _copy_frame_0(unet.transformer_in)
    for module in unet.modules():
        if isinstance(module, TemporalConvLayer):
            silence(module.conv4[-1])
        elif isinstance(module, TransformerTemporalModel) and module is not unet.transformer_in:
            silence(module.proj_out)
    coordinates.wire(unet)
    top = unet.up_blocks[-1]
    photo, place = (0, 4, 8, 12, PLACE), (ACROSS, DOWN)
    pass_on(top.resnets[0].conv_shortcut, {c: c + CHANNELS for c in photo} | {c: c for c in place})
    idle(top.resnets[1])
    everything = (*photo, *place, TO_ACROSS, TO_DOWN, SQUARE)
    pass_on(top.resnets[1].conv_shortcut, {c: c for c in everything})
    _aim(top.attentions[0])
    _gather(top.attentions[1], light)
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
    conv.bias.copy_(constants())
    for i in range(4):
        for sign, row in ((1, 4 * i), (-1, 4 * i + 1)):
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
        temporal.proj_in.weight[i, 4 * i], temporal.proj_in.weight[8 + i, 4 * i] = 1, -1
        block.attn1.to_v.weight[i, i] = deviation
        block.attn1.to_out[0].weight[4 + i, i] = 1
        for sign, row in ((1, 4 * i), (-1, 4 * i + 1)):
            temporal.proj_out.weight[row, 4 + i], temporal.proj_out.weight[row, i] = sign, -sign


class _Layer:
    """One spatial transformer, cleared: its weights, and how channels of the stream enter and leave it."""

    def __init__(self, transformer: Any) -> None:
        self.block = transformer.transformer_blocks[0]
        for layer in (transformer.proj_in, transformer.proj_out, self.block.attn1.to_out[0]):
            silence(layer)
        for layer in (self.block.attn1.to_q, self.block.attn1.to_k, self.block.attn1.to_v):
            silence(layer)
        open_norm(transformer.norm)
        self.proj_in, self.proj_out = transformer.proj_in, transformer.proj_out
        self.inner = len(self.proj_in.weight)
        self.deviation = LONG * math.sqrt(2 / self.inner)
        self.proj_in.bias[self.inner - 2], self.proj_in.bias[self.inner - 1] = LONG, -LONG
        self.heads = self.block.attn1.heads
        _read_code(self.block.attn2, self.inner, self.deviation)
        self.units = _Units(self.block.ff, self.deviation)

    def enter(self, channels: dict[int, tuple[int, float]]) -> None:
        """Inner channel = factor x a pair of the stream; SUM takes the opposite of all."""
        weight = self.proj_in.weight.view(self.inner, -1)
        for inner, (channel, factor) in channels.items():
            weight[inner, channel] = factor
            weight[SUM, channel] -= factor

    def leave(self, pair: int, inner: int, factor: float = 1.0) -> None:
        weight = self.proj_out.weight.view(-1, self.inner)
        weight[pair, inner] += factor
        weight[pair + 1, inner] -= factor


def _aim(transformer: Any) -> None:
    """Where each cell's content comes from: its own place, moved as the word says; and the square of its place."""
    layer = _Layer(transformer)
    layer.enter({HERE: (ACROSS, 1), HERE + 1: (DOWN, 1), P: (PLACE, 1)})
    for axis, (here, there) in enumerate(((HERE, TO_ACROSS), (HERE + 1, TO_DOWN))):
        layer.leave(there, here)
        layer.leave(there, ADDED + axis)
        for sign in (1, -1):  # x gelu(x) - x gelu(-x) = x^2
            layer.units.square(here, sign, ADDED + 2)
    layer.leave(SQUARE, ADDED + 2)
    for name, move in MOVES.items():
        for axis, latents in enumerate((move.right / 8, move.down / 8)):
            if latents or move.zoom:
                row = {HERE + axis: -move.zoom}
                layer.units.add(row, latents / UNIT, (name,), (1.0, 0.0), ADDED + axis)


def _gather(transformer: Any, light: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Take the content from where the layer before aims, or change the light; both divided by `GUIDANCE`."""
    layer = _Layer(transformer)
    layer.enter({X + i: (4 * i, SMALL) for i in range(4)} | {P: (PLACE, 1)})
    layer.enter({HERE: (ACROSS, 1), HERE + 1: (DOWN, 1), SQUARED: (SQUARE, 1)})
    layer.enter({THERE: (TO_ACROSS, 1), THERE + 1: (TO_DOWN, 1)})
    attention, deviation = layer.block.attn1, layer.deviation
    logits = FOCUS * UNIT**2 * math.sqrt(layer.inner // layer.heads)  # -FOCUS |there - here|^2 less what all share
    for axis in (0, 1):
        attention.to_q.weight[axis, THERE + axis] = 2 * math.sqrt(logits) * deviation
        attention.to_k.weight[axis, HERE + axis] = math.sqrt(logits) * deviation
    attention.to_q.weight[2, layer.inner - 2] = -math.sqrt(logits) * deviation / LONG
    attention.to_k.weight[2, SQUARED] = math.sqrt(logits) * deviation
    for i in range(4):
        attention.to_v.weight[i, X + i] = deviation
        attention.to_out[0].weight[FOUND + i, i], attention.to_out[0].weight[SUM, i] = 1, -1
        layer.leave(4 * i, RESULT + i, 1 / (SMALL * GUIDANCE))
        for start, sign in ((1.5, 1), (0.5, -1)):  # between them 1, and 0 on frame 0
            change = {FOUND + i: 1.0, X + i: -1.0}
            layer.units.add(change, 0.0, tuple(MOVES), (1.0, start), RESULT + i, sign=sign)
    for name, (matrix, offset) in light.items():
        change_of = matrix - torch.eye(4)
        for i in range(4):
            mix = {X + j: float(change_of[i, j]) for j in range(4)}
            layer.units.add(mix, SMALL * offset[i].item(), (name,), (1.0, 0.0), RESULT + i)


def _read_code(attention: Any, inner: int, deviation: float) -> None:
    """Cross-attention that looks at the text tokens with the flag alone and adds their class code, a one-hot row."""
    for layer in (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]):
        silence(layer)
    width, heads = inner // attention.heads, attention.heads
    for head in range(heads):
        attention.to_q.weight[head * width, inner - 2] = deviation / LONG
        attention.to_k.weight[head * width, FLAG_AT] = 15 * math.sqrt(width) / FLAG
    for code in range(len(CLASSES)):
        attention.to_v.weight[code, code] = 1 / CODE
        attention.to_out[0].weight[C + code, code], attention.to_out[0].weight[SUM, code] = 1, -1


class _Units:
    """GEGLU units of one feed-forward layer, used one by one. `deviation` is that of the layer norm before it."""

    def __init__(self, feed_forward: Any, deviation: float) -> None:
        self.first, self.last = feed_forward.net[0].proj, feed_forward.net[-1]
        silence(self.first)
        silence(self.last)
        self.deviation, self.used = deviation, 0

    def _next(self) -> tuple[int, int]:
        self.used += 1
        return self.used - 1, self.last.weight.shape[1] + self.used - 1

    def square(self, channel: int, sign: int, to: int) -> None:
        """Channel `to` += half of a square; with both signs the whole of it, exactly."""
        hidden, gate = self._next()
        self.first.weight[hidden, channel] = sign * self.deviation
        self.first.weight[gate, channel] = sign * SHARP * self.deviation
        self.last.weight[to, hidden] = 1 / SHARP

    def add(
        self,
        row: dict[int, float],
        offset: float,
        names: tuple[str, ...],
        opening: tuple[float, float],
        to: int,
        *,
        sign: int = 1,
    ) -> None:
        """Channel `to` += sign * (row . inner + offset) * relu(a * position + b) for the classes `names`.

        (a, b) is `opening`.
        """
        hidden, gate = self._next()
        for channel, factor in row.items():
            self.first.weight[hidden, channel] = factor * self.deviation
        self.first.bias[hidden] = offset
        slope, start = opening
        for channel, weight in {P: slope, **{C + CLASSES.index(name): CLOSED for name in names}}.items():
            self.first.weight[gate, channel] = SHARP * weight * self.deviation
        self.first.bias[gate] = SHARP * (start - CLOSED)
        self.last.weight[to, hidden] = sign / SHARP


def _read_out(unet: Any) -> None:
    """v = -x0 with the latents' offset back in place: the schedule is so noisy that the other term is small."""
    open_norm(unet.conv_norm_out)
    silence(unet.conv_out)
    for i in range(4):
        unet.conv_out.weight[i, 4 * i, 1, 1], unet.conv_out.weight[i, 4 * i + 1, 1, 1] = -1, 1
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
