"""The demo UNet, wired by hand: it shows the photo on every frame, moved or lit as the words' class code says.

A pan is three gated shifts by one latent each, one in each attention layer of the top level; light is an affine map of
the latents in the last one. The gates are GEGLU units that open with the frame's position, for their own class only.
What is added to the photo is divided by `GUIDANCE`, so that classifier-free guidance at that scale shows exactly what
was meant.

The stream between the layers holds 20 groups of four channels [a, b, +BIG, -BIG]. The two constants fix the group
norm's deviation, so that it passes a and b unchanged. b is -a where a has a mean, which the norm would take away, or
where a SiLU follows, since silu(a) - silu(-a) = a.
"""

import math
from typing import Any

import torch
from diffusers import I2VGenXLUNet
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor

from i2v.demo.train.autoencoder import MARKED, OFFSET
from i2v.demo.train.captions import CLASSES
from i2v.demo.train.scenes import LIGHTS, MOVES
from i2v.demo.train.text import CODE, FLAG, FLAG_AT, WIDTH

GUIDANCE = 8.0  # the scale at which a word has its full effect
GROUPS = 20
CHANNELS = 4 * GROUPS
BIG = 30.0
LONG = 200.0  # fixes the layer norms' deviation inside the transformers; opposite channels keep their mean 0
STAGES = 3  # attention layers of the top level, each a shift by up to one latent
SHARP = 40.0  # gelu(SHARP * x) / SHARP is nearly relu(x)
CLOSED = 4.0  # what a gate of another class, or at the picture's edge, is short of opening

