"""Our UNet as a whole gives what diffusers' gives, and its faster paths give what its plain path gives."""

import copy
import dataclasses
import json
from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

import i2v
from i2v.engine.unet.model import DeepCache, I2VGenXLUNet, UNetConfig
from tests.engine.unet.unet_pairs import CONFIGS, DEMO, ONE_LEVEL, PUBLISHED, difference, inputs, own, upstream

LIMIT = 1e-5
SIZES = ((1, 8, 8), (2, 5, 7), (5, 9, 8), (8, 6, 10), (16, 4, 4))  # frames, height, width of the latents
DEMO_FOLDER = i2v.__path__[0] + "/demo/model/unet"


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS.keys())
def pair(request):
    reference = upstream(request.param)
    return request.param, reference, own(reference)


@pytest.fixture(scope="module")
def published():
    reference = upstream(PUBLISHED)
    return PUBLISHED, reference, own(reference)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_guided_step_equals_diffusers(pair, size):
    config, reference, unet = pair
    job = inputs(config, *size)
    result = unet.step(job.begin(unet), job.latents, 1)
    assert difference(result, job.upstream(reference)) <= LIMIT


def test_a_step_without_guidance_equals_diffusers(pair):
    config, reference, unet = pair
    job = inputs(config, 3, 6, 5, rows=1)
    assert difference(unet.step(job.begin(unet), job.latents, 2), job.upstream(reference, 2)) <= LIMIT


def test_each_timestep_of_the_request_has_its_own_embedding(published):
    config, reference, unet = published
    job = inputs(config, 2, 4, 4)
    state = job.begin(unet)
    results = [unet.step(state, job.latents, index) for index in range(3)]
    for index, result in enumerate(results):
        assert difference(result, job.upstream(reference, index)) <= LIMIT
    assert difference(results[0], results[1]) > 100 * LIMIT


def test_a_step_takes_its_index_as_a_tensor_too(published):
    """A captured graph replays one call for all steps: the index must be data."""
    config, _, unet = published
    job = inputs(config, 2, 4, 4)
    state = job.begin(unet)
    assert torch.equal(unet.step(state, job.latents, torch.tensor(2)), unet.step(state, job.latents, 2))


def test_the_shared_prefix_equals_the_plain_path(pair):
    """Two equal rows of latents run both halves from the start; one row runs the common part once."""
    config, _, unet = pair
    job = inputs(config, 4, 6, 7)
    state = job.begin(unet)
    plain = unet.step(state, job.latents.expand(2, -1, -1, -1, -1), 1)
    assert difference(unet.step(state, job.latents, 1), plain) <= LIMIT


def test_the_conditional_half_alone_equals_the_second_row(pair):
    config, _, unet = pair
    job = inputs(config, 4, 6, 7)
    state = job.begin(unet)
    assert difference(unet.step(state, job.latents, 1, guided=False), unet.step(state, job.latents, 1)[1:]) <= LIMIT


@pytest.mark.parametrize(("ff_chunks", "guidance_passes"), [(2, 1), (7, 1), (1, 2), (8, 2)])
def test_memory_plans_do_not_change_the_result(pair, ff_chunks, guidance_passes):
    config, _, unet = pair
    job = inputs(config, 3, 5, 7)
    light = job.begin(unet, ff_chunks=ff_chunks, guidance_passes=guidance_passes)
    expected = unet.step(job.begin(unet), job.latents, 1)
    assert difference(unet.step(light, job.latents, 1), expected) <= LIMIT


def test_the_call_with_diffusers_arguments_equals_diffusers(published):
    config, reference, unet = published
    job = inputs(config, 2, 6, 5)
    rows = [x.expand(2, -1, -1, -1, -1) for x in (job.latents, job.image_latents)]
    fps, time = torch.tensor([16, 16]), torch.tensor(501)
    result = unet(rows[0], time, fps, rows[1], job.image_embeddings, job.text)
    assert difference(result, job.upstream(reference)) <= LIMIT
    with pytest.raises(ValueError, match="one timestep and one fps"):
        unet(rows[0], time, torch.tensor([8, 16]), rows[1], job.image_embeddings, job.text)


def test_the_image_concat_scale_multiplies_the_image_branch_alone(published):
    """Doubling the branch equals doubling conv_in's weights for it, as the model's authors' code in effect does."""
    config, reference, unet = published
    doubled = copy.deepcopy(reference)
    doubled.conv_in.weight[:, 4:] *= 2
    job = inputs(config, 2, 6, 5)
    result = unet.step(job.begin(unet, image_concat_scale=2.0), job.latents, 1)
    assert difference(result, job.upstream(doubled)) <= LIMIT
    assert difference(result, job.upstream(reference)) > 100 * LIMIT


