"""`--model fake`: an instant, deterministic engine for people who write clients and for the fault and load tests.

It draws a moving test pattern over the photo, says in every result that it is not a model, and can be told to be slow
or to fail at a chosen point. Imports numpy and PIL only. Shapes and notes follow `i2v.engine.interface`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from i2v.engine.interface import DeviceMemory, GenerationResult, MemoryNeed, ModelInfo, OnStep, Progress
from i2v.errors import DoesNotFit, FatalEngineError, InvalidOutput, OutOfMemory
from i2v.notes import Note, say
from i2v.request import GenerateRequest, draw_seed

HANG_S = 3600.0
_FAULTS: dict[str, type[Exception]] = {
    "out_of_memory": OutOfMemory,
    "invalid_output": InvalidOutput,
    "fatal": FatalEngineError,
}

NOTE = Note("fake_engine")


@dataclass(slots=True)
class FakeEngine:
    """`step_s` seconds of sleep a step; `fault(stage, step)` may raise, sleep or kill at any point of a job.

    `max_pixels` (width x height x frames) makes `check` refuse larger jobs, as a small card would; `memory` is what it
    says of its device.
    """

    step_s: float = 0.0
    fault: Callable[[str, int], None] | None = None
    max_pixels: int | None = None
    memory: DeviceMemory | None = None

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            name="fake",
            kind="fake",
            title="Fake engine (test pattern, no model)",
            device="cpu",
            dtype="uint8",
            note=say(NOTE),
        )

    def check(self, request: GenerateRequest) -> None:
        pixels = request.width * request.height * request.num_frames
        if self.max_pixels is not None and pixels > self.max_pixels:
            frames = self.max_pixels // (request.width * request.height)
            raise DoesNotFit(
                f"{request.width}x{request.height} with {request.num_frames} frames does not fit into memory; "
                f"{frames} frames of this size would",
                largest={"width": request.width, "height": request.height, "num_frames": frames},
                field="num_frames",
            )

    def memory_need(self, request: GenerateRequest) -> MemoryNeed | None:
        self.check(request)
        if self.max_pixels is None:
            return None
        return MemoryNeed(needed=3 * request.width * request.height * request.num_frames, available=3 * self.max_pixels)

    def device_memory(self) -> DeviceMemory | None:
        return self.memory

    def generate(
        self, request: GenerateRequest, image: Image.Image, noise: Any = None, on_step: OnStep | None = None
    ) -> GenerationResult:
        del noise  # nothing is sampled
        start = time.perf_counter()
        seed = request.seed if request.seed is not None else draw_seed()
        photo = np.asarray(ImageOps.fit(image.convert("RGB"), (request.width, request.height)))
        for step in range(1, request.steps + 1):
            self._point("denoise", step)
            if self.step_s:
                time.sleep(self.step_s)
            if on_step is not None:
                on_step(Progress("denoise", step, request.steps, lambda: photo[::8, ::8].copy()))
        denoised = time.perf_counter()
        if on_step is not None:
            on_step(Progress("decode", 0, 1))
        self._point("decode", 1)
        frames = np.stack([_with_bar(photo, frame, request.num_frames, seed) for frame in range(request.num_frames)])
        return GenerationResult(
            frames=frames,
            latents=None,
            seed=seed,
            guidance_scale=request.guidance_scale,
            stage_seconds={
                "encode": 0.0,
                "denoise": denoised - start,
                "decode": time.perf_counter() - denoised,
            },
            notes=(NOTE,),
        )

    def close(self) -> None:
        """Nothing is held."""

    def _point(self, stage: str, step: int) -> None:
        if self.fault is not None:
            self.fault(stage, step)


def failing(kind: str, at: int) -> Callable[[str, int], None] | None:
    """A `fault` that ends every job at denoising step `at`; None for the kind `none`.

    Kinds: `error`, `out_of_memory`, `invalid_output`, `fatal` (as a lost CUDA context), `hang` (a step never returns).
    """

    def fault(stage: str, step: int) -> None:
        if (stage, step) != ("denoise", at):
            return
        if kind == "hang":
            time.sleep(HANG_S)
        raise _FAULTS.get(kind, RuntimeError)("the fake engine was told to fail")

    return None if kind == "none" else fault


def _with_bar(photo: np.ndarray, frame: int, num_frames: int, seed: int) -> np.ndarray:
    """The photo with a vertical bar that walks from left to right; its colour comes from the seed."""
    height, width, _ = photo.shape
    bar = max(4, width // 16)
    left = (width - bar) * frame // max(1, num_frames - 1)
    out = photo.copy()
    out[height // 3 : height * 2 // 3, left : left + bar] = np.random.default_rng(seed).integers(64, 256, 3)
    return out
