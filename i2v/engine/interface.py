"""What every engine gives and takes: the model on a GPU, the demo model, the fake engine, a remote replica.

Imports numpy and PIL only, so the worker, the routes and the UI can name these types without loading torch.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from i2v.notes import Note
from i2v.request import GenerateRequest

Frames = NDArray[np.uint8]  # (F, H, W, 3), RGB
Stage = Literal["encode", "denoise", "decode"]
WORD = re.compile(r"[\w']+")


@dataclass(frozen=True, slots=True)
class Progress:
    """One report from inside `Engine.generate`; `step` of `steps` counts what is done of `stage`.

    The first report of `decode` has step 0, as denoising is done by then; the other stages start at 1.

    `preview` gives a small uint8 RGB picture (h, w, 3) of the middle frame for nearly nothing, or is None.
    """

    stage: Stage
    step: int
    steps: int
    preview: Callable[[], NDArray[np.uint8]] | None = None


# Called on the engine's thread after each step. Whatever it raises stops the job and leaves `generate` unchanged;
# raising `i2v.errors.JobCancelled` is how a job is cancelled between two steps.
OnStep = Callable[[Progress], None]

# Called while a model downloads or loads: what is being done, and the fraction done in 0..1 (None when unknown).
OnLoad = Callable[[Note, float | None], None]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is loaded, in words that every surface shows as they are."""

    name: str  # "ali-vilab/i2vgen-xl", "demo", "fake", or the folder's name
    kind: Literal["real", "demo", "fake"]
    title: str  # one line for banners: "Demo model (small, trained for this project)"
    device: str  # "NVIDIA H200", "cpu"
    dtype: str  # "float16", "float32"
    note: str = ""  # a sentence on what it is not; empty for the real model
    vocabulary: tuple[str, ...] = ()  # prompts the model is known to follow; examples in the UI
    guidance_range: tuple[float, float] | None = None  # useful range; the engine keeps guidance within it
    max_steps: int | None = None  # more change nothing; the engine takes no more
    phrases: tuple[str, ...] = ()  # all that it was made to follow, in lower case; none: it takes free prompts

    def knows(self, prompt: str) -> bool:
        """Whether the prompt holds a phrase that the model follows; true of any prompt where it takes free ones."""
        words = f" {' '.join(WORD.findall(prompt.lower()))} "
        return not self.phrases or any(f" {phrase} " in words for phrase in self.phrases)


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """What one job produced.

    `frames` (F, H, W, 3) uint8 RGB on the CPU; `latents` (1, 4, F, h, w) fp32 before decoding (an engine's own
    tensor type, None where there is none); `seed` the one that was used; `stage_seconds` wall time by stage;
    `peak_memory_mb` of the device (None where it cannot be read); `notes` is what the engine changed or
    noticed (guidance kept in range, prompt cut, crop), `warnings` what the result check found, with what to change.
    """

    frames: Frames
    latents: Any
    seed: int
    guidance_scale: float  # the one that was used
    stage_seconds: dict[str, float]
    peak_memory_mb: float | None = None
    plan: Note | None = None  # how memory was used
    notes: tuple[Note, ...] = ()
    warnings: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes of the device that a job would hold at its peak, weights included, and may have."""

    needed: int
    available: int


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of a GPU's memory at this moment: held by this process, free, and all there is."""

    held: int
    free: int
    total: int


class EngineProtocol(Protocol):
    """One loaded model. Calls are serialised by the caller, who holds the GPU mutex."""

    @property
    def info(self) -> ModelInfo: ...

    def check(self, request: GenerateRequest) -> None:
        """Raise `DoesNotFit` when this machine's memory cannot hold the job; cheap, called at the door."""

    def memory_need(self, request: GenerateRequest) -> MemoryNeed | None:
        """What the job would take now, None where nothing is counted. Raises as `check`; as cheap."""

    def device_memory(self) -> DeviceMemory | None:
        """The GPU's memory now, None on a CPU. Cheap; may be called from any thread, also while a job runs."""

    def generate(
        self, request: GenerateRequest, image: Image.Image, noise: Any = None, on_step: OnStep | None = None
    ) -> GenerationResult:
        """Run one job. Raises OutOfMemory, InvalidOutput, JobCancelled, FatalEngineError or GenerationFailed."""

    def close(self) -> None: ...
