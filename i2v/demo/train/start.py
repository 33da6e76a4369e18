"""The analytic start of the demo UNet: before the first step it already copies frame 0 to every frame.

conv_in passes the image latents as pairs (+x, -x) beside constants, so that GroupNorm and SiLU stay near linear. Latent
channel 3 carries the marker of `autoencoder.MARKER`, by which the first temporal attention recognises frame 0 for any
number of frames and hands its latents to all; the last skip connection and conv_out read them as v = -x0. The class
code of `text` enters every cross-attention through rows of its own.
"""

from typing import Any

import torch
from diffusers import I2VGenXLUNet
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor, nn

from i2v.demo.train.captions import CLASSES

WIDTHS = (48, 96, 144)
GROUP = 4  # channels of a GroupNorm group at the top level
CONSTANT = 6.0
COPY = 16  # channels 16..19: frame 0's latents, on every frame
NOISE = 20  # channels 20..23: the noisy latents
PLACE = 24  # channels 24..27: +p, -p and two constants, p the position mask of the frame


def build(widths: tuple[int, ...] = WIDTHS) -> I2VGenXLUNet:
    """An untrained UNet of the published family: cross-attention on the upper levels, none on the lowest."""
    upper = len(widths) - 1
    unet = I2VGenXLUNet(
        block_out_channels=widths,
        layers_per_block=1,
        sample_size=32,
        down_block_types=("CrossAttnDownBlock3D",) * upper + ("DownBlock3D",),
        up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * upper,
        cross_attention_dim=64,
        attention_head_dim=8,
        norm_num_groups=widths[0] // GROUP,
    )
    for module in unet.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    _wire(unet)
    return unet


@torch.no_grad()
def _wire(unet: I2VGenXLUNet) -> None:
    _image_branch(unet)
    _copy_frame_0(unet)
    _still_frames(unet)
    _class_code(unet)
    _read_out(unet)


def _image_branch(unet: I2VGenXLUNet) -> None:
    """Image latents pass three convolutions unchanged, and conv_in as pairs."""
    first, _, second, _, third = unet.image_latents_proj_in
    for conv in (first, second, third):
        conv.weight *= 0.3
    first.weight[:8], first.bias[:8] = 0, 0
    second.weight[:8], second.bias[:8] = 0, 0
    third.weight[:, :8] = 0
    third.weight *= 0.3
    third.bias.zero_()
    for i in range(4):
        first.weight[i, i, 1, 1], first.weight[4 + i, i, 1, 1] = 1, -1
        for sign, row in ((1, i), (-1, 4 + i)):
            second.weight[row, i, 1, 1], second.weight[row, 4 + i, 1, 1] = sign, -sign
        third.weight[i, i, 1, 1], third.weight[i, 4 + i, 1, 1] = 1, -1
    encoder = unet.image_latents_temporal_encoder
    for linear in (encoder.attn1.to_out[0], encoder.ff.net[-1]):
        linear.weight *= 0.03
        linear.bias.zero_()
    conv = unet.conv_in
    conv.weight[:, :4] *= 0.3
    conv.weight[: PLACE + 4], conv.bias[: PLACE + 4] = 0, 0
    for i in range(4):
        conv.weight[GROUP * i, 4 + i, 1, 1], conv.weight[GROUP * i + 1, 4 + i, 1, 1] = 1, -1
        conv.bias[GROUP * i + 2], conv.bias[GROUP * i + 3] = CONSTANT, -CONSTANT
        conv.weight[NOISE + i, i, 1, 1] = 0.5
    conv.weight[PLACE, 7, 1, 1], conv.weight[PLACE + 1, 7, 1, 1] = 1, -1
    conv.bias[PLACE + 2], conv.bias[PLACE + 3] = 2, -2


def _copy_frame_0(unet: I2VGenXLUNet) -> None:
    """transformer_in: every frame attends to the frame that carries the marker and takes its latents."""
    temporal = unet.transformer_in
    inner = temporal.proj_in.weight.shape[0]
    kept = inner - 4  # the last four inner channels are the copy's
    temporal.proj_in.weight *= 0.5
    temporal.proj_in.bias.zero_()
    temporal.proj_in.weight[:16], temporal.proj_in.weight[kept:] = 0, 0
    for i in range(16):
        temporal.proj_in.weight[i, i] = 1
    block = temporal.transformer_blocks[0]
    attention = block.attn1
    for linear in (attention.to_q, attention.to_k, attention.to_v):
        linear.weight[:8] = 0
    attention.to_q.weight[0, 2], attention.to_q.weight[0, 3] = 3.0, -3.0
    attention.to_k.weight[0, 12], attention.to_k.weight[0, 13] = -3.0, 3.0
    for i in range(4):
        attention.to_v.weight[i, GROUP * i], attention.to_v.weight[i, GROUP * i + 1] = 0.5, -0.5
    for linear, gain in ((attention.to_out[0], 0.3), (block.attn2.to_out[0], 0.1), (block.ff.net[-1], 0.1)):
        linear.weight *= gain
        linear.bias.zero_()
        linear.weight[kept:] = 0
    attention.to_out[0].weight[:, :8] = 0
    temporal.proj_out.weight *= 0.3
    temporal.proj_out.bias.zero_()
    temporal.proj_out.weight[: PLACE + 4] = 0
    for i in range(4):
        attention.to_out[0].weight[kept + i, i] = 1
        temporal.proj_out.weight[COPY + i, kept + i] = 1


