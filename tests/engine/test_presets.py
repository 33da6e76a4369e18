"""The presets on the shipped model: how near the approximations come to `exact`, and what the preview shows of it.

PSNR in dB over all frames. Measured at 128x128: fast 62, turbo 58, the last preview 31 (sunset) and 35 (night);
docs/performance.md has the distances over steps.
"""

from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from i2v.cli.calibration import psnr
from i2v.engine import Engine
from i2v.engine.interface import GenerationResult, Progress
from i2v.notes import say
from i2v.request import GenerateRequest
from tests.conftest import ASSETS

pytestmark = pytest.mark.slow

SIDE = 128


@dataclass
class Run:
    """One clip and all its previews."""

    result: GenerationResult | None = None
    previews: list[np.ndarray] = field(default_factory=list)

    def look(self, progress: Progress) -> None:
        if progress.preview is not None:
            self.previews.append(progress.preview())

    @property
    def frames(self) -> np.ndarray:
        assert self.result is not None
        return self.result.frames


@pytest.fixture(scope="module", params=["the scene at sunset", "night falls", "camera zooms in"])
def runs(request: pytest.FixtureRequest) -> dict[str, Run]:
    engine = Engine.load("demo", device="cpu")
    photo = Image.open(ASSETS / "coffee.jpg").convert("RGB")
    asked = GenerateRequest(
        prompt=request.param, width=SIDE, height=SIDE, num_frames=3, steps=50, guidance_scale=15.0, seed=1
    )
    found = {}
    for preset in ("exact", "fast", "turbo"):
        run = Run()
        run.result = engine.generate(asked.model_copy(update={"preset": preset}), photo, on_step=run.look)
        found[preset] = run
    return found


@pytest.mark.parametrize(("preset", "steps", "least"), [("fast", 25, 50), ("turbo", 16, 45)])
def test_an_approximate_preset_stays_near_exact_in_fewer_steps(
    runs: dict[str, Run], preset: str, steps: int, least: float
) -> None:
    assert len(runs["exact"].previews) == 50
    assert len(runs[preset].previews) == steps
    assert psnr(runs[preset].frames, runs["exact"].frames) > least


@pytest.mark.parametrize("preset", ["fast", "turbo"])
def test_an_approximate_preset_keeps_the_effect_that_guidance_gives(runs: dict[str, Run], preset: str) -> None:
    """Turbo once left guidance out of its last steps, and the sunset was gone: 18 dB in the last frame."""
    assert psnr(runs[preset].frames[-1], runs["exact"].frames[-1]) > 40
    assert psnr(runs["exact"].frames[-1], runs["exact"].frames[0]) < 25


@pytest.mark.parametrize("preset", ["exact", "fast", "turbo"])
def test_the_preview_resembles_the_middle_frame(runs: dict[str, Run], preset: str) -> None:
    run = runs[preset]
    middle = Image.fromarray(run.frames[len(run.frames) // 2])
    small = np.asarray(middle.resize((SIDE // 8, SIDE // 8), Image.Resampling.BOX))
    assert psnr(run.previews[-1], small) > 28
    assert psnr(run.previews[-1], small[::-1]) < 20  # it is this picture, not any


@pytest.mark.parametrize("preset", ["exact", "fast", "turbo"])
def test_every_preset_keeps_the_models_guidance_range(runs: dict[str, Run], preset: str) -> None:
    result = runs[preset].result
    assert result is not None
    assert result.guidance_scale == 9.0
    assert "Guidance scale 15 was set to 9; this model works from 1 to 9." in map(say, result.notes)
