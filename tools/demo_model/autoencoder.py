"""The demo model's autoencoder: diffusers' AutoencoderKL, f = 4, four latent channels, from an analytic start.

The start passes RGB through as pairs (+x, -x), for which SiLU is linear (silu(x) - silu(-x) = x), averages on the way
down and interpolates on the way up: 24.6 dB before the first step, where an ordinary start needs minutes for 13 dB.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from tools.demo_model.pictures import Pictures

WIDTHS = (32, 64, 128)
NOISE = 0.02  # of a kernel's deviation, added to it where it is widened
LATENT = 4  # pixels of one, each way
SIDE = 256  # pixels of a picture that it is measured on
CROP = 128  # pixels of a training picture
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
        sample_size=SIDE,
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
    mean = F.avg_pool2d(x, LATENT)
    latent = vae.encode(x).latent_dist.mean[:, :3]
    vae.encoder.conv_out.weight[:3] *= (mean * latent).sum() / (latent * latent).sum()
    decoded = vae.decode(vae.encode(x).latent_dist.mean).sample
    vae.decoder.conv_out.weight *= (decoded * x).sum() / (decoded * decoded).sum()


@torch.no_grad()
def widen(narrow: AutoencoderKL, generator: torch.Generator) -> AutoencoderKL:
    """`narrow` with every inner channel twice: the same function (Net2Net, arXiv 1511.05641), with room to learn.

    With one norm group a channel and its copy leave mean and deviation as they were. `NOISE` lets the copies part.
    """
    wide = build(tuple(2 * width for width in narrow.config.block_out_channels))
    given = narrow.state_dict()
    for name, parameter in wide.named_parameters():
        value = given[name].float()
        for axis, (size, wanted) in enumerate(zip(value.shape[:2], parameter.shape[:2], strict=True)):
            if wanted == 2 * size:
                value = torch.cat([value, value], axis) / (2 if axis == 1 else 1)
        if parameter.dim() == 4 and parameter.shape != given[name].shape:
            value = value + NOISE * value.std() * torch.randn(value.shape, generator=generator)
        parameter.copy_(value)
    return wide


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


@dataclass
class Training:
    """The autoencoder's training as it is kept on disk: both sets of weights, the optimiser, and how far it is."""

    vae: AutoencoderKL
    average: AutoencoderKL
    optimiser: torch.optim.AdamW
    step: int = 0
    spent: float = 0.0  # seconds

    @classmethod
    def begin(cls, start: AutoencoderKL, device: str) -> Self:
        vae = start.to(device)
        average = copy.deepcopy(vae).eval()
        return cls(vae, average, torch.optim.AdamW(vae.parameters(), lr=1e-3, weight_decay=1e-4, betas=(0.9, 0.99)))

    def save(self, file: Path, pictures: Pictures) -> None:
        """Write all of it and where `pictures` is, so that a stop between two writes costs nothing but that time."""
        new = file.with_suffix(".new")
        parts = {name: getattr(self, name).state_dict() for name in ("vae", "average", "optimiser")}
        numbers = {"step": self.step, "spent": self.spent, "torch": torch.get_rng_state()}
        torch.save(parts | numbers | {"pictures": pictures.rng.getstate()}, new)
        new.replace(file)

    def load(self, file: Path, pictures: Pictures) -> None:
        saved = torch.load(file, weights_only=True)
        for name in ("vae", "average", "optimiser"):
            getattr(self, name).load_state_dict(saved[name])
        self.step, self.spent = saved["step"], saved["spent"]
        torch.set_rng_state(saved["torch"])
        pictures.rng.setstate(saved["pictures"])