def no_ops(unet: I2VGenXLUNet) -> list[nn.Module]:
    """Temporal modules below transformer_in: exact no-ops here, so that frames leave each other's norms alone."""
    return [
        module
        for module in unet.modules()
        if isinstance(module, TemporalConvLayer)
        or (isinstance(module, TransformerTemporalModel) and module is not unet.transformer_in)
    ]


def _still_frames(unet: I2VGenXLUNet) -> None:
    for module in no_ops(unet):
        last: Any = module.conv4[-1] if isinstance(module, TemporalConvLayer) else module.proj_out
        last.weight.zero_()
        last.bias.zero_()


def _class_code(unet: I2VGenXLUNet) -> None:
    """Near-uniform cross-attention whose first value rows are the class code; image tokens carry none of it."""
    count = len(CLASSES)
    centred = torch.eye(count) - 1 / count
    for name, module in unet.named_modules():
        if name.endswith("attn2") and ".attentions." in name:
            module.to_q.weight *= 0.2
            module.to_v.weight[:count] = 0
            module.to_v.weight[:count, :count] = centred * 0.6
            module.to_out[0].weight[:, :count] *= 2
    last = unet.image_latents_context_embedding[-1]
    last.weight[:count], last.bias[:count] = 0, 0
    linear = unet.context_embedding[-1]
    tokens = linear.weight.shape[0] // unet.config.cross_attention_dim
    for token in range(tokens):
        rows = slice(token * unet.config.cross_attention_dim, token * unet.config.cross_attention_dim + count)
        linear.weight[rows], linear.bias[rows] = 0, 0


def _read_out(unet: I2VGenXLUNet) -> None:
    """The last residual block takes the copy from the first skip connection; conv_out reads v = -x0."""
    width = unet.config.block_out_channels[0]
    last = unet.up_blocks[-1].resnets[-1]
    shortcut = last.conv_shortcut
    kept = PLACE  # rows 0..15 latents as pairs, 16..19 the frame's position
    shortcut.weight[:kept], shortcut.bias[:kept] = 0, 0
    last.conv2.weight[:20], last.conv2.bias[:20] = 0, 0
    for i in range(4):
        row = GROUP * i
        shortcut.weight[row, width + COPY + i, 0, 0], shortcut.weight[row + 1, width + COPY + i, 0, 0] = 1, -1
        shortcut.bias[row + 2], shortcut.bias[row + 3] = CONSTANT, -CONSTANT
        shortcut.weight[16 + i, width + PLACE + i, 0, 0] = 1
    for attention in unet.up_blocks[-1].attentions:
        attention.proj_out.weight *= 0.1
        attention.proj_out.bias.zero_()
    out = unet.conv_out
    out.weight *= 0.1
    out.bias.zero_()
    out.weight[:, :16] = 0
    for i in range(4):
        out.weight[i, GROUP * i, 1, 1], out.weight[i, GROUP * i + 1, 1, 1] = -1, 1


@torch.no_grad()
def calibrate(unet: I2VGenXLUNet, x0: Tensor, image_latents: Tensor, image: Tensor, text: Tensor) -> Tensor:
    """Fit gain and offset of the copy and of conv_out on clips x0 (B, 4, F, h, w); returns the error by frame (F,)."""
    clips, _, frames = x0.shape[:3]

    def predict() -> Tensor:
        prediction: Tensor = unet(
            torch.randn_like(x0),
            torch.full((clips,), 999),
            fps=torch.full((clips,), 16),
            image_latents=image_latents,
            image_embeddings=image,
            encoder_hidden_states=text,
        ).sample
        return prediction

    seen: dict[str, Tensor] = {}
    hook = unet.transformer_in.register_forward_hook(lambda _m, _i, out: seen.__setitem__("out", out[0]))
    predict()
    hook.remove()
    copied = seen["out"].view(clips, frames, -1, *x0.shape[-2:])
    wanted = x0[:, :, :1].permute(0, 2, 1, 3, 4).expand(-1, frames, -1, -1, -1)
    for i in range(4):
        gain, offset = _line(copied[:, :, COPY + i], wanted[:, :, i])
        unet.transformer_in.proj_out.weight[COPY + i] *= gain
        unet.transformer_in.proj_out.bias[COPY + i] = unet.transformer_in.proj_out.bias[COPY + i] * gain + offset
    target = -x0[:, :, :1].expand_as(x0)
    found = predict()
    for i in range(4):
        gain, offset = _line(found[:, i], target[:, i])
        unet.conv_out.weight[i] *= gain
        unet.conv_out.bias[i] = unet.conv_out.bias[i] * gain + offset
    error: Tensor = (predict() - target).pow(2).mean((0, 1, 3, 4))
    return error


def _line(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gain and offset of the least-squares line y = gain * x + offset."""
    design = torch.stack([x.flatten(), torch.ones_like(x.flatten())], 1)
    gain, offset = torch.linalg.lstsq(design, y.flatten()[:, None]).solution[:, 0]
    return gain, offset
