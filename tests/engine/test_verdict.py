"""Which videos are refused, which are labelled, and that what a prompt may mean is neither."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from i2v.engine import Engine, trained_sizes, verdict
from i2v.engine.interface import Frames, ModelInfo
from i2v.errors import InvalidOutput
from i2v.images import fit_image
from i2v.notes import say
from i2v.request import GenerateRequest
from tests.engine.tiny_folder import draw_photo

FRAMES, SIZE = 8, 64
REQUEST = GenerateRequest(prompt="a cup of coffee", width=512, height=512, num_frames=16)
REAL = ModelInfo(name="real", kind="real", title="real", device="cpu", dtype="float32")
DEMO = ModelInfo(name="demo", kind="demo", title="demo", device="cpu", dtype="float32", vocabulary=("night falls",))


def photo_of(image: Image.Image, size: int = SIZE) -> np.ndarray:
    return np.asarray(fit_image(image.convert("RGB"), size, size)[0])


@pytest.fixture
def scene(photo: Image.Image) -> np.ndarray:
    return photo_of(photo)


def video(change: Callable[[float], np.ndarray]) -> Frames:
    """`change(t)` gives the frame at time t in 0..1; sensor noise is added, as models leave it."""
    noise = np.random.default_rng(0).normal(0, 2, (FRAMES, SIZE, SIZE, 3))
    frames = np.stack([change(number / (FRAMES - 1)) for number in range(FRAMES)]) + noise
    return frames.round().clip(0, 255).astype(np.uint8)


def one_colour(*rgb: int) -> np.ndarray:
    return np.broadcast_to(np.array(rgb, float), (SIZE, SIZE, 3))


def towards(scene: np.ndarray, colour: np.ndarray, amount: float) -> np.ndarray:
    return scene * (1 - amount) + colour * amount


# --- what fails


@pytest.mark.parametrize(
    ("colour", "name"),
    [((127, 127, 127), "grey"), ((20, 40, 220), "blue"), ((5, 5, 5), "black"), ((40, 200, 30), "green")],
)
def test_a_video_of_one_colour_fails_by_its_name(scene: np.ndarray, colour: tuple[int, ...], name: str) -> None:
    failure = verdict.judge(video(lambda t: one_colour(*colour)), scene).failure
    assert failure == f"every frame of the video is one flat {name}"


@pytest.mark.parametrize(("colour", "name"), [((127, 127, 127), "grey"), ((20, 40, 220), "blue")])
def test_a_drift_into_grey_or_blue_fails(scene: np.ndarray, colour: tuple[int, ...], name: str) -> None:
    drifting = video(lambda t: towards(scene, one_colour(*colour), min(1.0, 2.5 * t)))
    assert verdict.judge(drifting, scene).failure == f"the video drifts into a flat {name}"


@pytest.mark.parametrize("colour", [(0, 0, 0), (128, 128, 128), (255, 255, 255)])
def test_a_blank_last_frame_fails(scene: np.ndarray, colour: tuple[int, ...]) -> None:
    blank = video(lambda t: one_colour(*colour) if t == 1 else scene)
    assert verdict.judge(blank, scene).failure == "the last frame of the video is blank"
    with pytest.raises(InvalidOutput, match="last frame of the video is blank; another seed"):
        verdict.refuse(verdict.judge(blank, scene))


def test_a_black_video_fails_and_not_one_lit_pixel_more(scene: np.ndarray) -> None:
    black = np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8)
    assert verdict.judge(black, scene).failure == "every frame of the video is black"
    assert verdict.judge(black, scene * 0).failure is None
    assert verdict.blackness(black + np.uint8(3), scene) is None


# --- what may be meant


@pytest.mark.parametrize(
    "change",
    [
        lambda scene, t: scene,
        lambda scene, t: scene * (1 - t),
        lambda scene, t: scene * max(0.0, 1 - 2 * t),  # black from the middle on
        lambda scene, t: towards(scene, one_colour(255, 255, 255), t),
        lambda scene, t: towards(scene, one_colour(150, 160, 165), 0.9 * t),  # fog
        lambda scene, t: scene * np.array([1 - 0.8 * t, 1 - 0.75 * t, 1 - 0.5 * t]),  # night
        lambda scene, t: scene * np.array([1, 1 - 0.4 * t, 1 - 0.7 * t]),  # sunset
        lambda scene, t: np.roll(scene, round(30 * t), axis=1),
        lambda scene, t: scene if round(7 * t) != 4 else one_colour(255, 255, 255),  # lightning
    ],
    ids=["static", "fade", "quick fade", "white", "fog", "night", "sunset", "pan", "lightning"],
)
def test_effects_that_a_prompt_may_ask_for_pass(scene: np.ndarray, change: Callable[..., np.ndarray]) -> None:
    assert verdict.judge(video(lambda t: change(scene, t)), scene).failure is None


@pytest.mark.parametrize("colour", [(128, 128, 128), (30, 60, 220), (250, 250, 250), (9, 9, 9)])
def test_a_photo_without_a_picture_may_stay_without_one(colour: tuple[int, ...]) -> None:
    wall = one_colour(*colour)
    found = verdict.judge(video(lambda t: wall), wall.astype(np.uint8))
    assert found == verdict.Verdict(still=True)


# --- labels


def test_a_colour_drift_that_keeps_the_picture_is_a_label(scene: np.ndarray) -> None:
    blue = video(lambda t: towards(scene, one_colour(0, 40, 255), 0.7 * t))
    found = verdict.judge(blue, scene)
    assert found == verdict.Verdict(drifted=True)
    said = say(*verdict.labels(found, REQUEST, REAL))
    for advice in ("another seed", "lower guidance scale", "1280x704"):
        assert advice in said


def test_a_colourful_photo_that_fades_to_black_has_not_drifted() -> None:
    """Its tint leaves with the light; compared as it was, that counted as a drift."""
    red = np.zeros((SIZE, SIZE, 3))
    red[..., 0] = np.linspace(80, 255, SIZE)
    photo = red.astype(np.uint8)
    assert not verdict.judge(video(lambda t: red * (1 - t)), photo).drifted
    assert verdict.judge(video(lambda t: towards(red, red[..., ::-1], t)), photo).drifted


def test_a_video_that_hardly_moves_is_labelled_with_what_to_change(scene: np.ndarray) -> None:
    found = verdict.judge(video(lambda t: scene), scene)
    said = say(*verdict.labels(found, REQUEST, REAL))
    for advice in ("another seed", "lower motion_fps", "higher guidance scale", "1280x704"):
        assert advice in said
    said = say(*verdict.labels(found, REQUEST, DEMO))
    assert '"night falls"' in said
    assert "motion_fps" not in said


@pytest.mark.parametrize("prompt", ["static camera", "a still life", "she stands motionless"])
def test_who_asks_for_stillness_is_not_told_of_it(prompt: str) -> None:
    assert verdict.labels(verdict.Verdict(still=True), REQUEST.model_copy(update={"prompt": prompt}), REAL) == ()


def test_a_small_thing_that_moves_is_motion(scene: np.ndarray) -> None:
    def passing(t: float) -> np.ndarray:
        frame = scene.astype(float)
        left = round(40 * t)
        frame[24:40, left : left + 16] = (250, 10, 10)
        return frame

    assert not verdict.judge(video(passing), scene).still
    assert verdict.judge(video(lambda t: scene), scene).still


# --- sizes


@pytest.mark.parametrize(
    ("width", "height", "frames", "noted", "warned"),
    [
        (1280, 704, 16, False, ""),
        (768, 768, 16, False, ""),
        (512, 512, 16, True, ""),
        (256, 256, 24, True, ""),
        (704, 1280, 16, False, "shape"),
        (128, 128, 16, False, "size"),
        (512, 512, 8, False, "number of frames"),
        (1280, 256, 8, False, "shape and number of frames"),
    ],
)
def test_sizes_far_from_the_training_are_said_for_the_real_model_alone(
    width: int, height: int, frames: int, noted: bool, warned: str
) -> None:
    request = REQUEST.model_copy(update={"width": width, "height": height, "num_frames": frames})
    assert bool(trained_sizes.notes(request, REAL)) == noted
    said = trained_sizes.labels(request, REAL)
    assert len(said) == bool(warned)
    assert all(f"far from the {warned} the model" in say(note) for note in said)
    assert trained_sizes.notes(request, DEMO) == trained_sizes.labels(request, DEMO) == ()


# --- through the engine


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("demo", device="cpu")


CLIP = GenerateRequest(prompt="static camera", width=128, height=128, num_frames=3, steps=2, seed=1)


@pytest.mark.slow
def test_no_word_of_the_demo_model_fails_or_is_labelled(engine: Engine, photo: Image.Image) -> None:
    assert {"fade to black", "night falls", "the scene at sunset"} <= set(engine.info.vocabulary)
    for word in engine.info.vocabulary:
        # the least frames of a public job: frame 0 is left out, and of three that would leave half of a gentle sunset
        request = CLIP.model_copy(update={"prompt": word, "num_frames": 8, "steps": 1})
        assert engine.generate(request, photo).warnings == (), word


@pytest.mark.parametrize("kind", ["grey", "blue", "dark", "flat"])
@pytest.mark.parametrize("word", ["fade to black", "the scene at sunset"])
def test_unusual_photos_pass(engine: Engine, photo: Image.Image, kind: str, word: str) -> None:
    pixels = np.asarray(photo, float)
    unusual = {
        "grey": photo.convert("L").convert("RGB"),
        "blue": Image.fromarray((pixels * np.array([0.25, 0.45, 1.0])).astype(np.uint8)),
        "dark": Image.fromarray((pixels * 0.12).astype(np.uint8)),
        "flat": Image.new("RGB", photo.size, (128, 128, 128)),
    }
    request = CLIP.model_copy(update={"prompt": word})
    assert engine.generate(request, unusual[kind]).frames.shape == (3, 128, 128, 3)


def test_a_still_video_that_was_not_asked_for_is_told_the_models_words(engine: Engine, photo: Image.Image) -> None:
    still = engine.generate(CLIP.model_copy(update={"num_frames": 4}), photo)
    assert still.warnings == ()  # its prompt says static
    said = engine.judge(still.frames, CLIP.model_copy(update={"prompt": "a red dragon"}), fit_image(photo, 128, 128)[0])
    assert any("This model follows" in text and "night falls" in text for text in map(say, said))


def test_a_model_that_gives_grey_fails_the_job_and_a_parity_run_only_compares(photo: Image.Image) -> None:
    grey = Engine.load("demo", device="cpu", conventions="upstream")
    grey.parts.vae.decoder.conv_out.weight.zero_()
    grey.parts.vae.decoder.conv_out.bias.zero_()
    request = CLIP.model_copy(update={"num_frames": 2, "steps": 2, "guidance_scale": 1.0})
    with pytest.raises(InvalidOutput, match="one flat grey"):
        grey.generate(request, photo)
    noise = grey.parts.unet.conv_in.weight.new_ones(1, 4, 2, 32, 32)
    assert len(np.unique(grey.generate(request, photo, noise=noise).frames)) == 1


def test_size_and_labels_reach_the_result(engine: Engine) -> None:
    real = replace(engine, parts=replace(engine.parts, info=replace(engine.info, kind="real", vocabulary=())))
    result = real.generate(CLIP.model_copy(update={"num_frames": 2, "prompt": "a cat"}), draw_photo())
    assert any("far from the size" in say(note) for note in result.warnings)


def test_a_model_of_few_phrases_says_when_a_prompt_holds_none() -> None:
    """A free prompt was taken without a word, and the result looked broken."""
    info = replace(DEMO, vocabulary=("camera zooms in",), phrases=("zooms in", "night"))
    free = replace(info, phrases=())
    for prompt, known in (("A dog runs", False), ("the camera ZOOMS in, slowly", True), ("nightmare", False)):
        request = GenerateRequest(prompt=prompt, width=64, height=64, num_frames=8, steps=10)
        said = verdict.labels(verdict.Verdict(), request, info)
        assert info.knows(prompt) is known
        assert all("camera zooms in" in say(note) for note in said)
        assert bool(said) is not known
        assert verdict.labels(verdict.Verdict(), request, free) == ()