def train(
    folder: Path,
    pictures: Pictures,
    held_out: Tensor,
    *,
    minutes: float,
    device: str,
    say: Callable[[str], None],
    bf16: bool = False,
    narrow: AutoencoderKL | None = None,
    widths: tuple[int, ...] = WIDTHS,
    side: int = SIDE,
    keep_every: float = 120,
) -> AutoencoderKL:
    """Train for `minutes` of wall time, resuming from `folder`/vae.pt; returns the averaged, standardised weights.

    It starts from `narrow`, made twice as wide, at a lower rate, or from the analytic start at `widths`. `side` is that
    of the pictures, in pixels, by which it is calibrated and standardised. The state is written every `keep_every`
    seconds. `bf16` multiplies in bfloat16: twice as fast where the processor has units for it, slower elsewhere.
    """
    state = folder / "vae.pt"
    if narrow is None:
        start, rate = build(widths), 1e-3
        _calibrate(start, torch.stack([pictures.crop(side) for _ in range(16)]) * 2 - 1)
    else:
        start, rate = widen(narrow, torch.Generator().manual_seed(0)), 5e-4
    run = Training.begin(start, device)
    if state.exists():
        run.load(state, pictures)
    size = sum(p.numel() for p in run.vae.parameters()) / 1e6
    say(f"autoencoder: {size:.2f} M parameters, step {run.step}, {_progress(run, minutes, held_out)}")
    kept = last = time.monotonic()
    while run.spent < minutes * 60:
        _step(run, pictures, rate * _decay(run, minutes), bf16)
        now = time.monotonic()
        run.spent, last = run.spent + now - last, now
        if now - kept > keep_every:
            run.save(state, pictures)
            say(f"autoencoder: step {run.step}, {_progress(run, minutes, held_out)}")
            kept = time.monotonic()
    average = run.average.cpu().float()
    standardise(average, torch.stack([pictures.crop(side) for _ in range(40)]) * 2 - 1)
    say(f"autoencoder: done after {run.step} steps, held out {_db(average, held_out)}")
    return average


def _progress(run: Training, minutes: float, held_out: Tensor) -> str:
    return f"{run.spent / 60:.1f} of {minutes:g} min, held out {_db(run.average, held_out)}"


def _decay(run: Training, minutes: float) -> float:
    """Learning rate over its highest: a short warm-up by steps, then half a cosine by time."""
    done = min(1.0, run.spent / (minutes * 60))
    return min(1, (run.step + 1) / 40) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def _step(run: Training, pictures: Pictures, rate: float, bf16: bool) -> None:
    """One step on four crops at a learning rate. A half of them is decoded from latents between two others.

    A pan or a zoom mixes neighbouring latents; so the decoder learns to read the mixture as the shifted picture.
    """
    for group in run.optimiser.param_groups:
        group["lr"] = rate
    device = next(run.vae.parameters()).device
    x = torch.stack([pictures.crop(CROP + LATENT, largest=3.0) for _ in range(4)]).to(device) * 2 - 1
    shifts = [(pictures.rng.choice((0, 1, 2, 3)), pictures.rng.choice((0, 1, 2, 3))) for _ in range(2)] + [(0, 0)] * 2
    wanted = torch.stack([p[:, y : y + CROP, x : x + CROP] for p, (y, x) in zip(x, shifts, strict=True)])
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        posterior = run.vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist
        z = torch.stack(
            [_between(p, y / LATENT, x / LATENT) for p, (y, x) in zip(posterior.sample(), shifts, strict=True)]
        )
        decoded = run.vae.decode(z).sample
    error, mean, logvar = decoded.float() - wanted, posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    loss = 0.1 * error.abs().mean() + 2 * error.pow(2).mean() + 1e-6 * kl
    run.optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(run.vae.parameters(), 1.0)
    run.optimiser.step()
    run.step += 1
    with torch.no_grad():
        weight = 1 - min(0.997, run.step / (run.step + 20))
        torch._foreach_lerp_(list(run.average.parameters()), list(run.vae.parameters()), weight)


def _between(z: Tensor, down: float, right: float) -> Tensor:
    """Latents (4, h + 1, w + 1) mixed linearly with their neighbours below and to the right: (4, h, w)."""
    rows = z[:, :-1] + (z[:, 1:] - z[:, :-1]) * down
    return rows[..., :-1] + (rows[..., 1:] - rows[..., :-1]) * right


def _db(vae: AutoencoderKL, x: Tensor) -> str:
    values = psnr(vae, x.to(next(vae.parameters()).device))
    return f"{sum(values) / len(values):.2f} dB ({', '.join(f'{v:.1f}' for v in values)})"
