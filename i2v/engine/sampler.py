"""From noise to latents: schedule, one denoising step, guidance, and what the presets change.

`denoise` is called by `engine.generate`. Latents, guidance and scheduler arithmetic stay in fp32 whatever the UNet's
dtype. The UNet is called in `begin` alone. Knows nothing of pictures.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from i2v.engine.conditioning import Conditioning
from i2v.engine.unet import DeepCache, I2VGenXLUNet
from i2v.errors import InvalidOutput, InvalidRequest
from i2v.request import Preset

# (latents (1, 4, F, h, w), step index, guided) -> prediction (2 if guided else 1, 4, F, h, w), fp32
Predict = Callable[[Tensor, int, bool], Tensor]
# (step from 1, steps, estimate of the clean latents (1, 4, F, h, w))
OnDenoised = Callable[[int, int, Tensor], None]

# alpha_bar of the last timestep is 0 in a zero-SNR schedule, and DPM-Solver works with log(alpha): this floor (the one
# diffusers takes for its own rescaled betas) keeps its first step finite; sqrt(2^-24) = 0.0002 of the signal
LEAST_ALPHA_BAR = 2.0**-24


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a preset walks from noise to video.

    `max_steps` caps the request's steps (None: as asked). `guidance_interval` is the part of the steps, as fractions
    from the first to the last, that is guided (arXiv 2404.07724). `guidance_rescale` mixes in the prediction at the
    conditional one's spread (arXiv 2305.08891, section 3.4). `deep_cache` (interval, branch): every interval-th step is
    a whole one, the others reuse its deep features (arXiv 2312.00858); interval 1 is off. `approximates` is the
    sentence for the summary.
    """

    solver: Literal["ddim", "dpm++2m"]
    max_steps: int | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    deep_cache: tuple[int, int] = (1, 0)
    approximates: str = ""

    def steps(self, asked: int) -> int:
        return asked if self.max_steps is None else min(asked, self.max_steps)

    def guides(self, index: int, steps: int) -> bool:
        """Whether step `index` (from 0) is guided; the interval takes its first end and leaves its last."""
        first, last = self.guidance_interval
        return first <= index / steps < last or (first, last) == (0.0, 1.0)


PRESETS: Mapping[Preset, Sampling] = {
    "exact": Sampling("ddim"),
    "fast": Sampling(
        "dpm++2m",
        max_steps=25,
        approximates="Preset fast: DPM-Solver++(2M) in {steps} steps stands in for DDIM in {asked}.",
    ),
    "turbo": Sampling(
        "dpm++2m",
        max_steps=16,
        guidance_interval=(0.5, 1.0),  # the other half lost the effect: 22 dB from exact against 59, see performance.md
        deep_cache=(2, 1),
        approximates="Preset turbo: DPM-Solver++(2M) in {steps} steps stands in for DDIM in {asked}, "
        "with guidance in the second half of them only; every second step reuses deep features (DeepCache).",
    ),
}