@pytest.mark.slow
def test_every_weight_outside_the_levels_takes_part():
    """A comparison that a broken weight passes proves nothing: each parameter, changed alone, is noticed.

    The layers inside the levels are broken one by one in test_unet_blocks.py.
    """
    config = ONE_LEVEL | {"layers_per_block": 1, "block_out_channels": (8,), "attention_head_dim": 4}
    reference = upstream(config)
    job = inputs(config, 3, 3, 2)
    expected = job.upstream(reference)
    unet = own(reference)
    unnoticed = []
    for name, weight in unet.named_parameters():
        if name.startswith(("down_blocks", "mid_block", "up_blocks")):
            continue
        kept = weight.clone()
        weight.add_(0.3 * torch.randn_like(weight))
        if difference(unet.step(job.begin(unet), job.latents, 1), expected) <= LIMIT:
            unnoticed.append(name)
        weight.copy_(kept)
    assert not unnoticed
    assert difference(unet.step(job.begin(unet), job.latents, 1), expected) <= LIMIT


def test_a_step_does_not_change_its_inputs(pair):
    config, _, unet = pair
    job = inputs(config, 3, 5, 7)
    state = job.begin(unet)
    before = copy.deepcopy((state, job))
    first = unet.step(state, job.latents, 1)
    assert torch.equal(unet.step(state, job.latents, 1), first)
    for old, new in zip(before, (state, job), strict=True):
        for field in dataclasses.fields(old):
            torch.testing.assert_close(getattr(new, field.name), getattr(old, field.name), rtol=0, atol=0)


@pytest.mark.parametrize("branch", [0, 1, 2])
def test_a_cache_refreshed_at_every_step_changes_nothing(published, branch):
    config, _, unet = published
    job = inputs(config, 2, 6, 5)
    state, cache = job.begin(unet), DeepCache(branch)
    expected = unet.step(state, job.latents, 1)
    assert torch.equal(unet.step(state, job.latents, 1, cache=cache), expected)
    # The deep features of the same latents and timestep are the ones a full step computes.
    assert difference(unet.step(state, job.latents, 1, cache=cache, refresh=False), expected) <= LIMIT


def test_a_reused_cache_is_near_but_not_equal_and_a_deeper_branch_is_nearer(published):
    config, _, unet = published
    job = inputs(config, 2, 6, 5)
    state = job.begin(unet)
    moved = job.latents + 0.05 * torch.randn(job.latents.shape, generator=torch.Generator().manual_seed(3))
    expected = unet.step(state, moved, 1)
    errors = []
    for branch in (0, 2):
        cache = DeepCache(branch)
        unet.step(state, job.latents, 1, cache=cache)
        errors.append(difference(unet.step(state, moved, 1, cache=cache, refresh=False), expected))
    assert 0.1 > errors[0] > errors[1] > LIMIT


def test_a_guided_cache_serves_an_unguided_step_but_not_the_other_way_round(published):
    config, _, unet = published
    job = inputs(config, 2, 6, 5)
    state, cache = job.begin(unet), DeepCache(1)
    expected = unet.step(state, job.latents, 1, cache=cache)[1:]
    assert difference(unet.step(state, job.latents, 1, guided=False, cache=cache, refresh=False), expected) <= LIMIT
    unet.step(state, job.latents, 1, guided=False, cache=cache)
    with pytest.raises(ValueError, match="must refresh it"):
        unet.step(state, job.latents, 1, cache=cache, refresh=False)


def test_a_cache_works_with_two_guidance_passes(published):
    config, _, unet = published
    job = inputs(config, 2, 6, 5)
    state, cache = job.begin(unet, guidance_passes=2), DeepCache(1)
    expected = unet.step(state, job.latents, 1, cache=cache)
    assert difference(unet.step(state, job.latents, 1, cache=cache, refresh=False), expected) <= LIMIT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_fp32(published, dtype):
    config, _, unet = published
    job = inputs(config, 2, 6, 5)
    half = copy.deepcopy(unet).to(dtype)
    result = half.step(job.begin(half), job.latents, 1)
    assert result.dtype == dtype
    assert difference(result.float(), unet.step(job.begin(unet), job.latents, 1)) < 0.05


def test_layers_that_add_exactly_nothing_are_left_out_and_found_again_after_a_load(published):
    config, reference, _ = published
    idle = copy.deepcopy(reference)
    name = "down_blocks.0.temp_convs.0"
    last = idle.get_submodule(name).conv4[-1]
    last.weight.zero_()
    last.bias.zero_()
    unet, job = own(idle), inputs(config, 3, 4, 4)
    assert difference(unet.step(job.begin(unet), job.latents, 1), job.upstream(idle)) <= LIMIT
    assert unet.get_submodule(name).identity
    unet.load_state_dict(reference.state_dict())
    assert difference(unet.step(job.begin(unet), job.latents, 1), job.upstream(reference)) <= LIMIT
    assert not unet.get_submodule(name).identity


