"""The presets on the shipped model: how near the approximations come to `exact`, and what the preview shows of it.

PSNR in dB over all frames. Measured at 128x128, 8 frames: fast 51 to 52, turbo 39 (sunset) and 30 (night), the last
preview 34 to 40; docs/performance.md has the distances over steps.
"""

from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from i2v.calibration import psnr
from i2v.engine import Engine
from i2v.engine.protocol import GenerationResult, Progress
from i2v.request import GenerateRequest
from tests.conftest import ASSETS

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


@pytest.fixture(scope="module", params=["the scene at sunset", "night falls"])
def runs(request: pytest.FixtureRequest) -> dict[str, Run]:
    engine = Engine.load("demo", device="cpu")
    photo = Image.open(ASSETS / "coffee.jpg").convert("RGB")
    asked = GenerateRequest(
        prompt=request.param, width=SIDE, height=SIDE, num_frames=4, steps=50, guidance_scale=9.0, seed=1
    )
    found = {}
    for preset in ("exact", "fast", "turbo"):
        run = Run()
        run.result = engine.generate(asked.model_copy(update={"preset": preset}), photo, on_step=run.look)
        found[preset] = run
    return found


@pytest.mark.parametrize(("preset", "steps", "least"), [("fast", 25, 40), ("turbo", 16, 24)])
def test_an_approximate_preset_stays_near_exact_in_fewer_steps(
    runs: dict[str, Run], preset: str, steps: int, least: float
) -> None:
    assert len(runs["exact"].previews) == 50
    assert len(runs[preset].previews) == steps
    assert psnr(runs[preset].frames, runs["exact"].frames) > least


def test_fast_is_nearer_to_exact_than_turbo(runs: dict[str, Run]) -> None:
    exact = runs["exact"].frames
    assert psnr(runs["fast"].frames, exact) > psnr(runs["turbo"].frames, exact) + 3


@pytest.mark.parametrize("preset", ["exact", "fast", "turbo"])
def test_the_preview_resembles_the_middle_frame_ever_more(runs: dict[str, Run], preset: str) -> None:
    run = runs[preset]
    middle = Image.fromarray(run.frames[len(run.frames) // 2])
    small = np.asarray(middle.resize((SIDE // 8, SIDE // 8), Image.Resampling.BOX))
    assert psnr(run.previews[-1], small) > 28
    assert psnr(run.previews[-1], small) > psnr(run.previews[0], small)
    assert psnr(run.previews[-1], small[::-1]) < 20  # it is this picture, not any


@pytest.mark.parametrize("preset", ["exact", "fast", "turbo"])
def test_every_preset_keeps_the_models_guidance_range(runs: dict[str, Run], preset: str) -> None:
    result = runs[preset].result
    assert result is not None
    assert result.guidance_scale == 1.2
    assert any(note.startswith("Guidance scale 9 was set to 1.2") for note in result.notes)
