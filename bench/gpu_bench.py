"""What the sections of the GPU suite share: device, model, timing, and how a figure is said.

The same code rehearses on a CPU, in float32 and with a toy model.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any

import random_models
import torch
from engine import random_conditioning
from PIL import Image
from torch import Tensor

from i2v.engine import device_memory, failures, sampler
from i2v.engine.conditioning import Conditioning
from i2v.engine.engine import Engine
from i2v.engine.unet import fused
from i2v.errors import FatalEngineError
from i2v.request import GenerateRequest

models = cache(random_models.engine)  # once a process; a rehearsal may make it before it forks

STEP = 501  # the timestep of a single step
Size = tuple[int, int]


class Bench:
    """What the sections share: the device, the model, and how figures are said. `suite` is `gpu_suite.Suite`."""

    def __init__(self, suite: Any) -> None:
        self.suite, self.toy = suite, suite.toy
        self.device = "cpu" if self.toy else "cuda:0"  # numbered: set_per_process_memory_fraction refuses "cuda"
        self.dtype = torch.float32 if self.toy else torch.float16
        self.model = "toy" if self.toy else "published"
        self.size, self.frames, self.steps = ((64, 64), 2, 2) if self.toy else ((512, 512), 16, 50)
        self.repeats = 1 if self.toy else 5
        self.say: Callable[..., None] = suite.say
        if self.toy:
            torch.set_num_threads(1)  # several would wait for one another at every small operation
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    @property
    def models(self) -> tuple[Engine, Any]:
        """The engine at full size, and diffusers' UNet with the same weights."""
        return models(self.model, self.device, self.dtype)

    @cached_property
    def photo(self) -> Image.Image:
        return Image.effect_noise((512, 512), 20).convert("RGB")  # no picture: a flat video of it is no fault

    def sizes(self, *sizes: Size) -> tuple[Size, ...]:
        return (self.size,) if self.toy else sizes

    def conditioning(self, size: Size) -> Conditioning:
        return random_conditioning(self.models[0], *size, self.frames)

    def noise(self, given: Conditioning) -> Tensor:
        return torch.randn(given.image_latents.shape, generator=torch.Generator().manual_seed(1)).to(self.device)

    def request(self, width: int, height: int, frames: int, steps: int) -> GenerateRequest:
        return GenerateRequest(prompt="sunset", width=width, height=height, num_frames=frames, steps=steps, seed=1)

    def wait(self) -> None:
        if not self.toy:
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object]) -> float:
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return round(time.perf_counter() - start, 4)

    def timed(self, run: Callable[[], object], warm: int = 2) -> dict[str, Any]:
        """Milliseconds of a run: all of it, and the host's share, until everything is queued (medians)."""
        for _ in range(0 if self.toy else warm):
            run()
        whole, queued = [], []
        for _ in range(self.repeats):
            self.wait()
            start = time.perf_counter()
            run()
            queued.append(1e3 * (time.perf_counter() - start))
            self.wait()
            whole.append(1e3 * (time.perf_counter() - start))
        each = [round(one, 2) for one in whole]
        return {
            "ms": round(statistics.median(whole), 2),
            "queued_ms": round(statistics.median(queued), 2),
            "each": each,
        }

    def recover(self) -> None:
        device_memory.recover(torch.device(self.device))

    @contextmanager
    def attempt(self, section: str, **what: Any) -> Iterator[None]:
        """One figure less, not one section less, where the inside raises."""
        try:
            yield
        except Exception as error:
            if is_lost(error):
                raise
            self.say(section, **what, error=f"{type(error).__name__}: {error}"[:400])
        else:
            return
        self.recover()

    def our_step(self, given: Conditioning) -> Callable[[], Tensor]:
        """One guided step of ours, solver included."""
        engine, _ = self.models
        unet, noise = engine.parts.unet, self.noise(given)
        table, _ = sampler.schedule(engine.parts.scheduler.config, sampler.PRESETS["exact"], 50)
        state, row = sampler.begin(unet, given, [STEP]), table[0].to(self.device, torch.float32)
        history, scale = noise.new_zeros(3, *noise.shape), torch.tensor(given.guidance_scale, device=self.device)
        inputs = (state.at(0), noise, history, row, scale, None)
        return lambda: sampler.denoise_step(unet, sampler.StepKind(True), *inputs)[0]

    def their_step(self, given: Conditioning) -> Callable[[], Tensor]:
        """The same as diffusers computes it: every input twice."""
        _, upstream = self.models
        pair, images = (torch.cat([x.to(self.dtype)] * 2) for x in (self.noise(given), given.image_latents))
        fps, at = torch.tensor([given.motion_fps] * 2, device=self.device), torch.tensor(STEP, device=self.device)
        return lambda: upstream(pair, at, fps, images, given.image_embedding, given.text, return_dict=False)[0]


class Spoiled(RuntimeError):
    """The process still works, but what it would measure from now on would not be the product's."""


def is_lost(error: BaseException) -> bool:
    """Whether another process has to go on: this one cannot use its GPU any more, or should not."""
    return isinstance(error, Spoiled | FatalEngineError) or failures.is_fatal(error)


def apart(result: Tensor, expected: Tensor) -> float:
    """Relative error in the Euclidean norm."""
    return fused.relative_error(result.double(), expected.double())
