"""The memory model against counted tensors, and the choice of a plan."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from i2v.engine import memory, source, weights
from i2v.engine.memory import GIB, MemoryBudget, Plan, Shape
from i2v.engine.unet.model import DeepCache, I2VGenXLUNet
from i2v.errors import DoesNotFit
from i2v.request import GenerateRequest
from tests.engine import full_size
from tests.engine.accounting import Accountant, FusedAttention

pytestmark = pytest.mark.slow

# The published model in float16.
FULL = Shape(
    weights={
        "unet": 2_840_938_448,
        "vae": 167_307_726,
        "text_encoder": 705_968_128,
        "image_encoder": 1_264_153_600,
    },
    largest_group=855_080_960,
    all_groups=2_807_157_120,
    width=320,
    inner=512,
    vae_width=256,
)


def job(width: int = 512, height: int = 512, frames: int = 16, guidance: float = 9.0) -> GenerateRequest:
    return GenerateRequest(prompt="a", width=width, height=height, num_frames=frames, guidance_scale=guidance, steps=50)


def card(gigabytes: float) -> MemoryBudget:
    return MemoryBudget(total=int(gigabytes * GIB), available=int(gigabytes * GIB))


# --- the model against counting


def counted_step(unet: I2VGenXLUNet, request: GenerateRequest, plan: Plan) -> int:
    """Bytes that one UNet call holds, its request state included, counted on the meta device."""
    like = {"device": "meta", "dtype": unet.dtype}
    wide = unet.config.cross_attention_dim
    shape = (1, 4, request.num_frames, request.height // 8, request.width // 8)
    guided = request.guidance_scale > 1.0
    with torch.no_grad(), FusedAttention():
        state = unet.begin(
            torch.empty(2, 77, wide, **like),
            torch.empty(2, wide, **like),
            torch.empty(shape, **like),
            16.0,
            torch.arange(request.steps, device="meta"),
            ff_chunks=plan.ff_chunks,
            guidance_passes=plan.guidance_passes,
        )
        held = state.image_term.untyped_storage().nbytes()
        accountant = Accountant(unet)  # only now: the first `begin` gives the weights other storages
        with accountant:
            unet.step(state, torch.empty(shape, device="meta"), 0, guided=guided)
    return accountant.peak + held


@pytest.fixture(scope="module")
def full_unet() -> I2VGenXLUNet:
    with torch.device("meta"):
        return I2VGenXLUNet.from_config({}).half()


@pytest.mark.parametrize(
    ("request_", "plan"),
    [
        (job(), Plan()),
        (job(), Plan(ff_chunks=4)),
        (job(), Plan(ff_chunks=4, guidance_passes=2)),
        (job(guidance=1.0), Plan()),
        (job(1280, 704, 16), Plan(ff_chunks=4)),
        (job(256, 256, 8), Plan()),
    ],
    ids=("standard", "chunked", "two passes", "unguided", "1280x704", "256x256"),
)
def test_predicted_activations_are_those_counted_and_never_less(
    full_unet: I2VGenXLUNet, request_: GenerateRequest, plan: Plan
) -> None:
    counted = counted_step(full_unet, request_, plan)
    predicted = memory.denoise_activations(FULL, request_, plan)

    assert 1.0 <= predicted / counted <= 1.25


def test_the_demo_models_activations_are_not_underestimated() -> None:
    config = json.loads((source.DEMO_FOLDER / "unet" / "config.json").read_text())
    with torch.device("meta"):
        unet = I2VGenXLUNet.from_config(config)
    width, heads = config["block_out_channels"][0], 8  # transformer_in's heads
    shape = replace(
        FULL, width=width, inner=heads * config["attention_head_dim"], unet_bytes=4, largest_group=10_000_000
    )
    for plan in (Plan(), memory.LOW_VRAM):
        counted = counted_step(unet, job(256, 256), plan)
        assert 1.0 <= memory.denoise_activations(shape, job(256, 256), plan) / counted <= 2.0


@pytest.mark.parametrize("branch", [0, 1, 2])
def test_deep_features_that_a_preset_keeps_are_counted(full_unet: I2VGenXLUNet, branch: int) -> None:
    request, cache = job(256, 256).model_copy(update={"preset": "turbo"}), DeepCache(branch)
    like = {"device": "meta", "dtype": full_unet.dtype}
    images = torch.empty(1, 4, request.num_frames, 32, 32, **like)
    with FusedAttention():
        state = full_unet.begin(
            torch.empty(2, 77, 1024, **like), torch.empty(2, 1, 1024, **like), images, 16, torch.arange(2)
        )
        full_unet.step(state, images, 0, cache=cache)
    assert cache.deep is not None
    plain, caching = FULL, replace(FULL, caching=frozenset({"turbo"}))
    counted = memory.denoise_activations(caching, request, Plan()) - memory.denoise_activations(plain, request, Plan())
    assert 0 < cache.deep.nbytes <= counted + 1
    assert memory.predict(caching, job(), Plan()) == memory.predict(plain, job(), Plan())


@pytest.mark.parametrize(("width", "height", "gibibytes"), [(512, 512, 0.38), (768, 768, 0.84), (1280, 704, 1.29)])
@pytest.mark.parametrize("chunk", [1, 4])
def test_predicted_decoding_is_what_the_published_vae_takes(
    width: int, height: int, gibibytes: float, chunk: int
) -> None:
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(full_size.VAE).half()
    latents = torch.empty(chunk, 4, height // 8, width // 8, device="meta", dtype=torch.float16)
    accountant = Accountant(vae)
    with torch.no_grad(), FusedAttention(), accountant:
        vae.decode(latents)

    predicted = memory.decode_activations(FULL, job(width, height), Plan(decode_chunk=chunk))

    assert 1.0 <= predicted / accountant.peak <= 1.2
    assert accountant.peak / chunk / GIB == pytest.approx(gibibytes, rel=0.03)


def test_the_standard_job_fits_where_it_was_counted_to_fit() -> None:
    """All resident, 512x512 and 16 frames: about 4.7 GiB of weights and under 2 GiB of activations."""
    need = memory.predict(FULL, job(), Plan())

    assert 6.0 * GIB < need.peak < 7.5 * GIB


def test_the_published_models_numbers_are_those_of_its_configs(full_unet: I2VGenXLUNet) -> None:
    with torch.device("meta"):
        parts = SimpleNamespace(
            unet=full_unet,
            vae=AutoencoderKL.from_config(full_size.VAE).half(),
            text_encoder=CLIPTextModel(CLIPTextConfig(**full_size.TEXT)).half(),
            image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(**full_size.VISION)).half(),
        )

    assert memory.shape_of(parts) == FULL


def test_the_numbers_of_a_model_are_read_off_its_parts() -> None:
    parts = weights.load_parts(source.open_folder(source.DEMO_FOLDER), torch.device("cpu"), torch.float32)

    shape = memory.shape_of(parts)

    assert (shape.width, shape.inner, shape.vae_width, shape.factor) == (24, 128, 64, 4)
    assert (shape.unet_bytes, shape.vae_bytes) == (4, 4)
    assert shape.weights["unet"] == 4 * 2_957_824
    assert 0 < shape.largest_group < shape.weights["unet"]


# --- choosing


def test_every_rung_needs_no_more_and_the_last_needs_less() -> None:
    rungs = list(memory.rungs(Plan()))
    peaks = [memory.predict(FULL, job(1280, 704, 32), plan).peak for plan in rungs]

    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) >= len(peaks) - 1  # the first rung, decoding, is not this job's peak
    assert peaks[-1] < peaks[0] / 2
    assert [plan.offload for plan in rungs][-2:] == ["model", "group"]
    assert memory.ladder(rungs[-1]) is None


def test_a_large_card_takes_the_first_plan_and_small_ones_later_plans() -> None:
    chosen = [memory.choose_plan(FULL, job(), card(size)) for size in (80, 8, 6, 5)]

    assert chosen[0] == Plan()
    places = [list(memory.rungs(Plan())).index(plan) for plan in chosen]
    assert places == sorted(places)
    assert places[-1] > 0
    assert all(
        memory.predict(FULL, job(), plan).peak <= card(size).usable
        for plan, size in zip(chosen, (80, 8, 6, 5), strict=True)
    )


def test_resident_mode_never_offloads_and_low_vram_always_does() -> None:
    assert memory.choose_plan(FULL, job(), card(80), "low-vram") == memory.LOW_VRAM
    with pytest.raises(DoesNotFit):
        memory.choose_plan(FULL, job(), card(5), "resident")
    assert memory.choose_plan(FULL, job(), card(5)).offload != "none"


def test_a_cpu_is_never_given_an_offload() -> None:
    with pytest.raises(DoesNotFit):
        memory.choose_plan(FULL, job(), card(5), offloads=False)
    assert memory.choose_plan(FULL, job(), card(32), "low-vram", offloads=False).offload == "none"


def test_what_cannot_fit_is_refused_with_fewer_frames_when_those_fit() -> None:
    with pytest.raises(
        DoesNotFit, match=r"1280x704 with 32 frames needs about .* largest that fits is 1280x704"
    ) as told:
        memory.choose_plan(FULL, job(1280, 704, 32), card(6))

    largest = told.value.largest
    assert told.value.field == "num_frames"
    assert (largest["width"], largest["height"]) == (1280, 704)
    assert 8 <= largest["num_frames"] < 32
    memory.choose_plan(FULL, job(1280, 704, largest["num_frames"]), card(6))
    with pytest.raises(DoesNotFit):
        memory.choose_plan(FULL, job(1280, 704, largest["num_frames"] + 1), card(6))


def test_what_cannot_fit_with_any_frames_is_refused_with_a_smaller_size_of_the_same_shape() -> None:
    with pytest.raises(DoesNotFit) as told:
        memory.choose_plan(FULL, job(1280, 704, 16), card(3.5))

    largest = told.value.largest
    assert told.value.field == "width"
    assert largest["width"] < 1280
    assert largest["width"] % 8 == largest["height"] % 8 == 0
    assert largest["width"] / largest["height"] == pytest.approx(1280 / 704, rel=0.05)
    memory.choose_plan(FULL, job(**{"frames" if k == "num_frames" else k: v for k, v in largest.items()}), card(3.5))


def test_a_card_too_small_for_anything_is_told_so() -> None:
    with pytest.raises(DoesNotFit, match="no job of this shape fits") as told:
        memory.choose_plan(FULL, job(), card(1))
    assert told.value.largest is None


@given(
    width=st.integers(8, 160).map(lambda n: 8 * n),
    height=st.integers(8, 160).map(lambda n: 8 * n),
    frames=st.integers(1, 32),
    size=st.floats(1, 100),
)
def test_whatever_is_named_as_the_largest_fits(width: int, height: int, frames: int, size: float) -> None:
    largest = memory.largest_that_fits(FULL, job(width, height, frames), card(size))

    if largest is not None:
        named = job(largest["width"], largest["height"], largest["num_frames"])
        memory.choose_plan(FULL, named, card(size))
        assert named.num_frames <= frames


def test_low_vram_goes_down_to_group_offload_on_the_smallest_cards() -> None:
    """1280x704 with 32 frames: model offload holds the UNet and all activations, group offload one after the other."""
    model, group = memory.rungs(memory.LOW_VRAM)
    assert (model.offload, group.offload) == ("model", "group")
    request = job(1280, 704, 32)
    large, small = (memory.predict(FULL, request, plan).peak for plan in (model, group))
    assert small < large - GIB
    between = MemoryBudget(
        total=80 * GIB, available=int((large + small) / 2 / (1 - memory.MARGIN)) + memory.MARGIN_BYTES
    )
    assert memory.choose_plan(FULL, request, between, "low-vram") == group
