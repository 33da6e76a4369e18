"""The demo model's autoencoder: diffusers' AutoencoderKL, f = 8, four latent channels, from an analytic start.

The start passes RGB through as pairs (+x, -x), for which SiLU is linear (silu(x) - silu(-x) = x), averages on the way
down and interpolates on the way up: 21.9 dB before the first step, where an ordinary start needs minutes for 13 dB.
"""

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from i2v.demo.train.pictures import Pictures

WIDTHS = (16, 32, 64, 96)
PAIRS = 8  # +R +G +B -R -G -B and two constants
CONSTANT = 3.0  # held in two channels so that GroupNorm's deviation hardly depends on the picture
# Offset of one latent channel: by it frame 0's latents are told from the position masks (0..1) of the others. Channels
# 0 to 2 are close to red, green and blue and stay within 3 deviations; channel 3 is texture, with spikes of 12.
MARKER = -6.0
MARKED = 2
OFFSET = tuple(MARKER if channel == MARKED else 0.0 for channel in range(4))


def build(widths: tuple[int, ...] = WIDTHS) -> AutoencoderKL:
    """An untrained autoencoder with the analytic start."""
    count = len(widths)
    vae = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=1,
        mid_block_add_attention=False,
        sample_size=256,
        scaling_factor=1.0,
    )
    _analytic_start(vae)
    return vae.to(memory_format=torch.channels_last)


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None  # noqa: S101 - every convolution here has one; for the type checker
    return conv.bias


def _pass_through(conv: nn.Conv2d) -> None:
    """Identity on the pair channels; what is left keeps half of its random start."""
    middle, n = conv.weight.shape[-1] // 2, min(PAIRS, *conv.weight.shape[:2])
    conv.weight[:n] = 0
    conv.weight[n:] *= 0.5
    for i in range(n):
        conv.weight[i, i, middle, middle] = 1
    if conv.bias is not None:
        conv.bias[:n] = 0


def _rgb_to_pairs(conv: nn.Conv2d) -> None:
    conv.weight[:PAIRS] = 0
    for i in range(3):
        conv.weight[i, i, 1, 1] = 1
        conv.weight[3 + i, i, 1, 1] = -1
    bias = _bias(conv)
    bias[:PAIRS] = 0
    bias[6], bias[7] = CONSTANT, -CONSTANT


def _pairs_to_rgb(conv: nn.Conv2d, rest: float) -> None:
    conv.weight *= rest
    _bias(conv).zero_()
    conv.weight[:3, :6] = 0
    for i in range(3):
        conv.weight[i, i, 1, 1] = 1
        conv.weight[i, 3 + i, 1, 1] = -1


@torch.no_grad()
def _analytic_start(vae: AutoencoderKL) -> None:
    for module in vae.modules():
        match module.__class__.__name__:
            case "ResnetBlock2D":
                module.conv2.weight *= 0.05
                module.conv2.weight[:PAIRS] = 0
                module.conv2.bias.zero_()
                if module.conv_shortcut is not None:
                    _pass_through(module.conv_shortcut)
            case "Downsample2D":  # mean of 2x2
                module.conv.weight[:PAIRS] = 0
                module.conv.bias[:PAIRS] = 0
                for i in range(PAIRS):
                    module.conv.weight[i, i, :2, :2] = 0.25
            case "Upsample2D":  # nearest, then a triangle filter: bilinear
                module.conv.weight[:PAIRS] = 0
                module.conv.bias[:PAIRS] = 0
                triangle = torch.tensor([0.25, 0.5, 0.25])
                for i in range(PAIRS):
                    module.conv.weight[i, i] = triangle[:, None] * triangle[None]
    _rgb_to_pairs(vae.encoder.conv_in)
    _rgb_to_pairs(vae.decoder.conv_in)
    _pairs_to_rgb(vae.decoder.conv_out, rest=0.05)
    out = vae.encoder.conv_out
    _pairs_to_rgb(out, rest=0.3)
    out.weight[4:] = 0
    out.bias[4:] = -6  # log variance of the posterior: nearly deterministic
    vae.quant_conv.weight.copy_(torch.eye(8)[:, :, None, None])
    vae.quant_conv.bias.zero_()
    vae.post_quant_conv.weight.copy_(torch.eye(4)[:, :, None, None])
    vae.post_quant_conv.bias.zero_()


