"""Training of the demo UNet: every picture under several words at once, with the same noise and timestep.

The words share a group of clips, so what differs between them is the caption alone. Each clip has three frames: the
photo and two later moments (frames do not see each other beyond frame 0, so fewer frames are the same lesson). The loss
is taken after guidance at `GUIDANCE`: the branch without a word must stay static, and guidance lands on the full
motion.
"""

import copy
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, I2VGenXLUNet
from torch import Tensor

from i2v.demo.train import start
from i2v.demo.train.captions import CLASSES
from i2v.demo.train.scenes import LIGHTS, Scene

GUIDANCE = 8.0  # the scale at which a word has its full effect
HORIZONTAL, VERTICAL = ("pan left", "pan right"), ("tilt up", "tilt down")


def scheduler() -> DDIMScheduler:
    """v-prediction with sqrt(alpha_bar) linear from 0.1 to 0: every timestep is mostly noise, few steps suffice."""
    alpha_bar = np.linspace(0.1, 0, 1000) ** 2
    betas = [float(1 - alpha_bar[0])] + [float(1 - alpha_bar[i] / alpha_bar[i - 1]) for i in range(1, 1000)]
    return DDIMScheduler(
        trained_betas=betas,
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """Clips of `names` in groups that begin with a static one: x0 (B, 4, F, h, w), and the conditions beside it."""

    names: list[str]
    groups: list[int]  # group of each clip
    x0: Tensor
    image_latents: Tensor
    image: Tensor
    text: Tensor


@dataclass
class Lessons:
    """Draws batches. `texts` holds encoded captions by class, each (N, 77, 64)."""

    scenes: list[Scene]
    texts: dict[str, Tensor]
    rng: random.Random

    def words(self) -> tuple[str, ...]:
        """The words of one group."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.34:
            return HORIZONTAL
        if kind < 0.68:
            return VERTICAL
        if kind < 0.9:
            return tuple(rng.sample(LIGHTS, 2))
        return ("drift", rng.choice((*HORIZONTAL, *VERTICAL)))

    def draw(self, groups: int, positions: list[float]) -> Batch:
        """`groups` scenes, each static and under two words, at frame `positions` (the first is 0)."""
        names, owner, clips, texts = [], [], [], []
        for group in range(groups):
            scene = self.rng.choice(self.scenes)
            for name in ("static", *self.words()):
                names.append(name)
                owner.append(group)
                clips.append(torch.stack([scene.frame(name, position) for position in positions], 1))
                captions = self.texts[name]
                texts.append(captions[self.rng.randrange(len(captions))])
        x0 = torch.stack(clips)
        image_latents = x0.clone()
        for frame, position in enumerate(positions):
            if frame:
                image_latents[:, :, frame] = position
        return Batch(names, owner, x0, image_latents, torch.zeros(len(names), 1, 64), torch.stack(texts))

    def moments(self) -> list[float]:
        """Frame 0 and two later positions in 0..1, one early and one late."""
        return [0.0, self.rng.uniform(0.05, 0.6), self.rng.uniform(0.5, 1.0)]


def guided(prediction: Tensor, batch: Batch, scale: float = GUIDANCE) -> Tensor:
    """Guidance within each group: the static clip's prediction stands for the branch without a prompt."""
    first = torch.tensor([batch.groups.index(group) for group in batch.groups])
    base = prediction[first]
    is_base = torch.tensor([name == "static" for name in batch.names]).view(-1, 1, 1, 1, 1)
    return torch.where(is_base, prediction, base + scale * (prediction - base))


@torch.no_grad()
def _begin(lessons: Lessons) -> I2VGenXLUNet:
    unet = start.build()
    batch = lessons.draw(3, [0.0, 0.4, 0.8])
    still = batch.x0[:, :, :1].expand_as(batch.x0).contiguous()
    start.calibrate(unet, still, batch.image_latents, batch.image, batch.text)
    return unet


def train(
    folder: Path,
    lessons: Lessons,
    *,
    minutes: float,
    device: str,
    groups: int,
    say: Callable[[str], None],
    rate: float = 1e-3,
) -> I2VGenXLUNet:
    """Train for `minutes` of wall time in all, resuming from `folder`/unet.pt; returns the averaged weights."""
    state = folder / "unet.pt"
    unet = _begin(lessons)
    average = copy.deepcopy(unet)
    step, spent = 0, 0.0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        unet.load_state_dict(saved["unet"])
        average.load_state_dict(saved["average"])
        step, spent = saved["step"], saved["spent"]
    say(f"motion: {sum(p.numel() for p in unet.parameters()) / 1e6:.2f} M parameters, from step {step}")
    unet.to(device)
    average.to(device)
    for module in start.no_ops(unet):
        module.requires_grad_(False)
        module.forward = _returns_input if module.__class__.__name__ == "TemporalConvLayer" else _returns_tuple
    weights = [p for p in unet.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=1e-3, betas=(0.9, 0.99))
    alpha_bar = scheduler().alphas_cumprod.to(device)
    errors: dict[str, list[float]] = {}
    last, saved_at = time.monotonic(), spent
    while spent < minutes * 60:
        share = spent / (minutes * 60)
        now = rate * min(1, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * max(0, share - 0.3) / 0.7)))
        for group in optimiser.param_groups:
            group["lr"] = now
        batch = lessons.draw(groups, lessons.moments())
        loss, error = _loss(unet, batch, alpha_bar, device, lessons.rng)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), 1 - min(0.99, step / (step + 20)))
        still = (batch.x0 - batch.x0[:, :, :1]).pow(2).mean((1, 3, 4))
        for i, name in enumerate(batch.names):
            errors.setdefault(name, []).append(error[i, -1].item())
            errors.setdefault(f"~{name}", []).append(still[i, -1].item())
        spent += time.monotonic() - last
        last = time.monotonic()
        if step % 25 == 0:
            say(f"motion: step {step}, {spent:.0f} s, rate {now:.5f}, {_progress(errors)}")
            errors = {name: values[-60:] for name, values in errors.items()}
        if spent - saved_at > 60:
            torch.save(
                {"unet": unet.state_dict(), "average": average.state_dict(), "step": step, "spent": spent}, state
            )
            saved_at = spent
    torch.save({"unet": unet.state_dict(), "average": average.state_dict(), "step": step, "spent": spent}, state)
    return average.cpu().eval()


