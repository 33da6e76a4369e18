"""One loaded model and the way a request goes through it: encode, schedule, denoise, decode.

The functions it calls are in `conditioning`, `sampler` and `decode`; this file puts them in order, times them and
answers running out of memory. Knows nothing of HTTP, jobs or files. Callers hold the GPU mutex.
"""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from i2v.engine import conditioning, decode, sampler, sizes, verdict, weights
from i2v.engine import memory as gpu_memory
from i2v.engine.conventions import Conventions, for_model, for_parity, named
from i2v.engine.memory import Offload, Plan
from i2v.engine.protocol import DeviceMemory, Frames, GenerationResult, MemoryNeed, ModelInfo, OnLoad, OnStep, Progress
from i2v.engine.residency import resident, settle
from i2v.engine.source import device_name
from i2v.errors import FatalEngineError, InvalidRequest, OutOfMemory
from i2v.images import fit_image
from i2v.request import GenerateRequest, draw_seed

T = TypeVar("T")


@dataclass(slots=True)
class Engine:
    """`parts` the loaded modules; a job's plan follows from `memory_mode` and what is free when it starts."""

    parts: weights.ModelParts
    device: torch.device
    conventions: Conventions
    preview: decode.Preview
    memory_mode: str = "auto"
    max_vram_gb: float | None = None

    @classmethod
    def load(
        cls,
        source: str | Path = "auto",
        device: str = "auto",
        dtype: str = "auto",
        conventions: str | Conventions = "authors",
        *,
        revision: str | None = None,
        cache_dir: Path | None = None,
        offline: bool = False,
        memory: str = "auto",
        max_vram_gb: float | None = None,
        image_concat_scale: float | None = None,
        on_load: OnLoad | None = None,
    ) -> Self:
        """Load `auto`, `demo`, a hub id or a diffusers folder. Raises ModelUnavailable or ValueError with the reason.

        `device`: auto, cpu, cuda, cuda:N. `dtype`: auto (float16 on CUDA, float32 on the CPU), float16, bfloat16,
        float32. `conventions`: `authors`, `upstream`, or a `Conventions` of one's own. `memory`: auto, resident,
        low-vram. `max_vram_gb` makes a large card behave like a smaller one. `image_concat_scale` overrides the
        folder's card and the conventions.
        """
        wanted = named(conventions)
        folder = weights.resolve(
            str(source), revision=revision, cache_dir=cache_dir, offline=offline, on_load=on_load, device=device
        )
        chosen = weights.choose_device(device)
        gpu_memory.limit(chosen, max_vram_gb)
        home = torch.device("cpu") if memory == "low-vram" else chosen  # there, weights visit the device in turn
        parts = weights.load_parts(folder, home, weights.choose_dtype(dtype, chosen), on_load)
        parts = replace(parts, info=replace(parts.info, device=device_name(chosen)))
        engine = cls.of(parts, chosen, wanted, memory, max_vram_gb)
        return engine if image_concat_scale is None else engine.at_image_concat_scale(image_concat_scale)

    @classmethod
    def of(
        cls,
        parts: weights.ModelParts,
        device: torch.device,
        conventions: Conventions,
        memory_mode: str = "auto",
        max_vram_gb: float | None = None,
    ) -> Self:
        """An engine around loaded parts; fits the preview to their VAE."""
        conventions = for_model(conventions, parts.card.conventions)
        scale = conditioning.latent_scale(parts.vae, conventions)
        offload: Offload = "model" if memory_mode == "low-vram" and device.type == "cuda" else "none"
        with torch.no_grad(), resident(parts.vae, device, offload):
            preview = decode.fit_preview(parts.vae, scale, vae_factor(parts.vae), device)
        return cls(parts, device, conventions, preview, memory_mode, max_vram_gb)

    def at_image_concat_scale(self, scale: float) -> Self:
        """The same loaded parts with another image_concat_scale (see `Conventions`)."""
        return replace(self, conventions=replace(self.conventions, image_concat_scale=scale))

    @property
    def info(self) -> ModelInfo:
        return self.parts.info

    def check(self, request: GenerateRequest) -> None:
        """Raise InvalidRequest for a size the VAE cannot make, DoesNotFit when memory cannot hold the job."""
        factor = vae_factor(self.parts.vae)
        for name, side in (("width", request.width), ("height", request.height)):
            if side % factor:
                raise InvalidRequest(f"{name} is {side}; this model makes multiples of {factor}", field=name)
        self.choose_plan(request)

    def choose_plan(self, request: GenerateRequest) -> Plan:
        """The lightest plan on time that fits what is free now. Raises DoesNotFit naming the largest job that does."""
        free = gpu_memory.read(self.device, self.max_vram_gb)
        shape = gpu_memory.shape_of(self.parts)
        return gpu_memory.choose_plan(shape, request, free, self.memory_mode, offloads=self.device.type == "cuda")

    def memory_need(self, request: GenerateRequest) -> MemoryNeed:
        """What the job would hold under the plan that it would get now. Raises as `check`."""
        self.check(request)
        plan, free = self.choose_plan(request), gpu_memory.read(self.device, self.max_vram_gb)
        need = gpu_memory.predict(gpu_memory.shape_of(self.parts), request, plan)
        return MemoryNeed(needed=need.peak, available=free.usable, plan=str(plan))

    def device_memory(self) -> DeviceMemory | None:
        """The GPU's memory now; None on a CPU."""
        return gpu_memory.device_memory(self.device)

    def would_fit(self, request: GenerateRequest) -> str:
        """What to ask for instead of a job that ran out of memory: at most half of it, less where memory is short."""
        if request.num_frames > 8:
            change = {"num_frames": max(8, request.num_frames // 2)}
        else:
            change = {side: max(64, int(getattr(request, side) * 0.7) // 8 * 8) for side in ("width", "height")}
        free, shape = gpu_memory.read(self.device, self.max_vram_gb), gpu_memory.shape_of(self.parts)
        largest = gpu_memory.largest_that_fits(
            shape, request.model_copy(update=change), free, self.memory_mode, offloads=self.device.type == "cuda"
        )
        if largest is None:
            return "nothing would fit now; another program may hold the device's memory"
        return f"{largest['width']}x{largest['height']} with {largest['num_frames']} frames would fit"

    @torch.no_grad()
    def generate(
        self,
        request: GenerateRequest,
        image: Image.Image,
        noise: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> GenerationResult:
        """Run one job. Raises OutOfMemory, InvalidOutput, FatalEngineError, and whatever `on_step` raises.

        `noise` (1, 4, F, H/f, W/f) replaces the noise drawn from the request's seed; f is the VAE's factor, 8 in the
        published model. With `conventions="upstream"` a given noise makes this a parity run: the photo is cropped with
        upstream's rounding, and the VAE's posterior sample comes from torch's global random state, as upstream's does
        (seed it with `torch.manual_seed` right before on both sides).
        """
        self.check(request)
        seed = draw_seed() if request.seed is None else request.seed
        parity = noise is not None and self.conventions.name == "upstream"
        conventions = for_parity(self.conventions) if parity else self.conventions
        guidance_scale, notes = keep_guidance(request.guidance_scale, self.info.guidance_range)
        job = Job(
            self.parts, self.device, conventions, request, image, seed, guidance_scale, noise, on_step, self.preview
        )
        reset_peak(self.device)
        first, device = self.choose_plan(request), self.device

        def advise() -> str:
            return self.would_fit(request)

        (conditioned, latents), plan, trouble = recovering(job.denoise, first, next_for_denoising, device, advise)
        notes += conditioned.notes + job.sampling_notes() + sizes.notes(request, self.info) + trouble
        frames, plan, trouble = recovering(
            lambda plan: job.decode(latents, plan), plan, next_for_decoding, device, advise
        )
        warnings = () if parity else self.judge(frames, request, image)  # a parity run compares, whatever it shows
        return GenerationResult(
            frames=frames,
            latents=latents.cpu(),
            seed=seed,
            guidance_scale=guidance_scale,
            stage_seconds=job.seconds,
            peak_memory_mb=peak_memory_mb(self.device),
            plan=str(plan),
            notes=notes + trouble,
            warnings=warnings,
        )

    def judge(self, frames: Frames, request: GenerateRequest, image: Image.Image) -> tuple[str, ...]:
        """Labels for the result. Raises InvalidOutput for a video that is of no use."""
        photo, _ = fit_image(image.convert("RGB"), request.width, request.height, request.fit)
        found = verdict.judge(frames, np.asarray(photo))
        verdict.refuse(found)
        return verdict.labels(found, request, self.info) + sizes.labels(request, self.info)

    def close(self) -> None:
        """Give the memory back; the engine is of no use afterwards."""
        for part in ("unet", "vae", "text_encoder", "image_encoder"):
            getattr(self.parts, part).to("meta")
        gpu_memory.recover(self.device)


@dataclass(slots=True)
class Job:
    """One request on its way: the two halves of the pipeline that are run again alone when memory is short."""

    parts: weights.ModelParts
    device: torch.device
    conventions: Conventions
    request: GenerateRequest
    image: Image.Image
    seed: int
    guidance_scale: float
    noise: Tensor | None
    on_step: OnStep | None
    preview: decode.Preview
    seconds: dict[str, float] = field(default_factory=lambda: {"encode": 0.0, "denoise": 0.0, "decode": 0.0})

    def denoise(self, plan: Plan) -> tuple[conditioning.Conditioning, Tensor]:
        """Encode, schedule, denoise: the conditioning and clean latents (1, 4, F, h, w)."""
        request, device = self.request, self.device
        # one generator for the VAE's sample and the noise, in this order: a given noise changes nothing else
        generator = torch.Generator().manual_seed(self.seed)
        settle(self.modules(), device, plan.offload)
        with self.timed("encode"):
            conditioned = conditioning.encode(
                self.parts,
                request,
                self.image,
                generator,
                self.conventions,
                self.guidance_scale,
                device,
                using=lambda module: resident(module, device, plan.offload),
            )
            noise = self.start(conditioned.image_latents.shape, generator).to(device)
            self.report(Progress("encode", 1, 1))
        with self.timed("denoise"), resident(self.parts.unet, device, plan.offload):
            sampling = sampler.PRESETS[request.preset]
            scheduler, timesteps = sampler.schedule(self.parts.scheduler.config, sampling, request.steps)
            latents = sampler.denoise(
                self.parts.unet,
                scheduler,
                timesteps,
                noise,
                conditioned,
                sampling,
                plan.guidance_passes,
                plan.ff_chunks,
                self.stepped,
            )
        return conditioned, latents

    def decode(self, latents: Tensor, plan: Plan) -> Frames:
        scale = conditioning.latent_scale(self.parts.vae, self.conventions)
        settle(self.modules(), self.device, plan.offload)
        with self.timed("decode"), resident(self.parts.vae, self.device, plan.offload):
            return decode.decode_frames(self.parts.vae, latents, scale, plan.decode_chunk, self.decoded)

    def modules(self) -> tuple[torch.nn.Module, ...]:
        parts = self.parts
        return parts.unet, parts.vae, parts.text_encoder, parts.image_encoder

    def start(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        if self.noise is None:
            return sampler.draw_noise(tuple(shape), generator)
        if self.noise.shape != shape:
            raise InvalidRequest(f"noise has shape {tuple(self.noise.shape)}; {tuple(shape)} is wanted", field="noise")
        return self.noise

    def sampling_notes(self) -> tuple[str, ...]:
        sampling, asked = sampler.PRESETS[self.request.preset], self.request.steps
        said = sampling.approximates.format(steps=sampling.steps(asked), asked=asked)
        return (said,) if said else ()

    def stepped(self, step: int, steps: int, estimate: Tensor) -> None:
        self.report(Progress("denoise", step, steps, lambda: self.preview(estimate)))

    def decoded(self, chunk: int, chunks: int) -> None:
        self.report(Progress("decode", chunk, chunks))

    def report(self, progress: Progress) -> None:
        if self.on_step is not None:
            self.on_step(progress)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds wall time to the stage, the device's queued work included."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage] += time.perf_counter() - start


def recovering(
    run: Callable[[Plan], T],
    plan: Plan,
    lighter: Callable[[Plan], Plan | None],
    device: torch.device,
    would_fit: Callable[[], str],
) -> tuple[T, Plan, tuple[str, ...]]:
    """Run under `plan`; out of memory, once more under the next lighter one.

    Returns the result, the plan it ran under and a note when that was the lighter one. Raises OutOfMemory with
    `would_fit()` when that fails too, FatalEngineError when the CUDA context is lost, anything else as it is.
    """
    attempts = (plan, lighter(plan))
    for number, attempt in enumerate(attempts):
        if attempt is None:
            break
        try:
            note = f"Ran out of memory once; this part was done again with {attempt}." if number else ""
            return run(attempt), attempt, (note,) if note else ()
        except Exception as error:
            if gpu_memory.is_fatal(error):
                raise FatalEngineError("the GPU's context is lost; the server starts again") from error
            if not gpu_memory.is_out_of_memory(error):
                raise
        # Only here, with the exception gone, does nothing hold the failed frames and their tensors any more
        gpu_memory.recover(device)
    raise OutOfMemory(f"the job ran out of memory; {would_fit()}", retry_after=5)


def next_for_denoising(plan: Plan) -> Plan | None:
    """The next rung that lightens sampling; a smaller decode chunk alone does not."""
    lighter = gpu_memory.ladder(plan)
    while lighter is not None and replace(lighter, decode_chunk=plan.decode_chunk) == plan:
        lighter = gpu_memory.ladder(lighter)
    return lighter


def next_for_decoding(plan: Plan) -> Plan | None:
    """Single frames; the denoised latents are kept, so nothing is sampled again."""
    return replace(plan, decode_chunk=1) if plan.decode_chunk > 1 else gpu_memory.ladder(plan)


def keep_guidance(asked: float, useful: tuple[float, float] | None) -> tuple[float, tuple[str, ...]]:
    """The guidance scale within the model's useful range, and a note when that changed it."""
    if useful is None or useful[0] <= asked <= useful[1]:
        return asked, ()
    kept = min(max(asked, useful[0]), useful[1])
    return kept, (
        f"Guidance scale {asked:g} was set to {kept:g}; this model works from {useful[0]:g} to {useful[1]:g}.",
    )


def vae_factor(vae: Any) -> int:
    """Pixels a latent pixel stands for, each way."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """The job's peak on a GPU; on the CPU the process's peak so far, which is all the system keeps."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts kibibytes
