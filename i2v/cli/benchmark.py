"""How long a loaded model takes on this machine: one job to warm up, then the same job some times more.

Times are the engine's own by stage; no MP4 is written. Knows nothing of terminals and imports no torch; called by
`i2v bench`.
"""

import importlib.metadata
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from PIL import Image

from i2v import __version__
from i2v.engine.interface import EngineProtocol, ModelInfo, OnStep, Progress
from i2v.notes import say
from i2v.request import GenerateRequest

PROMPT = "camera zooms in slowly"
SEED = 1


@dataclass(frozen=True, slots=True)
class Run:
    """One job. `steps` that were taken, which a preset may have made fewer than were asked for; peak memory in MB."""

    stage_seconds: dict[str, float]
    steps: int
    peak_memory_mb: float | None
    plan: str

    @property
    def seconds(self) -> float:
        """All stages together."""
        return sum(self.stage_seconds.values())

    @property
    def step_seconds(self) -> float:
        """Mean time of a denoising step."""
        return self.stage_seconds["denoise"] / self.steps

    def raw(self) -> dict[str, Any]:
        """All numbers, for `--json`."""
        return asdict(self) | {"seconds": self.seconds, "step_seconds": self.step_seconds}


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What was measured, and on what. The warm-up counts in no figure; it is kept to show what the first job costs."""

    info: ModelInfo
    request: GenerateRequest
    warm_up: Run
    runs: tuple[Run, ...]

    def seconds(self) -> dict[str, list[float]]:
        """Seconds of each stage, of a whole job and of a step, one for each run."""
        stages = {name: [run.stage_seconds[name] for run in self.runs] for name in self.runs[0].stage_seconds}
        return stages | {"job": [run.seconds for run in self.runs], "step": [run.step_seconds for run in self.runs]}

    def facts(self) -> dict[str, object]:
        """What the seconds hold for, one value a line."""
        request, last = self.request, self.runs[-1]
        peaks = [run.peak_memory_mb for run in self.runs if run.peak_memory_mb is not None]
        fewer = "" if last.steps == request.steps else f" ({last.steps} taken)"
        facts: dict[str, object] = {
            "model": self.info.title,
            "device": f"{self.info.device} ({self.info.dtype})",
            "torch": torch_version(),
            "job": f"{request.width}x{request.height}, {request.num_frames} frames, {request.steps} steps{fewer}, "
            f"preset {request.preset}",
            "runs": f"{len(self.runs)}, after one of {self.warm_up.seconds:.2f} s to warm up",
        }
        if last.plan:
            facts["plan"] = "; ".join(dict.fromkeys(run.plan for run in self.runs))
        if peaks:
            facts["peak memory"] = f"{max(peaks):.0f} MB"
        return facts

    def raw(self) -> dict[str, Any]:
        """Everything, for `--json`."""
        return {
            "i2v": __version__,
            "torch": torch_version(),
            "model": self.info.name,
            "device": self.info.device,
            "dtype": self.info.dtype,
            "request": self.request.model_dump(mode="json"),
            "warm_up": self.warm_up.raw(),
            "runs": [run.raw() for run in self.runs],
            "median_seconds": {name: statistics.median(found) for name, found in self.seconds().items()},
        }


def usual(kind: Literal["real", "demo", "fake"]) -> dict[str, Any]:
    """The job where nothing else is asked for: the published model at its usual size, any other model small."""
    small: dict[str, Any] = {} if kind == "real" else {"width": 256, "height": 256, "steps": 20}
    return {"prompt": PROMPT, "seed": SEED} | small


def measure(
    engine: EngineProtocol,
    request: GenerateRequest,
    photo: Image.Image,
    runs: int,
    *,
    on_run: Callable[[int], None] | None = None,
    on_step: OnStep | None = None,
) -> Benchmark:
    """Generate `request` once and then `runs` times more. The caller holds the GPU mutex.

    `on_run` is told the number of each job before it begins, 0 for the warm-up. Raises what `engine.check` and
    `engine.generate` raise.
    """
    engine.check(request)
    found = []
    for number in range(runs + 1):
        if on_run is not None:
            on_run(number)
        found.append(_run(engine, request, photo, on_step))
    return Benchmark(engine.info, request, found[0], tuple(found[1:]))


def torch_version() -> str:
    """Of the installed package, without importing it."""
    return importlib.metadata.version("torch")


def _run(engine: EngineProtocol, request: GenerateRequest, photo: Image.Image, on_step: OnStep | None) -> Run:
    steps = 1

    def count(progress: Progress) -> None:
        nonlocal steps
        if progress.stage == "denoise":
            steps = progress.steps
        if on_step is not None:
            on_step(progress)

    made = engine.generate(request, photo, on_step=count)
    return Run(dict(made.stage_seconds), steps, made.peak_memory_mb, "" if made.plan is None else say(made.plan))
