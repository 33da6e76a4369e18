"""One request on its way through the model: encode, schedule and denoise, then decode; each stage timed and reported.

The two halves are run again, alone, when memory is short: `engine.py` does that, and gives each the plan to run under.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from i2v.engine import conditioning, decode, sampler
from i2v.engine.conditioning import Conditioning, FittedPhoto, TextCache
from i2v.engine.conventions import Conventions
from i2v.engine.device_work import wait
from i2v.engine.faster_steps import Accelerator
from i2v.engine.interface import Frames, OnStep, Progress
from i2v.engine.memory import Plan
from i2v.engine.residency import resident, settle
from i2v.engine.weights import ModelParts
from i2v.errors import InvalidRequest
from i2v.notes import Note
from i2v.presets import Sampling
from i2v.request import GenerateRequest


@dataclass(slots=True)
class Inference:
    """A request with the guidance it really has, and everything it needs of the engine.

    `seed` draws the VAE's sample and, where no `noise` (1, 4, F, h, w) is given, the noise. `steps` runs the denoising
    steps, `texts` keeps prompts' embeddings for the next run. `seconds` adds up wall time by stage.
    """

    request: GenerateRequest
    photo: FittedPhoto
    seed: int
    noise: Tensor | None
    on_step: OnStep | None
    parts: ModelParts
    device: torch.device
    conventions: Conventions
    sampling: Sampling
    preview: decode.Preview
    steps: Accelerator
    texts: TextCache
    seconds: dict[str, float] = field(default_factory=lambda: {"encode": 0.0, "denoise": 0.0, "decode": 0.0})

    def denoise(self, plan: Plan) -> tuple[Conditioning, Tensor]:
        """Encode, schedule, denoise: the conditioning, and clean latents (1, 4, F, h, w) in fp32 on the device.

        Raises InvalidOutput for latents that are not finite, InvalidRequest for noise of another shape or steps that
        the schedule does not have, and whatever PyTorch and `on_step` raise.
        """
        # one generator for the VAE's sample and the noise, in this order: a given noise changes nothing else
        generator = torch.Generator().manual_seed(self.seed)
        settle(self.modules(), self.device, plan.offload)
        with self.timed("encode"):
            conditioned = self.encode(plan, generator)
            noise = self.start(conditioned.image_latents.shape, generator).to(self.device)
        self.report(Progress("encode", 1, 1))
        unet, scheduler = self.parts.unet, self.parts.scheduler
        with self.timed("denoise"), resident(unet, self.device, plan.offload):
            latents = sampler.denoise(
                unet,
                *sampler.schedule(scheduler.config, self.sampling, self.request.steps),
                noise,
                conditioned,
                self.sampling,
                plan.guidance_passes,
                plan.ff_chunks,
                self.stepped,
                self.steps if plan.offload == "none" else None,
            )
        return conditioned, latents

    def encode(self, plan: Plan, generator: torch.Generator) -> Conditioning:
        """What the model is told besides the noise; weights come and go as `plan` says."""
        return conditioning.encode(
            self.parts,
            self.request,
            self.photo,
            generator,
            self.conventions,
            self.device,
            using=lambda module: resident(module, self.device, plan.offload),
            texts=self.texts,
        )

    def decode(self, latents: Tensor, plan: Plan) -> Frames:
        """Latents (1, 4, F, h, w) to uint8 frames (F, H, W, 3) on the CPU. Raises InvalidOutput where not finite."""
        self.decoded(0, math.ceil(latents.shape[2] / plan.decode_chunk))
        scale = conditioning.latent_scale(self.parts.vae, self.conventions)
        settle(self.modules(), self.device, plan.offload)
        with self.timed("decode"), resident(self.parts.vae, self.device, plan.offload):
            return decode.decode_frames(self.parts.vae, latents, scale, plan.decode_chunk, self.decoded)

    def modules(self) -> tuple[torch.nn.Module, ...]:
        return self.parts.unet, self.parts.vae, self.parts.text_encoder, self.parts.image_encoder

    def start(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """The noise that denoising begins with, fp32 on the CPU where it is drawn here."""
        if self.noise is None:
            return sampler.draw_noise(tuple(shape), generator)
        if self.noise.shape != shape:
            raise InvalidRequest(f"noise has shape {tuple(self.noise.shape)}; {tuple(shape)} is wanted", field="noise")
        return self.noise

    def sampling_notes(self) -> tuple[Note, ...]:
        """What the preset approximates in this run."""
        parts = self.sampling.approximates(self.request.steps, guided=self.request.guidance_scale > 1.0)
        return (Note("preset", {"preset": self.request.preset, "parts": parts}),) if parts else ()

    def stepped(self, step: int, steps: int, middle: Tensor) -> None:
        self.report(Progress("denoise", step, steps, lambda: self.preview(middle)))

    def decoded(self, chunk: int, chunks: int) -> None:
        self.report(Progress("decode", chunk, chunks))

    def report(self, progress: Progress) -> None:
        if self.on_step is not None:
            self.on_step(progress)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds wall time to the stage, the device's queued work included; what steps took to warm up counts apart."""
        start, warm = time.perf_counter(), self.steps.warm_up
        try:
            yield
            wait(self.device)
        finally:  # what a failed try took is part of the job
            warmed = self.steps.warm_up - warm
            self.seconds[stage] += time.perf_counter() - start - warmed
            if warmed > 0:
                self.seconds["warm_up"] = self.seconds.get("warm_up", 0.0) + warmed
