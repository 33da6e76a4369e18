"""The shipped model through the whole engine, on a photo it was not trained on."""

import numpy as np
import pytest
from PIL import Image

from i2v.engine import Engine
from i2v.engine.protocol import GenerationResult
from i2v.images import fit_image
from i2v.request import GenerateRequest

JOB = GenerateRequest(
    prompt="the scene at sunset", width=256, height=256, num_frames=8, steps=20, guidance_scale=7.5, seed=1
)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("demo", device="cpu")


@pytest.fixture
def sunset(engine: Engine, photo: Image.Image) -> GenerationResult:
    return engine.generate(JOB, photo)


def warmth(frame: np.ndarray) -> float:
    return float(frame[..., 0].mean() / frame[..., 2].mean())


def test_the_first_frame_is_the_photo_and_the_last_is_warmer(sunset: GenerationResult, photo: Image.Image) -> None:
    wanted = np.asarray(fit_image(photo, 256, 256)[0]).astype(float)
    first, last = sunset.frames[0].astype(float), sunset.frames[-1].astype(float)
    assert 10 * np.log10(255**2 / ((first - wanted) ** 2).mean()) > 18
    assert warmth(last) > 1.3 * warmth(first)
    low, high = 1.0, 1.2
    assert low <= sunset.guidance_scale <= high
    assert any(note.startswith("Guidance scale 7.5 was set to 1.2") for note in sunset.notes)


def test_its_own_conventions_win_over_the_authors(engine: Engine) -> None:
    assert engine.conventions.image_concat_scale == 1.0
    assert engine.conventions.negative_prompt == ""
    assert engine.conventions.pad_token_id is None


@pytest.mark.parametrize("preset", ["fast", "turbo"])
def test_every_preset_starts_at_the_photo(engine: Engine, photo: Image.Image, preset: str) -> None:
    """The demo's schedule ends at alpha_bar 0, where an unguarded solver gives NaN."""
    change = {"preset": preset, "steps": 10, "guidance_scale": 1.0, "num_frames": 3, "prompt": "static camera"}
    result = engine.generate(JOB.model_copy(update=change), photo)
    wanted = np.asarray(fit_image(photo, 256, 256)[0]).astype(float)
    assert 10 * np.log10(255**2 / ((result.frames[0].astype(float) - wanted) ** 2).mean()) > 18
