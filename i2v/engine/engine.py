"""One loaded model and the way a request goes through it: encode, schedule, denoise, decode.

The stages are in `inference.py`; this file loads the model, chooses the plan, runs a stage again when memory ran out,
and judges the result. Knows nothing of HTTP, jobs or files. Callers hold the GPU mutex.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from i2v.engine import conditioning, decode, device_memory, failures, trained_sizes, verdict, weights
from i2v.engine import memory as gpu_memory
from i2v.engine.conventions import Conventions, for_model, for_parity, named
from i2v.engine.device_work import make_current
from i2v.engine.faster_steps import Accelerator
from i2v.engine.inference import Inference
from i2v.engine.interface import DeviceMemory, Frames, GenerationResult, MemoryNeed, ModelInfo, OnLoad, OnStep
from i2v.engine.memory import Offload, Plan
from i2v.engine.residency import resident
from i2v.engine.source import device_name
from i2v.engine.unet import choices, fused
from i2v.errors import FatalEngineError, InvalidRequest, ModelUnavailable, OutOfMemory
from i2v.notes import Note
from i2v.presets import PRESETS, Sampling
from i2v.request import GenerateRequest, Preset, draw_seed

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
    presets: Mapping[Preset, Sampling] = field(default_factory=lambda: PRESETS)
    steps: Accelerator = field(default_factory=Accelerator)
    texts: conditioning.TextCache = field(default_factory=conditioning.TextCache)
    shape: gpu_memory.Shape = field(init=False)  # what memory depends on, of the model and of its presets

    def __post_init__(self) -> None:
        caching = frozenset(name for name, sampling in self.presets.items() if sampling.deep_cache.interval > 1)
        self.shape = replace(gpu_memory.shape_of(self.parts), caching=caching)

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
        accelerate: str = "auto",
        presets: Mapping[Preset, Sampling] = PRESETS,
        on_load: OnLoad | None = None,
    ) -> Self:
        """Load `auto`, `demo`, a hub id or a diffusers folder. Raises ModelUnavailable or ValueError with the reason.

        `device`: auto, cpu, cuda, cuda:N. `dtype`: auto (float16 on CUDA, float32 on the CPU), float16, bfloat16,
        float32. `conventions`: `authors`, `upstream`, or a `Conventions` object. `memory`: auto, resident,
        low-vram. `max_vram_gb` makes a large card behave like a smaller one. `image_concat_scale` overrides the
        folder's card and the conventions. `accelerate`: auto, off, compile, graph (see `faster_steps.py`).
        """
        wanted = named(conventions)
        folder = weights.resolve(
            str(source), revision=revision, cache_dir=cache_dir, offline=offline, on_load=on_load, device=device
        )
        chosen = weights.choose_device(device)
        if chosen.type == "cuda":
            choices.adopt(choices.DEFAULT)
        make_current(chosen)
        device_memory.limit(chosen, max_vram_gb)
        home = torch.device("cpu") if memory == "low-vram" else chosen  # parts are copied to `chosen` in turn
        parts = weights.load_parts(folder, home, weights.choose_dtype(dtype, chosen, folder.card), on_load)
        parts = replace(parts, info=replace(parts.info, device=device_name(chosen)))
        check_presets(presets, parts)
        fused.compile_for(parts.unet, chosen)
        engine = replace(
            cls.of(parts, chosen, wanted, memory, max_vram_gb),
            steps=Accelerator.of(accelerate, chosen),
            presets=presets,
        )
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
        """An engine around loaded parts: lays their VAE out channels last, and fits the preview to it."""
        parts.vae.to(memory_format=torch.channels_last)
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
        self.choose_plan(request)

    @property
    def offloads(self) -> bool:
        """Whether weights have somewhere else to wait: a CPU has one memory."""
        return self.device.type == "cuda"

    def as_run(self, request: GenerateRequest) -> GenerateRequest:
        """The request with the guidance and the steps it will have: whether there is guidance decides its memory."""
        scale, _ = keep_guidance(request.guidance_scale, self.info.guidance_range)
        steps, _ = keep_steps(request.steps, self.info.max_steps)
        if (scale, steps) == (request.guidance_scale, request.steps):
            return request
        return request.model_copy(update={"guidance_scale": scale, "steps": steps})

    def choose_plan(self, request: GenerateRequest) -> Plan:
        """The fastest plan that fits what is free now. Raises as `check`; DoesNotFit names the largest that fits."""
        factor = self.shape.factor
        for name, side in (("width", request.width), ("height", request.height)):
            if side % factor:
                raise InvalidRequest(f"{name} is {side}; this model makes multiples of {factor}", field=name)
        free = device_memory.read(self.device, self.max_vram_gb)
        return gpu_memory.choose_plan(self.shape, self.as_run(request), free, self.memory_mode, offloads=self.offloads)

    def memory_need(self, request: GenerateRequest) -> MemoryNeed:
        """What the job would hold under the plan that it would get now. Raises as `check`."""
        plan, free = self.choose_plan(request), device_memory.read(self.device, self.max_vram_gb)
        need = gpu_memory.predict(self.shape, self.as_run(request), plan)
        return MemoryNeed(needed=need.peak, available=free.usable)

    def device_memory(self) -> DeviceMemory | None:
        """The GPU's memory now; None on a CPU."""
        return device_memory.device_memory(self.device)

    def would_fit(self, request: GenerateRequest) -> str:
        """What to ask for instead of a job that ran out of memory: at most half of it, less where memory is short."""
        if request.num_frames > 8:
            change = {"num_frames": max(8, request.num_frames // 2)}
        else:
            change = {side: max(64, int(getattr(request, side) * 0.7) // 8 * 8) for side in ("width", "height")}
        smaller, free = (
            self.as_run(request).model_copy(update=change),
            device_memory.read(self.device, self.max_vram_gb),
        )
        largest = gpu_memory.largest_that_fits(self.shape, smaller, free, self.memory_mode, offloads=self.offloads)
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
        make_current(self.device)  # of this thread, which need not be the one that loaded
        guidance_scale, notes = keep_guidance(request.guidance_scale, self.info.guidance_range)
        notes += keep_steps(request.steps, self.info.max_steps)[1]
        request = self.as_run(request)
        first = self.choose_plan(request)
        parity = noise is not None and self.conventions.name == "upstream"
        run = self.begin(request, image, noise, on_step, for_parity(self.conventions) if parity else self.conventions)
        device_memory.reset_peak(self.device)
        self.steps.start(self.keeps_steps_plain(request, first), kind_of_job(request, first))
        (conditioned, latents), plan, trouble = self.recovering(
            run.denoise, first, gpu_memory.next_for_denoising, request
        )
        notes += conditioned.notes + run.sampling_notes() + trained_sizes.notes(request, self.info) + trouble
        accelerated, plainly = self.steps.report()
        frames, plan, trouble = self.recovering(
            lambda plan: run.decode(latents, plan), plan, gpu_memory.next_for_decoding, request
        )
        warnings = () if parity else self.judge(frames, request, run.photo.picture)  # parity compares what comes
        return GenerationResult(
            frames=frames,
            latents=latents.cpu(),
            seed=run.seed,
            guidance_scale=guidance_scale,
            stage_seconds=run.seconds,
            peak_memory_mb=device_memory.peak_memory_mb(self.device),
            plan=plan.note(*accelerated),
            notes=notes + trouble + plainly,
            warnings=warnings,
        )

    def begin(
        self,
        request: GenerateRequest,
        image: Image.Image,
        noise: Tensor | None,
        on_step: OnStep | None,
        conventions: Conventions,
    ) -> Inference:
        """The inference of a request, with its photo fitted and its seed drawn."""
        return Inference(
            request=request,
            photo=conditioning.fit_photo(image, request, conventions),
            seed=draw_seed() if request.seed is None else request.seed,
            noise=noise,
            on_step=on_step,
            parts=self.parts,
            device=self.device,
            conventions=conventions,
            sampling=self.presets[request.preset],
            preview=self.preview,
            steps=self.steps,
            texts=self.texts,
        )

    def keeps_steps_plain(self, request: GenerateRequest, plan: Plan) -> Note | None:
        """Why a faster form of the step is not for this job; forms whose memory the job needs are given up."""
        if self.steps.form is None:
            return None
        if plan.offload != "none":
            self.steps.drop()  # what a graph has recorded are the addresses of weights that now move
            return Note("plain_offloaded")
        usable = device_memory.read(self.device, self.max_vram_gb).usable
        need = gpu_memory.predict(self.shape, request, plan)
        activations = gpu_memory.denoise_activations(self.shape, request, plan)
        own, spare = self.steps.form.needs(activations), usable - need.peak
        if self.steps.serves(kind_of_job(request, plan)):
            # Its steps' activations are in the recordings, which `usable` counts as free
            rest = max(need.encode, need.decode, need.denoise - min(activations, self.steps.held))
            if rest + self.steps.held <= usable:
                return None
        if spare < self.steps.held:
            self.steps.drop()
        if own > 0 and spare < own + self.steps.held:
            return Note("plain_no_room", {"gib": own / gpu_memory.GIB})
        return None

    def recovering(
        self,
        run: Callable[[Plan], T],
        plan: Plan,
        lighter: Callable[[Plan], Plan | None],
        request: GenerateRequest,
    ) -> tuple[T, Plan, tuple[Note, ...]]:
        """Run under `plan`; after out of memory, under lighter plans until one is enough or none is left.

        Where forms of the step held memory of their own, the same plan comes once more without them first; whatever is
        done again takes its steps plainly. Returns the result, the plan it ran under and a note when memory ran out.
        Raises OutOfMemory with what would fit when all ran out, FatalEngineError when the CUDA context is lost,
        anything else as it is.
        """
        attempt: Plan | None = plan
        tried = 0
        while attempt is not None and gpu_memory.allowed(attempt, self.memory_mode, self.offloads):
            try:
                return run(attempt), attempt, ran_out(tried, attempt)
            except Exception as error:
                if failures.is_fatal(error):
                    raise FatalEngineError("the GPU's context is lost; the server starts again") from error
                if not failures.is_out_of_memory(error):
                    raise
            # Only here, with the exception gone, does nothing hold the failed frames and their tensors any more
            held = self.steps.held
            self.steps.drop()
            self.steps.forbid(Note("plain_out_of_memory"))
            device_memory.recover(self.device)
            attempt, tried = attempt if held else lighter(attempt), tried + 1
        raise OutOfMemory(f"the job ran out of memory; {self.would_fit(request)}", retry_after=5)

    def judge(self, frames: Frames, request: GenerateRequest, picture: Image.Image) -> tuple[Note, ...]:
        """Labels for `frames` (F, H, W, 3) that began at `picture` (H, W). InvalidOutput where it is unusable."""
        found = verdict.judge(frames, np.asarray(picture))
        verdict.refuse(found)
        return verdict.labels(found, request, self.info) + trained_sizes.labels(request, self.info)

    def close(self) -> None:
        """Give the memory back; the engine cannot be used afterwards."""
        self.steps.drop()
        self.texts.kept.clear()
        for part in ("unet", "vae", "text_encoder", "image_encoder"):
            getattr(self.parts, part).to("meta")
        device_memory.recover(self.device)


def kind_of_job(request: GenerateRequest, plan: Plan) -> Hashable:
    """What the shapes of a job's steps follow from, its preset's kinds of step included."""
    size = (request.width, request.height, request.num_frames)
    return *size, request.preset, request.guidance_scale > 1.0, plan.ff_chunks, plan.guidance_passes


def ran_out(times: int, plan: Plan) -> tuple[Note, ...]:
    """A note when a part ran out of memory before it was done under `plan`."""
    if times == 0:
        return ()
    if times == 1:
        return (Note("out_of_memory_once", {"plan": plan.note()}),)
    return (Note("out_of_memory", {"times": times, "plan": plan.note()}),)


def keep_guidance(asked: float, useful: tuple[float, float] | None) -> tuple[float, tuple[Note, ...]]:
    """The guidance scale within the model's useful range, and a note when that changed it."""
    if useful is None or useful[0] <= asked <= useful[1]:
        return asked, ()
    kept = min(max(asked, useful[0]), useful[1])
    return kept, (Note("guidance_kept", {"asked": asked, "kept": kept, "low": useful[0], "high": useful[1]}),)


def keep_steps(asked: int, most: int | None) -> tuple[int, tuple[Note, ...]]:
    """No more steps than change something with the model, and a note when that took some away."""
    if most is None or asked <= most:
        return asked, ()
    return most, (Note("steps_kept", {"asked": asked, "most": most}),)


def check_presets(presets: Mapping[Preset, Sampling], parts: weights.ModelParts) -> None:
    """Raise ModelUnavailable for a preset that asks the UNet for more layers than a level has."""
    most = int(parts.unet.config.layers_per_block)
    for name, sampling in presets.items():
        branch = sampling.deep_cache.branch
        if branch > most:
            raise ModelUnavailable(f"preset {name}: deep_cache.branch is {branch}; this model takes 0 to {most}")


def vae_factor(vae: Any) -> int:
    """Pixels a latent pixel stands for, each way."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))