class Operations(TorchDispatchMode):
    """How many operations ran."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += 1
        return operation(*args, **(kwargs or {}))


LAST_LAYERS = ("conv2", "conv4.3", "attn1.to_out.0", "attn2.to_out.0", "ff.net.2", "proj_out")


@pytest.mark.parametrize("last", LAST_LAYERS)
@pytest.mark.slow
def test_leaving_out_what_ends_in_zero_gives_the_same_to_the_bit(published, last):
    """Also where no cross-attention adds anything any more: the guidance halves part there all the same."""
    config, reference, _ = published
    idle = copy.deepcopy(reference)
    for name, layer in idle.named_modules():
        if name.endswith(f".{last}"):
            for parameter in layer.parameters():
                parameter.zero_()
    unet, job = own(idle), inputs(config, 3, 4, 5)
    state = job.begin(unet)
    with Operations() as fewer:
        result = unet.step(state, job.latents, 1)
    alone = unet.step(state, job.latents, 1, guided=False)
    for module in unet.modules():
        if hasattr(module, "acts"):
            module.acts = True
        if hasattr(module, "identity"):
            module.identity = False
    with Operations() as all_of_them:
        assert torch.equal(unet.step(state, job.latents, 1), result)
    assert torch.equal(unet.step(state, job.latents, 1, guided=False), alone)
    assert fewer.count < all_of_them.count
    assert difference(result, job.upstream(idle)) <= LIMIT


# --- building and loading


def test_the_published_config_has_the_published_number_of_parameters():
    with torch.device("meta"):
        unet = I2VGenXLUNet(UNetConfig())
    assert sum(p.numel() for p in unet.parameters()) == 1_420_469_224


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_names_and_shapes_are_those_of_diffusers(config):
    reference = upstream(config)
    with torch.device("meta"):
        unet = I2VGenXLUNet.from_config(dict(reference.config))
    shapes = {name: tensor.shape for name, tensor in reference.state_dict().items()}
    assert {name: tensor.shape for name, tensor in unet.state_dict().items()} == shapes


def test_a_module_built_on_the_meta_device_takes_the_loaded_tensors_as_they_are():
    reference = upstream(DEMO)
    with torch.device("meta"):
        unet = I2VGenXLUNet.from_config(dict(reference.config))
    unet.load_state_dict(reference.state_dict(), assign=True)
    job = inputs(DEMO, 2, 6, 5)
    expected = job.upstream(reference)
    assert difference(unet.step(job.begin(unet), job.latents, 1), expected) <= LIMIT
    assert difference(job.upstream(reference), expected) == 0  # the loader's own tensors were not rearranged


def test_arranged_weights_are_saved_under_the_same_names_and_values():
    reference = upstream(DEMO)
    unet = own(reference)
    inputs(DEMO, 1, 4, 4).begin(unet)
    saved = unet.state_dict()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(saved[name], tensor), name


def test_loading_is_strict(published):
    _, reference, unet = published
    state = reference.state_dict()
    short = {name: tensor for name, tensor in state.items() if name != "conv_out.bias"}
    for wrong in (short, state | {"extra.weight": torch.zeros(1)}, state | {"conv_out.bias": torch.zeros(7)}):
        with pytest.raises(RuntimeError, match=r"conv_out\.bias|extra\.weight"):
            copy.deepcopy(unet).load_state_dict(wrong)


def test_the_shipped_demo_model_equals_diffusers():
    with open(f"{DEMO_FOLDER}/config.json") as file:
        config = json.load(file)
    state = load_file(f"{DEMO_FOLDER}/diffusion_pytorch_model.safetensors")
    shape = {key: value for key, value in config.items() if not key.startswith("_")}
    reference = upstream(shape)
    reference.load_state_dict(state)
    unet = I2VGenXLUNet.from_config(config)
    unet.load_state_dict(state)
    job = inputs(shape, 4, 10, 9)
    # beside constants of 1000, which its wiring needs, float32 leaves about 1e-5
    assert difference(unet.step(job.begin(unet), job.latents, 1), job.upstream(reference)) <= 10 * LIMIT


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"down_block_types": ["DownBlock3D"]}, "4 levels"),
        ({"down_block_types": ["DownBlock2D"] * 4}, "DownBlock2D"),
        ({"attention_head_dim": [8, 8, 16, 16]}, "attention_head_dim"),
    ],
)
def test_a_config_that_is_not_of_the_family_is_refused_by_name(change, said):
    with pytest.raises(ValueError, match=said):
        UNetConfig.from_dict({"_class_name": "I2VGenXLUNet"} | change)


def test_unknown_keys_of_a_config_are_logged_by_name_and_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A config of a newer writer was refused; diffusers warns of the keys that it does not know."""
    written = {
        "_class_name": "I2VGenXLUNet",
        "layers_per_block": 1,
        "time_scale": "default",
        "act_fn": "silu",
    }
    assert UNetConfig.from_dict(written) == UNetConfig(layers_per_block=1)
    assert caplog.messages == ["the UNet's config has unknown keys, which are ignored: act_fn, time_scale"]
    UNetConfig.from_dict({"_diffusers_version": "0.42.1", "layers_per_block": 1})
    assert len(caplog.messages) == 1