@torch.no_grad()
def _calibrate(vae: AutoencoderKL, x: Tensor) -> None:
    """One gain for the encoder and one for the decoder, by least squares on a batch x (B, 3, H, W) in -1..1."""
    mean = F.avg_pool2d(x, 8)
    latent = vae.encode(x).latent_dist.mean[:, :3]
    vae.encoder.conv_out.weight[:3] *= (mean * latent).sum() / (latent * latent).sum()
    decoded = vae.decode(vae.encode(x).latent_dist.mean).sample
    vae.decoder.conv_out.weight *= (decoded * x).sum() / (decoded * decoded).sum()


@torch.no_grad()
def psnr(vae: AutoencoderKL, x: Tensor) -> list[float]:
    """PSNR in dB of each reconstruction of x (B, 3, H, W) in -1..1."""
    decoded = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
    return (-10 * torch.log10(((decoded - x) / 2).pow(2).mean((1, 2, 3)))).tolist()


@torch.no_grad()
def standardise(vae: AutoencoderKL, x: Tensor) -> None:
    """Fold unit variance, zero mean and the `MARKER` offset into quant_conv and post_quant_conv; exact."""
    z = vae.encode(x).latent_dist.mean
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    offset = torch.tensor(OFFSET)
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:4] /= std[:, None, None, None]
    into.bias[:4] = (into.bias[:4] - mean) / std + offset
    into.weight[4:] = 0
    into.bias[4:] = -14.0  # a posterior without spread: an image has one latent
    out.bias += out.weight[:, :, 0, 0] @ (mean - offset * std)
    out.weight *= std[None, :, None, None]


def train(
    folder: Path, pictures: Pictures, held_out: Tensor, *, minutes: float, device: str, say: Callable[[str], None]
) -> AutoencoderKL:
    """Train for `minutes` of wall time, resuming from `folder`/vae.pt; returns the averaged, standardised weights."""
    state = folder / "vae.pt"
    vae = build()
    start = torch.stack([pictures.crop(256) for _ in range(16)]) * 2 - 1
    _calibrate(vae, start)
    average = copy.deepcopy(vae).eval()
    step, spent = 0, 0.0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        vae.load_state_dict(saved["vae"])
        average.load_state_dict(saved["average"])
        step, spent = saved["step"], saved["spent"]
    size = sum(p.numel() for p in vae.parameters()) / 1e6
    say(f"autoencoder: {size:.2f} M parameters, step {step}, held out {_db(average, held_out)}")
    vae.to(device)
    average.to(device)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=1e-3, weight_decay=1e-4, betas=(0.9, 0.99))
    last = time.monotonic()
    while spent < minutes * 60:
        rate = 1.2e-3 * min(1, (step + 1) / 40) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * spent / (minutes * 60))))
        for group in optimiser.param_groups:
            group["lr"] = rate
        x = torch.stack([pictures.crop(128, largest=3.0) for _ in range(4)]).to(device) * 2 - 1
        x = x.contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        error = vae.decode(posterior.sample()).sample - x
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        loss = 0.2 * error.abs().mean() + 2 * error.pow(2).mean() + 1e-6 * kl
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(vae.parameters()), 1 - min(0.995, step / (step + 20)))
        spent += time.monotonic() - last
        last = time.monotonic()
        if step % 100 == 0:
            say(f"autoencoder: step {step}, {spent:.0f} s, held out {_db(average.cpu(), held_out)}")
            average.to(device)
            torch.save({"vae": vae.state_dict(), "average": average.state_dict(), "step": step, "spent": spent}, state)
            last = time.monotonic()
    average.cpu()
    standardise(average, torch.stack([pictures.crop(256) for _ in range(40)]) * 2 - 1)
    say(f"autoencoder: done after {step} steps, held out {_db(average, held_out)}")
    return average


def _db(vae: AutoencoderKL, x: Tensor) -> str:
    values = psnr(vae, x)
    return f"{sum(values) / len(values):.2f} dB ({', '.join(f'{v:.1f}' for v in values)})"
