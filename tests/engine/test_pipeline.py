"""One engine, many requests: seeds, progress, cancelling, notes, memory trouble, broken output."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from i2v.engine import Engine, conditioning, inference, memory
from i2v.engine import engine as engine_module
from i2v.engine.conditioning import PROMPT, TextCache, encode_text
from i2v.engine.interface import Progress
from i2v.engine.unet import fused
from i2v.errors import FatalEngineError, InvalidOutput, InvalidRequest, JobCancelled, OutOfMemory
from i2v.images import fit_image
from i2v.notes import say
from i2v.request import GenerateRequest
from tests.engine.tiny_folder import draw_photo, write_tiny_folder

pytestmark = pytest.mark.slow

SMALL = GenerateRequest(
    prompt="the sun", negative_prompt="", width=64, height=64, num_frames=4, steps=3, guidance_scale=5.0, seed=7
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(write_tiny_folder(tmp_path_factory.mktemp("model") / "tiny"), device="cpu")


@pytest.fixture
def photo() -> Image.Image:
    return draw_photo()


class Failing:
    """A module that raises at chosen calls and is itself otherwise: how a test runs out of memory without a GPU."""

    def __init__(self, inner: Any, error: Callable[[], BaseException], calls: set[int], method: str) -> None:
        self.inner, self.error, self.failing, self.method, self.calls = inner, error, calls, method, 0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        return self._counted(value) if name == self.method else value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._counted(self.inner)(*args, **kwargs)

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls in self.failing:
                raise self.error()
            return call(*args, **kwargs)

        return run


def out_of_memory() -> BaseException:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def with_part(engine: Engine, **parts: Any) -> Engine:
    return replace(engine, parts=replace(engine.parts, **parts))


def test_a_result_has_frames_latents_times_and_the_seed(engine: Engine, photo: Image.Image) -> None:
    result = engine.generate(SMALL, photo)
    assert result.frames.shape == (4, 64, 64, 3)
    assert result.frames.dtype == np.uint8
    assert result.latents.shape == (1, 4, 4, 8, 8)
    assert result.latents.dtype == torch.float32
    assert result.seed == 7
    assert set(result.stage_seconds) == {"encode", "denoise", "decode"}
    assert all(seconds > 0 for seconds in result.stage_seconds.values())
    assert result.peak_memory_mb is not None
    assert result.peak_memory_mb > 50
    assert result.plan


def test_one_seed_gives_one_video_whatever_the_global_random_state(engine: Engine, photo: Image.Image) -> None:
    torch.manual_seed(1)
    first = engine.generate(SMALL, photo)
    torch.manual_seed(2)
    second = engine.generate(SMALL, photo)
    assert torch.equal(first.latents, second.latents)
    assert np.array_equal(first.frames, second.frames)


def test_a_job_leaves_the_global_random_state_alone(engine: Engine, photo: Image.Image) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    engine.generate(SMALL, photo)
    assert torch.equal(torch.rand(1), wanted)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 8},
        {"prompt": "the cat"},
        {"negative_prompt": "the sun in"},
        {"guidance_scale": 6.0},
        {"motion_fps": 4},
        {"steps": 4},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_reaches_the_model(engine: Engine, photo: Image.Image, change: dict[str, Any]) -> None:
    plain = engine.generate(SMALL, photo).latents
    other = engine.generate(SMALL.model_copy(update=change), photo).latents
    assert not torch.allclose(plain, other, atol=1e-4)


def test_the_photo_reaches_the_model_and_the_file_rate_does_not(engine: Engine, photo: Image.Image) -> None:
    plain = engine.generate(SMALL, photo).latents
    assert not torch.allclose(plain, engine.generate(SMALL, photo.rotate(180)).latents, atol=1e-4)
    assert torch.equal(plain, engine.generate(SMALL.model_copy(update={"fps": 24}), photo).latents)


def test_a_job_without_a_seed_reports_the_one_it_drew(engine: Engine, photo: Image.Image) -> None:
    first = engine.generate(SMALL.model_copy(update={"seed": None}), photo)
    again = engine.generate(SMALL.model_copy(update={"seed": first.seed}), photo)
    assert np.array_equal(first.frames, again.frames)


def test_a_given_noise_replaces_the_drawn_one_and_nothing_else(engine: Engine, photo: Image.Image) -> None:
    generator = torch.Generator().manual_seed(7)
    torch.randn(1, 4, 8, 8, generator=generator)  # the VAE's sample comes first
    noise = torch.randn(1, 4, 4, 8, 8, generator=generator)
    given = engine.generate(SMALL, photo, noise=noise)
    assert torch.equal(given.latents, engine.generate(SMALL, photo).latents)


def test_noise_of_another_shape_is_refused(engine: Engine, photo: Image.Image) -> None:
    with pytest.raises(InvalidRequest, match=r"\(1, 4, 4, 8, 8\) is wanted") as caught:
        engine.generate(SMALL, photo, noise=torch.zeros(1, 4, 5, 8, 8))
    assert caught.value.field == "noise"


def test_guidance_scale_one_ignores_the_negative_prompt(engine: Engine, photo: Image.Image) -> None:
    off = SMALL.model_copy(update={"guidance_scale": 1.0})
    plain = engine.generate(off, photo).latents
    assert torch.equal(plain, engine.generate(off.model_copy(update={"negative_prompt": "the cat"}), photo).latents)


@pytest.mark.parametrize(
    ("width", "height", "frames"), [(64, 64, 1), (64, 64, 2), (72, 40, 3), (8, 8, 1), (200, 24, 2), (64, 64, 17)]
)
def test_sizes_in_multiples_of_eight_and_any_frame_count_work(
    engine: Engine, photo: Image.Image, width: int, height: int, frames: int
) -> None:
    change = {"width": width, "height": height, "num_frames": frames, "steps": 1}
    result = engine.generate(SMALL.model_copy(update=change), photo)
    assert result.frames.shape == (frames, height, width, 3)


@pytest.mark.parametrize(
    ("width", "height", "frames"),
    [(1280, 704, 1), (320, 1280, 1), (648, 328, 1), (64, 64, 8), (64, 64, 32)],
    ids=lambda value: str(value),
)
def test_the_whole_range_of_sizes_and_lengths_works_and_the_crop_is_told(
    engine: Engine, photo: Image.Image, width: int, height: int, frames: int
) -> None:
    change = {"width": width, "height": height, "num_frames": frames, "steps": 1, "guidance_scale": 1.0}
    result = engine.generate(SMALL.model_copy(update=change), photo)
    assert result.frames.shape == (frames, height, width, 3)
    _, placement = fit_image(photo, width, height, "crop")
    assert placement.note() in result.notes
    assert "cropped to its middle" in say(placement.note())


def test_a_padded_photo_is_said_to_have_borders(engine: Engine, photo: Image.Image) -> None:
    wide = SMALL.model_copy(update={"width": 128, "height": 32, "steps": 1, "num_frames": 1, "fit": "pad"})
    assert any("given black borders to 128x32" in say(note) for note in engine.generate(wide, photo).notes)


def test_a_vae_of_another_factor_sets_its_own_multiples(tmp_path: Path, photo: Image.Image) -> None:
    engine = Engine.load(write_tiny_folder(tmp_path / "five", vae_levels=5), device="cpu")
    result = engine.generate(SMALL.model_copy(update={"steps": 1}), photo)
    assert result.latents.shape == (1, 4, 4, 4, 4)
    assert result.frames.shape == (4, 64, 64, 3)
    with pytest.raises(InvalidRequest, match="multiples of 16") as caught:
        engine.generate(SMALL.model_copy(update={"height": 72}), photo)
    assert caught.value.field == "height"


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_the_vae_works_channels_last(
    engine: Engine, photo: Image.Image, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and what goes through them, both ways: its convolutions then copy nothing into another layout."""
    vae, seen = engine.parts.vae, []
    original = getattr(vae, way)

    def watched(x: torch.Tensor, **options: Any) -> Any:
        seen.append(x.is_contiguous(memory_format=torch.channels_last))
        return original(x, **options)

    monkeypatch.setattr(vae, way, watched)
    engine.generate(SMALL, photo)
    assert seen == [True]
    kernels = [weight for weight in vae.parameters() if weight.dim() == 4]
    assert kernels
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)


