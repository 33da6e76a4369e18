"""The presets on the shipped model: how near the approximations come to `exact`, and what the preview shows of it.

PSNR in dB over all frames. Measured at 128x128: fast 62, turbo 58, the last preview 31 (sunset) and 35 (night);
docs/performance.md has the distances over steps.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from PIL import Image

from i2v.cli.calibration import psnr
from i2v.engine import Engine
from i2v.engine.interface import GenerationResult, Progress
from i2v.notes import say
from i2v.request import GenerateRequest, Preset
from tests.conftest import ASSETS

pytestmark = pytest.mark.slow

SIDE, STEPS = 128, 30  # more steps than any approximation takes


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


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The demo model without its bound of steps, so that the presets differ in them."""
    engine = Engine.load("demo", device="cpu")
    return replace(engine, parts=replace(engine.parts, info=replace(engine.info, max_steps=None)))


@pytest.mark.parametrize("prompt", ["the scene at sunset", "night falls", "camera zooms in"])
def test_a_preset_stays_near_exact_and_keeps_what_guidance_gives(
    engine: Engine, prompt: str, subtests: pytest.Subtests
) -> None:
    runs = {preset: clip(engine, prompt, preset) for preset in ("exact", "fast", "turbo")}
    exact = runs["exact"]
    for preset, steps, least in (("fast", 25, 50), ("turbo", 16, 45)):
        run = runs[preset]
        with subtests.test("it stays near exact in fewer steps", preset=preset):
            assert len(exact.previews) == STEPS
            assert len(run.previews) == steps
            assert psnr(run.frames, exact.frames) > least
        with subtests.test("it keeps the effect that guidance gives", preset=preset):
            # Turbo once left guidance out of its last steps, and the sunset was gone: 18 dB in the last frame.
            assert psnr(run.frames[-1], exact.frames[-1]) > 40
            assert psnr(exact.frames[-1], exact.frames[0]) < 28
    for preset, run in runs.items():
        with subtests.test("the last preview resembles the middle frame", preset=preset):
            middle = Image.fromarray(run.frames[len(run.frames) // 2])
            side = SIDE // engine.shape.factor
            small = np.asarray(middle.resize((side, side), Image.Resampling.BOX))
            assert psnr(run.previews[-1], small) > 28
            assert psnr(run.previews[-1], small[::-1]) < 20  # it is this picture, not any
        with subtests.test("it keeps the model's guidance range", preset=preset):
            assert run.result is not None
            assert run.result.guidance_scale == 7.5
            assert "Guidance scale 15 was set to 7.5; this model works from 1 to 7.5." in map(say, run.result.notes)


def clip(engine: Engine, prompt: str, preset: Preset) -> Run:
    photo = Image.open(ASSETS / "coffee.jpg").convert("RGB")
    request = GenerateRequest(prompt=prompt, width=SIDE, height=SIDE, num_frames=3, steps=STEPS, guidance_scale=15.0)
    run = Run()
    run.result = engine.generate(request.model_copy(update={"preset": preset, "seed": 1}), photo, on_step=run.look)
    return run