def _returns_input(hidden: Tensor, *_: object, **__: object) -> Tensor:
    return hidden


def _returns_tuple(hidden: Tensor, *_: object, **__: object) -> tuple[Tensor]:
    return (hidden,)


def _loss(
    unet: I2VGenXLUNet, batch: Batch, alpha_bar: Tensor, device: str, rng: random.Random
) -> tuple[Tensor, Tensor]:
    """The loss of one batch, and the squared error after guidance by clip and frame (B, F)."""
    x0 = batch.x0.to(device)
    clips = len(x0)
    timestep = torch.full((clips,), rng.randrange(1000), device=device)
    alpha = alpha_bar[timestep].view(-1, 1, 1, 1, 1)
    noise = torch.randn_like(x0[:1]).expand_as(x0).contiguous()
    target = alpha.sqrt() * noise - (1 - alpha).sqrt() * x0
    prediction = unet(
        alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise,
        timestep,
        fps=torch.full((clips,), rng.choice((8, 16, 16, 24)), device=device),
        image_latents=batch.image_latents.to(device),
        image_embeddings=batch.image.to(device),
        encoder_hidden_states=batch.text.to(device),
    ).sample
    difference = guided(prediction, batch) - target
    squared = difference.pow(2)
    loss = (squared + 0.3 * difference.abs()).mean()
    return loss, squared.detach().mean((1, 3, 4))


def _progress(errors: dict[str, list[float]]) -> str:
    """Mean error of the last frame by word, over the error of showing the photo unmoved."""
    return " ".join(
        f"{name} {np.mean(errors[name][-60:]):.3f}/{np.mean(errors['~' + name][-60:]):.2f}"
        for name in CLASSES
        if name in errors
    )