def make_scheduler(config: Mapping[str, Any], solver: str) -> Any:
    """A fresh scheduler with the model's own betas and prediction type; one job, one scheduler."""
    if solver == "ddim":
        return DDIMScheduler.from_config(dict(config))
    scheduler = DPMSolverMultistepScheduler.from_config(
        dict(config),
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        timestep_spacing="trailing",  # leading starts too late for a zero-SNR model: 15% of the signal at 10 steps
        final_sigmas_type="zero",
        lower_order_final=True,
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.clamp(min=LEAST_ALPHA_BAR)
    return scheduler


def schedule(config: Mapping[str, Any], sampling: Sampling, asked: int) -> tuple[Any, list[int]]:
    """The scheduler and its timesteps, exactly as many as `sampling` takes of `asked`, from noisy to clean."""
    scheduler = make_scheduler(config, sampling.solver)
    trained = int(scheduler.config.num_train_timesteps)
    if asked > trained:
        raise InvalidRequest(f"steps is {asked}; the model was trained with {trained}", field="steps")
    scheduler.set_timesteps(sampling.steps(asked), device="cpu")
    timesteps = [int(timestep) for timestep in scheduler.timesteps]
    if timesteps[0] >= trained:  # leading spacing with an offset, at as many steps as were trained
        raise InvalidRequest(f"steps is {asked}; fewer are wanted, this schedule leaves its range there", field="steps")
    return scheduler, timesteps


def draw_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """fp32 noise from a CPU generator: the same numbers on any device and in any dtype."""
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def denoise(
    unet: I2VGenXLUNet,
    scheduler: Any,
    timesteps: list[int],
    noise: Tensor,
    conditioning: Conditioning,
    sampling: Sampling,
    guidance_passes: int = 1,
    ff_chunks: int = 1,
    on_step: OnDenoised | None = None,
) -> Tensor:
    """All steps from `noise` (1, 4, F, h, w) to clean latents of the same shape, fp32 on the noise's device.

    `guidance_passes` 2 runs both halves of guidance one after the other, at half the activations; `ff_chunks` cuts the
    feed-forwards. Raises InvalidOutput when the latents are not finite.
    """
    latents = noise.float() * float(scheduler.init_noise_sigma)
    predict = begin(unet, conditioning, timesteps, sampling, guidance_passes, ff_chunks)
    for index in range(len(timesteps)):
        latents, estimate = denoise_step(predict, scheduler, timesteps, index, latents, conditioning, sampling)
        if on_step is not None:
            on_step(index + 1, len(timesteps), estimate)
    if not bool(torch.isfinite(latents).all()):
        raise InvalidOutput("the model's latents are not finite numbers; another seed or a wider dtype may help")
    return latents


def denoise_step(
    predict: Predict,
    scheduler: Any,
    timesteps: list[int],
    index: int,
    latents: Tensor,
    conditioning: Conditioning,
    sampling: Sampling,
) -> tuple[Tensor, Tensor]:
    """One step: predict, guide, advance. Returns the next latents and the estimate of the clean ones."""
    guided = conditioning.guided and sampling.guides(index, len(timesteps))
    prediction = predict(latents, index, guided)
    if guided:
        prediction = guide(prediction, conditioning.guidance_scale, sampling.guidance_rescale)
    return advance(scheduler, prediction, timesteps[index], latents)


def guide(prediction: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Classifier-free guidance on (2, ...), negative first; `rescale` 0..1 pulls the spread back to the prompt's."""
    negative, positive = prediction.chunk(2)
    guided = negative + scale * (positive - negative)
    if rescale == 0.0:
        return guided
    return guided * (rescale * positive.std() / guided.std().clamp(min=1e-8) + (1.0 - rescale))


def advance(scheduler: Any, prediction: Tensor, timestep: int, latents: Tensor) -> tuple[Tensor, Tensor]:
    """The solver's step in fp32: (next latents, estimate of the clean latents)."""
    step = scheduler.step(prediction, timestep, latents)
    estimate = getattr(step, "pred_original_sample", None)  # DDIM returns it, the multistep solver keeps it
    return step.prev_sample, scheduler.model_outputs[-1] if estimate is None else estimate


def begin(
    unet: I2VGenXLUNet,
    conditioning: Conditioning,
    timesteps: list[int],
    sampling: Sampling,
    guidance_passes: int = 1,
    ff_chunks: int = 1,
) -> Predict:
    """Give the UNet what is constant over a request; the function that comes back runs one step of it.

    The one place that calls the UNet.
    """
    state = unet.begin(
        conditioning.text,
        conditioning.image_embedding,
        conditioning.image_latents,
        conditioning.motion_fps,
        torch.tensor(timesteps),
        image_concat_scale=conditioning.image_concat_scale,
        ff_chunks=ff_chunks,
        guidance_passes=guidance_passes,
    )
    interval, branch = sampling.deep_cache
    cache = DeepCache(branch) if interval > 1 else None

    def predict(latents: Tensor, index: int, guided: bool) -> Tensor:
        refresh = index % interval == 0 or (cache is not None and not cache.serves(guided))
        return unet.step(state, latents, index, guided=guided, cache=cache, refresh=refresh).float()

    return predict
