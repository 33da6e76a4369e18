"""What only a CUDA device can show: visiting blocks, the kernels' own proofs, recorded steps.

Imports torch, pytest and the engine alone, so that it also runs where the other tests' libraries are missing, from the
root of the checkout: `python -m pytest -c /dev/null --rootdir . --noconftest -m gpu tests/engine/test_gpu.py`.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from i2v.engine.conditioning import Conditioning
from i2v.engine.faster_steps import Accelerator, largest_difference
from i2v.engine.paging import blocks_of
from i2v.engine.residency import resident
from i2v.engine.sampler import denoise, schedule
from i2v.engine.step_forms import CudaCapture, Graph
from i2v.engine.unet import fused
from i2v.engine.unet.model import DeepCache, I2VGenXLUNet
from i2v.presets import CacheRule, Sampling

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda:0")
CONTEXT = 24
# whole and reusing steps, guided and not: every kind of step there is
ALL_KINDS = Sampling(solver="unipc", guidance_interval=(0.5, 1.0), deep_cache=CacheRule(interval=2))
SCHEDULER = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def random_unet(*widths: int, groups: int, head_dim: int) -> I2VGenXLUNet:
    """The published layout at other widths, on the CPU, with no layer that is zero."""
    torch.manual_seed(0)
    config = {"block_out_channels": widths, "norm_num_groups": groups, "attention_head_dim": head_dim}
    unet = I2VGenXLUNet.from_config(config | {"cross_attention_dim": CONTEXT}).requires_grad_(False)
    for parameter in unet.parameters():
        if not parameter.any():
            parameter.normal_(0, 0.05)
    return unet


def conditioning(seed: int, frames: int) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    text, embedding, images = (
        torch.randn(shape, generator=generator).to(CUDA)
        for shape in ((2, 9, CONTEXT), (2, 1, CONTEXT), (1, 4, frames, 8, 8))
    )
    return Conditioning(text, embedding, images, motion_fps=16, guidance_scale=7.0)


def noise(frames: int) -> Tensor:
    return torch.randn(1, 4, frames, 8, 8, generator=torch.Generator().manual_seed(5)).to(CUDA)


def walk(unet: I2VGenXLUNet) -> list[Tensor]:
    """Four steps as `turbo` makes them: whole, reusing deep features, whole, reusing."""
    given, cache = conditioning(1, 3), DeepCache(1)
    state = unet.begin(given.text, given.image_embedding, given.image_latents, 16, torch.tensor([981, 501, 1]))
    steps = [(1, True), (2, False), (0, True), (1, False)]
    return [unet.step(state, noise(3), index, cache=cache, refresh=refresh) for index, refresh in steps]


def test_visiting_blocks_give_the_same_and_stay_within_two() -> None:
    unet = random_unet(64, 128, 256, 256, groups=8, head_dim=16)
    with resident(unet, CUDA, "model"):
        expected = walk(unet)
    with resident(unet, CUDA, "group"):
        results = walk(unet)
        held = sum(p.nbytes for block in blocks_of(unet) for p in block.parameters() if p.is_cuda)
    sizes = sorted(sum(p.nbytes for p in block.parameters()) for block in blocks_of(unet))
    assert held <= sum(sizes[-2:])
    assert largest_difference(results, expected) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_kernel_proves_itself(dtype: torch.dtype) -> None:
    with fused.using(fused.Fused()):
        assert [str(verdict) for verdict in fused.report(CUDA, dtype) if not verdict.triton] == []


def every_look_is_quicker() -> Any:
    """A clock on which each run takes less time than the one before: plain ones are timed first, so recordings win."""
    times = iter([sum(100 / look for look in range(1, many)) for many in range(2, 1000)])
    return lambda: next(times)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_recorded_steps_give_the_plain_steps_latents_for_two_requests_and_every_kind_of_step(
    dtype: torch.dtype,
) -> None:
    unet = random_unet(16, 32, 48, 48, groups=8, head_dim=8).to(CUDA, dtype)
    steps = Accelerator(Graph(CudaCapture(CUDA)), "in a test", every_look_is_quicker(), timed=1)

    def latents(seed: int, accelerator: Accelerator | None) -> Tensor:
        table = schedule(SCHEDULER, ALL_KINDS, 12)
        return denoise(unet, *table, noise(2), conditioning(seed, 2), ALL_KINDS, accelerator=accelerator)

    bound = 1e-4 if dtype == torch.float32 else 2e-2
    for seed in (1, 2, 1):
        assert largest_difference([latents(seed, steps)], [latents(seed, None)]) <= bound
    assert len(steps.kept) == 4, steps.report()
    assert steps.held > 0
