"""From noise to latents: schedule, one denoising step, guidance.

`denoise` is called by `engine.generate`. Latents, guidance and solver arithmetic stay in fp32 whatever the UNet's
dtype. `denoise_step` is one pure function on tensors, so `faster_steps.py` may compile or capture it; the loop stays
outside. Knows nothing of pictures.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from i2v.engine import solvers
from i2v.engine.conditioning import Conditioning
from i2v.engine.device_work import Pacer
from i2v.engine.faster_steps import Accelerator
from i2v.engine.solvers import HISTORY, Schedule
from i2v.engine.unet.model import DeepCache, RequestState
from i2v.errors import InvalidOutput, InvalidRequest
from i2v.presets import PRESETS, Sampling

__all__ = ["PRESETS", "Sampling", "StepKind", "denoise", "denoise_step", "draw_noise", "guide", "schedule"]

# (step from 1, steps, the middle frame of the estimate of the clean latents: (4, h, w) on the CPU)
OnDenoised = Callable[[int, int, Tensor], None]


@dataclass(frozen=True, slots=True)
class StepKind:
    """What Python decides of a step; all else in it is tensors.

    `branch` of DeepCache, None without it; with it a `refresh` step is whole and fills the cache.
    """

    guided: bool
    rescale: float = 0.0
    branch: int | None = None
    refresh: bool = True


def schedule(config: Mapping[str, Any], sampling: Sampling, asked: int) -> tuple[Tensor, list[int]]:
    """The solver's table (steps, 10) and the timesteps, as many as `sampling` takes of `asked`, from noisy to clean."""
    given = Schedule.from_config(config)
    if asked > given.num_train_timesteps:
        raise InvalidRequest(f"steps is {asked}; the model was trained with {given.num_train_timesteps}", field="steps")
    timesteps = solvers.timesteps_of(given, sampling.solver, sampling.steps(asked))
    if timesteps[0] >= given.num_train_timesteps:  # leading spacing with an offset, at as many steps as were trained
        raise InvalidRequest(f"steps is {asked}; fewer are wanted, this schedule leaves its range there", field="steps")
    return solvers.solver_table(given, sampling.solver, timesteps), timesteps


def draw_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """fp32 noise from a CPU generator: the same numbers on any device and in any dtype."""
    return torch.randn(shape, generator=generator, dtype=torch.float32)


@torch.no_grad()
def denoise(
    unet: Any,
    table: Tensor,
    timesteps: list[int],
    noise: Tensor,
    conditioning: Conditioning,
    sampling: Sampling,
    guidance_passes: int = 1,
    ff_chunks: int = 1,
    on_step: OnDenoised | None = None,
    accelerator: Accelerator | None = None,
    pace: Pacer | None = None,
) -> Tensor:
    """All steps from `noise` (1, 4, F, h, w) to clean latents of the same shape, fp32 on the noise's device.

    `guidance_passes` 2 runs both halves of guidance one after the other, at half the activations; `ff_chunks` cuts the
    feed-forwards; the `accelerator` may run a step in a faster form. `on_step` hears of a step when the device has done
    it; what it raises ends the loop while at most one more step is queued. `pace` is another one in tests. Raises
    InvalidOutput when the latents are not finite.
    """
    state = begin(unet, conditioning, timesteps, guidance_passes, ff_chunks)
    if accelerator is not None:
        accelerator.watch(unet)
    latents = noise.float()
    history = latents.new_zeros(HISTORY, *latents.shape)
    table = table.to(latents.device, latents.dtype)
    scale = torch.tensor(conditioning.guidance_scale, device=latents.device)
    kinds = kinds_of(sampling, len(timesteps), conditioning.guided)
    pace = Pacer.on(latents.device) if pace is None else pace
    deep: Tensor | None = None
    for index, kind in enumerate(kinds):
        if kind.refresh:
            deep = None  # else the old features would wait beside the new ones
        # one row of every table: a step's tensors have the same shapes whatever the number of steps
        inputs = (state.at(index), latents, history, table[index], scale, deep)
        latents, estimate, history, kept = (
            denoise_step(unet, kind, *inputs)
            if accelerator is None
            else accelerator.run(denoise_step, unet, kind, inputs, left=kinds[index + 1 :].count(kind))
        )
        deep = deep if kept is None else kept
        middle = estimate[0, :, estimate.shape[2] // 2].to("cpu", non_blocking=True)  # there when the step is done
        pace.step(partial(on_step or no_report, index + 1, len(kinds), middle))
    pace.finish()
    if not bool(torch.isfinite(latents).all()):
        raise InvalidOutput("the model's latents are not finite numbers; another seed or a wider dtype may help")
    return latents


def no_report(step: int, steps: int, middle: Tensor) -> None:
    """Nobody asked to hear of the steps."""


def kinds_of(sampling: Sampling, steps: int, guided: bool) -> list[StepKind]:
    """What each step is: guided or not, whole or with the deep features that are kept.

    An unguided step's features have one row and do not serve a guided one.
    """
    cache, rows = sampling.deep_cache, 0
    kinds = []
    for index in range(steps):
        guides = guided and sampling.guides(index, steps)
        rescale = sampling.guidance_rescale if guides else 0.0
        if cache.interval == 1:
            kinds.append(StepKind(guides, rescale))
            continue
        wanted = 2 if guides else 1
        refresh = index % cache.interval == 0 or rows < wanted
        rows = wanted if refresh else rows
        kinds.append(StepKind(guides, rescale, cache.branch, refresh))
    return kinds


def denoise_step(
    unet: Any,
    kind: StepKind,
    state: RequestState,
    latents: Tensor,
    history: Tensor,
    coefficients: Tensor,
    scale: Tensor,
    deep: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """One step: predict, guide, advance. Pure: changes none of its arguments, reads no number back to the host.

    `state` at this step's timestep; `latents` (1, 4, F, h, w); `history` and `coefficients` as `solvers.advance` wants
    them; `scale` () of guidance; `deep` features for a step that reuses them. Returns the next latents, the estimate of
    the clean ones, the next history, and the deep features of a refreshing step.
    """
    cache = None if kind.branch is None else DeepCache(kind.branch, deep)
    prediction = unet.step(state, latents, 0, guided=kind.guided, cache=cache, refresh=kind.refresh).float()
    if kind.guided:
        prediction = guide(prediction, scale, kind.rescale)
    following, estimate, history = solvers.advance(coefficients, latents, prediction.contiguous(), history)
    return following, estimate, history, None if cache is None or not kind.refresh else cache.deep


def guide(prediction: Tensor, scale: float | Tensor, rescale: float = 0.0) -> Tensor:
    """Classifier-free guidance on (2, ...), negative first; `rescale` 0..1 pulls the spread back to the prompt's."""
    negative, positive = prediction.chunk(2)
    guided = negative + scale * (positive - negative)
    if rescale == 0.0:
        return guided
    return guided * (rescale * positive.std() / guided.std().clamp(min=1e-8) + (1.0 - rescale))


def begin(
    unet: Any, conditioning: Conditioning, timesteps: list[int], guidance_passes: int = 1, ff_chunks: int = 1
) -> RequestState:
    """Give the UNet what is constant over a request; the one place that does."""
    state: RequestState = unet.begin(
        conditioning.text,
        conditioning.image_embedding,
        conditioning.image_latents,
        conditioning.motion_fps,
        torch.tensor(timesteps),
        image_concat_scale=conditioning.image_concat_scale,
        ff_chunks=ff_chunks,
        guidance_passes=guidance_passes,
    )
    return state