def test_a_card_is_made_ready_where_it_loads_and_current_on_the_thread_of_each_job(
    tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton launches on the thread's current card, and asks that one whether a capture is under way."""
    current: list[tuple[str, torch.device]] = []
    monkeypatch.setattr(
        engine_module, "make_current", lambda device: current.append((threading.current_thread().name, device))
    )
    compiled: list[tuple[Any, torch.device]] = []
    monkeypatch.setattr(fused, "compile_for", lambda unet, device: compiled.append((unet, device)))
    loaded = Engine.load(write_tiny_folder(tmp_path / "tiny"), device="cpu")
    here = threading.current_thread().name
    assert compiled == [(loaded.parts.unet, torch.device("cpu"))]  # so that no step waits for a compiler
    assert current == [(here, torch.device("cpu"))]
    worker = threading.Thread(target=loaded.generate, args=(SMALL, photo), name="worker")
    worker.start()
    worker.join()
    assert current[1:] == [("worker", torch.device("cpu"))]


def test_progress_counts_every_step_once_and_in_order(engine: Engine, photo: Image.Image) -> None:
    seen: list[Progress] = []
    engine.generate(SMALL, photo, on_step=seen.append)
    assert [(p.step, p.steps) for p in seen if p.stage == "denoise"] == [(1, 3), (2, 3), (3, 3)]
    stages = [p.stage for p in seen]
    assert stages == sorted(stages, key=["encode", "denoise", "decode"].index)
    assert [p.step for p in seen if p.stage == "decode"] == [0, 1]  # named before its first chunk is done
    assert all(p.preview is not None for p in seen if p.stage == "denoise")


def test_encoding_is_reported_when_the_device_has_done_it(
    engine: Engine, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    monkeypatch.setattr(inference, "wait", lambda device: log.append("waited"))
    engine.generate(SMALL, photo, on_step=lambda progress: log.append(progress.stage))
    assert log[:3] == ["waited", "encode", "denoise"]


def test_a_preview_is_a_small_picture_of_the_latents_size(engine: Engine, photo: Image.Image) -> None:
    previews = []

    def look(progress: Progress) -> None:
        if progress.preview is not None:
            previews.append(progress.preview())

    engine.generate(SMALL.model_copy(update={"height": 48}), photo, on_step=look)
    assert [p.shape for p in previews] == [(6, 8, 3)] * 3
    assert all(p.dtype == np.uint8 for p in previews)


@pytest.mark.parametrize(("stage", "step"), [("encode", 1), ("denoise", 1), ("denoise", 3), ("decode", 1)])
def test_an_exception_from_the_callback_stops_the_job_there(
    engine: Engine, photo: Image.Image, stage: str, step: int
) -> None:
    seen: list[tuple[str, int]] = []

    def cancel(progress: Progress) -> None:
        seen.append((progress.stage, progress.step))
        if (progress.stage, progress.step) == (stage, step):
            raise JobCancelled("cancelled by the test")

    before = engine.generate(SMALL, photo)
    with pytest.raises(JobCancelled):
        engine.generate(SMALL, photo, on_step=cancel)
    assert seen[-1] == (stage, step)
    assert torch.equal(engine.generate(SMALL, photo).latents, before.latents)


def test_a_long_prompt_is_cut_and_the_result_says_so(engine: Engine, photo: Image.Image) -> None:
    long = SMALL.model_copy(update={"prompt": "the sun at noon, " * 20})
    assert any("tokens long; the model reads 77" in say(note) for note in engine.generate(long, photo).notes)
    assert not any("tokens" in say(note) for note in engine.generate(SMALL, photo).notes)


def test_guidance_outside_the_models_range_is_kept_inside_and_said(engine: Engine, photo: Image.Image) -> None:
    info = replace(engine.parts.info, guidance_range=(1.0, 2.0))
    narrow = with_part(engine, info=info)
    result = narrow.generate(SMALL.model_copy(update={"guidance_scale": 9.0}), photo)
    assert result.guidance_scale == 2.0
    assert "Guidance scale 9 was set to 2; this model works from 1 to 2." in map(say, result.notes)
    same = engine.generate(SMALL.model_copy(update={"guidance_scale": 2.0}), photo)
    assert torch.equal(result.latents, same.latents)
    assert not any("Guidance" in say(note) for note in same.notes)


@pytest.mark.parametrize("preset", ["fast", "turbo"])
def test_an_approximate_preset_says_what_it_does_and_a_long_one_takes_fewer_steps(
    engine: Engine, photo: Image.Image, preset: str
) -> None:
    seen: list[Progress] = []
    request = SMALL.model_copy(update={"preset": preset, "steps": 40, "num_frames": 1, "width": 32, "height": 32})
    result = engine.generate(request, photo, on_step=seen.append)
    taken = sum(p.stage == "denoise" for p in seen)
    assert taken < 40
    said = [text for text in map(say, result.notes) if text.startswith(f"Preset {preset}: ")]
    assert len(said) == 1
    assert f"in {taken} steps" in said[0]


def test_memory_is_planned_for_the_guidance_that_a_job_will_have(engine: Engine) -> None:
    """It was planned for the one asked for, which the model's range may take away."""
    without = with_part(engine, info=replace(engine.parts.info, guidance_range=(1.0, 1.0)))
    asked = SMALL.model_copy(update={"num_frames": 64})  # so many that sampling needs more than decoding
    off = asked.model_copy(update={"guidance_scale": 1.0})
    assert engine.memory_need(asked).needed > engine.memory_need(off).needed
    assert without.memory_need(asked).needed == engine.memory_need(off).needed


# --- prompts that were encoded before


class Counted:
    """A text encoder that counts its calls."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.calls = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.inner(*args, **kwargs)


def counted(engine: Engine) -> tuple[Engine, Counted]:
    encoder = Counted(engine.parts.text_encoder)
    return replace(with_part(engine, text_encoder=encoder), texts=TextCache(most=3)), encoder


def test_a_prompt_is_encoded_once_for_many_seeds_and_gives_the_same_video(engine: Engine, photo: Image.Image) -> None:
    watched, encoder = counted(engine)
    for seed in (7, 8):
        request = SMALL.model_copy(update={"seed": seed})
        assert torch.equal(watched.generate(request, photo).latents, engine.generate(request, photo).latents)
    assert encoder.calls == 2  # the prompt and the negative one
    watched.generate(SMALL.model_copy(update={"prompt": "the cat"}), photo)
    assert encoder.calls == 3
    watched.generate(SMALL.model_copy(update={"prompt": "  the cat "}), photo)
    assert encoder.calls == 3  # the same tokens


def test_another_padding_is_another_embedding_few_are_kept_and_none_after_closing(
    engine: Engine, photo: Image.Image
) -> None:
    watched, encoder = counted(engine)
    watched.generate(SMALL, photo)
    padded = replace(watched, conventions=replace(watched.conventions, pad_token_id=5))
    padded.generate(SMALL, photo)
    assert encoder.calls == 4
    assert len(watched.texts.kept) == 3  # the oldest has gone
    texts = Engine.of(engine.parts, engine.device, engine.conventions).texts
    assert not texts.kept


def test_offloaded_weights_are_not_brought_for_a_prompt_that_is_known(engine: Engine) -> None:
    brought: list[Any] = []

    def using(module: Any) -> Any:
        brought.append(module)
        return nullcontext()

    texts, cpu = TextCache(), torch.device("cpu")
    for _ in range(2):
        encode_text(engine.parts, "the sun", engine.conventions, cpu, PROMPT, using, texts)
    assert brought == [engine.parts.text_encoder]


# --- memory trouble


@pytest.mark.parametrize("failing_call", [1, 2, 3])
def test_out_of_memory_in_a_step_is_answered_once_with_a_lighter_plan(
    engine: Engine, photo: Image.Image, failing_call: int
) -> None:
    short = with_part(engine, unet=Failing(engine.parts.unet, out_of_memory, {failing_call}, "step"))
    result = short.generate(SMALL, photo)
    assert torch.allclose(result.latents, engine.generate(SMALL, photo).latents, atol=1e-4)
    assert any("Ran out of memory once" in say(note) for note in result.notes)
    assert result.plan != engine.generate(SMALL, photo).plan


def test_out_of_memory_goes_on_down_the_ladder_until_a_plan_holds(engine: Engine, photo: Image.Image) -> None:
    """It once tried a single lighter plan, and the job failed where the one after would have done."""
    short = with_part(engine, unet=Failing(engine.parts.unet, out_of_memory, {2, 3}, "step"))
    result = short.generate(SMALL, photo)
    assert torch.allclose(result.latents, engine.generate(SMALL, photo).latents, atol=1e-4)
    assert result.plan is not None
    assert "two guidance passes, feed-forward in 4" in say(result.plan)
    assert any("Ran out of memory 2 times; this part was done again with" in say(note) for note in result.notes)


def test_a_job_fits_its_photo_once_and_chooses_one_plan_even_when_memory_ran_out(
    engine: Engine, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The photo was fitted again at each try and for the result check; the plan was chosen twice."""
    short = with_part(engine, unet=Failing(engine.parts.unet, out_of_memory, {1}, "step"))
    calls: list[str] = []

    def count(module: Any, name: str) -> None:
        inner = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: (calls.append(name), inner(*a, **k))[1])

    count(conditioning, "fit_image")
    count(memory, "choose_plan")
    count(memory, "shape_of")
    short.generate(SMALL, photo)
    assert calls == ["choose_plan", "fit_image"]  # a square video's picture is CLIP's too
    short.generate(SMALL.model_copy(update={"width": 96}), photo)
    assert calls[2:] == ["choose_plan", "fit_image", "fit_image"]


def test_where_every_plan_runs_out_the_job_fails_and_the_next_one_runs(engine: Engine, photo: Image.Image) -> None:
    """A CPU has three plans for sampling: weights have nowhere else to wait."""
    unet = Failing(engine.parts.unet, out_of_memory, {2, 3, 4}, "step")
    short = with_part(engine, unet=unet)
    with pytest.raises(OutOfMemory, match="64x64 with 4 frames would fit") as caught:
        short.generate(SMALL, photo)
    assert unet.calls == 4
    assert caught.value.retry_after is not None
    assert torch.equal(short.generate(SMALL, photo).latents, engine.generate(SMALL, photo).latents)


def test_the_error_that_ran_out_of_memory_holds_no_tensors(engine: Engine, photo: Image.Image) -> None:
    """A traceback keeps its frames, their tensors and the memory alive: nothing of it may hang on the error."""
    short = with_part(engine, unet=Failing(engine.parts.unet, out_of_memory, {1, 2, 3}, "step"))
    with pytest.raises(OutOfMemory) as caught:
        short.generate(SMALL, photo)
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


def test_out_of_memory_in_decode_keeps_the_denoised_latents(engine: Engine, photo: Image.Image) -> None:
    unet = Failing(engine.parts.unet, out_of_memory, set(), "step")
    vae = Failing(engine.parts.vae, out_of_memory, {1}, "decode")
    seen: list[Progress] = []
    result = with_part(engine, unet=unet, vae=vae).generate(SMALL, photo, on_step=seen.append)
    assert unet.calls == SMALL.steps  # nothing was sampled again
    frames = engine.generate(SMALL, photo).frames
    assert np.abs(result.frames.astype(int) - frames).max() <= 1  # another chunk, another rounding
    decoded = [(p.step, p.steps) for p in seen if p.stage == "decode"]
    assert decoded == [(0, 1), (0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert any("Ran out of memory once" in say(note) for note in result.notes)


def test_a_lost_gpu_is_a_fatal_error_and_not_tried_again(engine: Engine, photo: Image.Image) -> None:
    unet = Failing(
        engine.parts.unet,
        lambda: torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        {2},
        "step",
    )
    with pytest.raises(FatalEngineError):
        with_part(engine, unet=unet).generate(SMALL, photo)
    assert unet.calls == 2


def test_any_other_error_is_raised_as_it_is(engine: Engine, photo: Image.Image) -> None:
    unet = Failing(engine.parts.unet, lambda: KeyError("a defect"), {1}, "step")
    with pytest.raises(KeyError, match="a defect"):
        with_part(engine, unet=unet).generate(SMALL, photo)


# --- broken output


def broken_copy(engine: Engine, folder: Path, part: str, name: str, value: float) -> Engine:
    broken = Engine.load(write_tiny_folder(folder / "broken"), device="cpu")
    with torch.no_grad():
        getattr(broken.parts, part).get_parameter(name).fill_(value)
    return broken


@pytest.mark.parametrize(("part", "name"), [("unet", "conv_out.bias"), ("vae", "decoder.conv_out.bias")])
def test_numbers_that_are_not_finite_fail_the_job(
    engine: Engine, photo: Image.Image, tmp_path: Path, part: str, name: str
) -> None:
    with pytest.raises(InvalidOutput, match="not finite"):
        broken_copy(engine, tmp_path, part, name, float("nan")).generate(SMALL, photo)


def test_an_all_black_video_fails_the_job_unless_the_photo_is_black(
    engine: Engine, photo: Image.Image, tmp_path: Path
) -> None:
    black = broken_copy(engine, tmp_path, "vae", "decoder.conv_out.bias", -100.0)
    with pytest.raises(InvalidOutput, match="black"):
        black.generate(SMALL, photo)
    result = black.generate(SMALL, Image.new("RGB", (80, 80)))
    assert result.frames.max() == 0