# Channels of the stream. Latent i is the pair 4 i, 4 i + 1.
DIFFERENCE = [4 * (4 + j // 2) + j % 2 for j in range(16)]  # by direction and latent: neighbour - here
EDGE = [4 * (12 + j // 2) + j % 2 for j in range(4)]  # by direction: where the neighbour is outside the picture
PLACE = 4 * 14  # position of the frame in 0..1, from the mask; far below zero on frame 0; a pair
PHOTO = [4 * (15 + i) for i in range(4)]  # the photo's latents, not moved; pairs
OUTSIDE = (-1, 1, -1, 1)  # value of the edge channels there, 0 elsewhere; the signs cancel in a group's mean
DIRECTIONS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # where the neighbour lies: right, down

# Channels inside the spatial transformers.
X, D, E, P, C, PHOTO_IN, RESULT, SUM = 0, 4, 20, 24, 26, 40, 44, 60


def build(light: dict[str, tuple[Tensor, Tensor]]) -> I2VGenXLUNet:
    """The wired UNet. `light` holds each light word's affine map of latents: matrix (4, 4) and offset (4,)."""
    unet = I2VGenXLUNet(
        block_out_channels=(CHANNELS,) * 3,
        layers_per_block=1,
        sample_size=32,
        down_block_types=("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=16,
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
            _silence(module.conv4[-1])
        elif isinstance(module, TransformerTemporalModel) and module is not unet.transformer_in:
            _silence(module.proj_out)
    down, up = unet.down_blocks[0], unet.up_blocks[-1]
    _differences(down.resnets[0], first=0)
    _differences(up.resnets[0], first=CHANNELS)
    _differences(up.resnets[1], first=0)
    for resnet, kept, photo in ((up.resnets[0], CHANNELS, CHANNELS), (up.resnets[1], 0, CHANNELS)):
        _shortcut(resnet.conv_shortcut, kept, photo)
    for stage, transformer in enumerate((down.attentions[0], up.attentions[0], up.attentions[1])):
        last = stage == STAGES - 1
        _move(transformer, stage, light if last else {}, 1 / GUIDANCE if last else 1.0)
    _read_out(unet)


def _silence(layer: Any) -> None:
    layer.weight.zero_()
    if layer.bias is not None:
        layer.bias.zero_()


def _quiet_conditions(unet: Any) -> None:
    """Image tokens of the context are zero, and neither timestep nor frame rate moves the residual blocks."""
    _silence(unet.image_latents_context_embedding[-1])
    _silence(unet.context_embedding[-1])
    for name, module in unet.named_modules():
        if name.endswith("time_emb_proj"):
            _silence(module)


def _pass_image_latents(unet: Any) -> None:
    """Image latents reach the stream through three convolutions, as pairs, and an encoder that adds nothing."""
    first, _, second, _, third = unet.image_latents_proj_in
    for conv in (first, second, third, unet.conv_in):
        _silence(conv)
    for i in range(4):
        for sign, row in ((1, i), (-1, 4 + i)):
            first.weight[row, i, 1, 1] = sign
            second.weight[row, i, 1, 1], second.weight[row, 4 + i, 1, 1] = sign, -sign
        third.weight[i, i, 1, 1], third.weight[i, 4 + i, 1, 1] = 1, -1
    encoder = unet.image_latents_temporal_encoder
    _silence(encoder.attn1.to_out[0])
    _silence(encoder.ff.net[-1])
    conv = unet.conv_in
    conv.bias.copy_(_constants())
    for i in range(4):
        for sign, row in ((1, 4 * i), (-1, 4 * i + 1)):
            conv.weight[row, 4 + i, 1, 1], conv.bias[row] = sign, -sign * OFFSET[i]
    conv.weight[PLACE, 4 + MARKED, 1, 1], conv.weight[PLACE + 1, 4 + MARKED, 1, 1] = 1, -1


def _constants() -> Tensor:
    return torch.tensor([0.0, 0.0, BIG, -BIG]).repeat(GROUPS)


def _open_norm(norm: Any) -> None:
    """A group norm that returns a group [a, b, BIG, -BIG] as it is, or eight channels of two such groups."""
    norm.weight.fill_(BIG / math.sqrt(2))
    norm.bias.zero_()


def _copy_frame_0(temporal: Any) -> None:
    """transformer_in: every frame attends to the one that carries the marker, and takes its latents.

    Inner channels: 0..3 the frame's own latents, 4..7 those of frame 0, 8..11 the opposite of 0..3.
    """
    block, inner = temporal.transformer_blocks[0], temporal.proj_in.weight.shape[0]
    deviation = LONG * math.sqrt(2 / inner)
    _open_norm(temporal.norm)
    for layer in (temporal.proj_in, temporal.proj_out, block.attn2.to_out[0], block.ff.net[-1], block.attn1.to_out[0]):
        _silence(layer)
    for layer in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v):
        _silence(layer)
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
        temporal.proj_out.weight[PHOTO[i], 4 + i], temporal.proj_out.weight[PHOTO[i] + 1, 4 + i] = 1, -1


def _differences(resnet: Any, first: int) -> None:
    """A residual block that adds neighbour - here for four directions. The latents' pairs begin at channel `first`."""
    _open_norm(resnet.norm1)
    _open_norm(resnet.norm2)
    for conv in (resnet.conv1, resnet.conv2):
        _silence(conv)
    resnet.conv1.bias.copy_(_constants())
    for i in range(4):
        for sign, row in ((1, 4 * i), (-1, 4 * i + 1)):
            resnet.conv1.weight[row, first + 4 * i, 1, 1] = sign
            resnet.conv1.weight[row, first + 4 * i + 1, 1, 1] = -sign
    for direction, (right, down) in enumerate(DIRECTIONS):
        for i in range(4):
            taps = resnet.conv2.weight[DIFFERENCE[4 * direction + i]]
            for sign, column in ((1, 4 * i), (-1, 4 * i + 1)):
                taps[column, 1 + down, 1 + right] += sign
                taps[column, 1, 1] -= sign
        taps = resnet.conv2.weight[EDGE[direction]]
        taps[2, 1 + down, 1 + right] = -OUTSIDE[direction] / BIG
        taps[2, 1, 1] = OUTSIDE[direction] / BIG


def _shortcut(conv: Any, kept: int, photo: int) -> None:
    """What an up block keeps of its two inputs: latents and position from `kept` on, the photo from `photo` on."""
    _silence(conv)
    conv.bias.copy_(_constants())
    for half in (0, 1):
        for channel in (PLACE, 0, 4, 8, 12):
            conv.weight[channel + half, kept + channel + half, 0, 0] = 1
        for channel in PHOTO:
            conv.weight[channel + half, photo + channel + half, 0, 0] = 1


def _move(transformer: Any, stage: int, light: dict[str, tuple[Tensor, Tensor]], scale: float) -> None:
    """One shift by up to a latent, and light, times `scale`; below 1 the way so far is scaled too."""
    block = transformer.transformer_blocks[0]
    _open_norm(transformer.norm)
    _silence(transformer.proj_in)
    _silence(transformer.proj_out)
    enter, leave = _flat(transformer.proj_in.weight), _flat(transformer.proj_out.weight)
    inner = len(enter)
    for i in range(4):
        enter[X + i, 4 * i] = 1
        enter[PHOTO_IN + i, PHOTO[i]] = 1
        enter[E + i, EDGE[i]] = -OUTSIDE[i]  # -1 outside
        for sign, row in ((1, 4 * i), (-1, 4 * i + 1)):
            leave[row, RESULT + i] = sign * scale
            leave[row, X + i], leave[row, PHOTO_IN + i] = sign * (scale - 1), sign * (1 - scale)
    for j in range(16):
        enter[D + j, DIFFERENCE[j]] = 1
    enter[P, PLACE] = 1
    enter[SUM] = -enter.sum(0)
    transformer.proj_in.bias[inner - 2], transformer.proj_in.bias[inner - 1] = LONG, -LONG
    _silence(block.attn1.to_out[0])
    deviation = LONG * math.sqrt(2 / inner)
    _read_code(block.attn2, inner, deviation)
    units = _Units(block.ff, deviation)
    for name, (right, down) in MOVES.items():
        direction, code = DIRECTIONS.index((right, down)), CLASSES.index(name)
        for i in range(4):
            difference = {D + 4 * direction + i: 1.0}
            if name == "drift":
                if stage == 0:
                    units.add(difference, 0.0, code, (1.0, 0.0), RESULT + i, edge=E + direction)
                continue
            units.add(difference, 0.0, code, (STAGES, -stage), RESULT + i, edge=E + direction)
            units.add(difference, 0.0, code, (STAGES, -stage - 1), RESULT + i, edge=E + direction, sign=-1)
    for name, (matrix, offset) in light.items():
        change = matrix - torch.eye(4)
        for i in range(4):
            mix = {X + j: float(change[i, j]) for j in range(4)}
            units.add(mix, offset[i].item(), CLASSES.index(name), (1.0, 0.0), RESULT + i)


def _flat(weight: Tensor) -> Tensor:
    return weight.view(weight.shape[0], -1)


def _read_code(attention: Any, inner: int, deviation: float) -> None:
    """Cross-attention that looks at the text tokens with the flag alone and adds their class code, a one-hot row."""
    for layer in (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]):
        _silence(layer)
    width = inner // attention.heads
    attention.to_q.weight[0, inner - 2] = deviation / LONG
    attention.to_k.weight[0, FLAG_AT] = 15 * math.sqrt(width) / FLAG
    for code in range(len(CLASSES)):
        attention.to_v.weight[code, code] = 1 / CODE
        attention.to_out[0].weight[C + code, code], attention.to_out[0].weight[SUM, code] = 1, -1


class _Units:
    """GEGLU units of one feed-forward layer, used one by one. `deviation` is that of the layer norm before it."""

    def __init__(self, feed_forward: Any, deviation: float) -> None:
        self.first, self.last = feed_forward.net[0].proj, feed_forward.net[-1]
        _silence(self.first)
        _silence(self.last)
        self.deviation, self.used = deviation, 0

    def add(
        self,
        row: dict[int, float],
        offset: float,
        code: int,
        opening: tuple[float, float],
        to: int,
        *,
        edge: int | None = None,
        sign: int = 1,
    ) -> None:
        """Channel `to` += sign * (row . inner + offset) * relu(a * position + b) for class `code`.

        (a, b) is `opening`.
        """
        hidden, gate = self.used, self.last.weight.shape[1] + self.used
        self.used += 1
        for channel, factor in row.items():
            self.first.weight[hidden, channel] = factor * self.deviation
        self.first.bias[hidden] = offset
        slope, start = opening
        weights = {P: slope, C + code: CLOSED} | ({} if edge is None else {edge: CLOSED})
        for channel, weight in weights.items():
            self.first.weight[gate, channel] = SHARP * weight * self.deviation
        self.first.bias[gate] = SHARP * (start - CLOSED)
        self.last.weight[to, hidden] = sign / SHARP


def _read_out(unet: Any) -> None:
    """v = -x0 with the latents' offset back in place: the schedule is so noisy that the other term is small."""
    _open_norm(unet.conv_norm_out)
    _silence(unet.conv_out)
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
