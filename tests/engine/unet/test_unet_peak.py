"""Activations of one guided step at full size, counted on meta tensors: less than half of diffusers'."""

from functools import cache

import pytest
import torch
from diffusers import I2VGenXLUNet as Upstream

from i2v.engine.unet.model import I2VGenXLUNet
from tests.engine.accounting import Accountant, FusedAttention

pytestmark = pytest.mark.slow

LIKE = {"device": "meta", "dtype": torch.float16}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@cache
def upstream_peak(frames: int, height: int, width: int) -> int:
    with torch.device("meta"):
        unet = Upstream().half().eval()
    pair = torch.empty(2, 4, frames, height, width, **LIKE)
    context, embedding = torch.empty(2, 77, 1024, **LIKE), torch.empty(2, 1, 1024, **LIKE)
    with FusedAttention(), Accountant(unet) as count:
        unet(pair, torch.empty((), device="meta"), torch.empty(2, device="meta"), pair, embedding, context)
    return count.peak


@pytest.fixture(scope="module")
def unet() -> I2VGenXLUNet:
    with torch.device("meta"):
        return I2VGenXLUNet.from_config({}).half()


def own_peak(unet: I2VGenXLUNet, frames: int, height: int, width: int, **plan: int) -> int:
    """What `begin` keeps at full resolution counts too."""
    one = torch.empty(1, 4, frames, height, width, **LIKE)
    context, embedding = torch.empty(2, 77, 1024, **LIKE), torch.empty(2, 1024, **LIKE)
    with FusedAttention():
        state = unet.begin(context, embedding, one, 16.0, torch.arange(50, device="meta"), **plan)
        with Accountant(unet) as count:
            unet.step(state, one, 0)
    return count.peak + state.image_term.untyped_storage().nbytes()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (88, 160)])
def test_the_peak_is_below_half_of_diffusers(unet, height, width):
    theirs = upstream_peak(16, height, width)
    assert own_peak(unet, 16, height, width) < 0.45 * theirs
    assert own_peak(unet, 16, height, width, ff_chunks=4) < 0.35 * theirs
    assert own_peak(unet, 16, height, width, ff_chunks=8, guidance_passes=2) < 0.25 * theirs


def test_the_count_of_diffusers_is_the_known_one():
    """2.59 GiB at 512x512x16: an accountant that counts too little there would flatter us."""
    assert upstream_peak(16, 64, 64) / 2**30 == pytest.approx(2.59, abs=0.01)
