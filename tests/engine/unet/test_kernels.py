"""The fused pieces give what the plain formula gives, on the oneDNN path and without it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from i2v.engine.unet import kernels


@pytest.fixture(params=[True, False], ids=["onednn", "plain"], autouse=True)
def _path(request):
    torch.manual_seed(0)
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=request.param):
        yield


def test_linear_adds_bias_and_residual():
    x, weight, bias = torch.randn(2, 3, 5, 8), torch.randn(6, 8), torch.randn(6)
    residual = torch.randn(2, 3, 5, 6)
    kept = residual.clone()
    torch.testing.assert_close(kernels.linear(x, weight), F.linear(x, weight))
    torch.testing.assert_close(kernels.linear(x, weight, bias), F.linear(x, weight, bias))
    torch.testing.assert_close(kernels.linear(x, weight, bias, residual), F.linear(x, weight, bias) + residual)
    assert torch.equal(residual, kept)


def test_a_residual_that_both_halves_share_is_broadcast():
    x, weight, residual = torch.randn(2, 3, 8), torch.randn(6, 8), torch.randn(1, 3, 6)
    torch.testing.assert_close(kernels.linear(x, weight, None, residual), F.linear(x, weight) + residual)


@pytest.mark.parametrize(("tokens", "chunks"), [(7, 1), (7, 3), (7, 9), (2500, 1), (2500, 2)])
def test_the_feed_forward_is_geglu_in_any_number_of_pieces(tokens, chunks):
    proj, out = nn.Linear(4, 32), nn.Linear(16, 4)
    x, residual = torch.randn(1, tokens, 4), torch.randn(1, tokens, 4)
    value, gate = proj(x).chunk(2, -1)
    expected = out(value * F.gelu(gate)) + residual
    torch.testing.assert_close(kernels.feed_forward(x, proj, out, residual, chunks), expected)


@pytest.mark.parametrize("over_frames", [False, True])
@pytest.mark.parametrize("silu", [False, True])
def test_group_norm_takes_its_statistics_per_frame_or_per_clip(over_frames, silu):
    norm = nn.GroupNorm(2, 6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 3, 4, 5, 6) + torch.arange(3.0)[:, None, None, None]
    kept = x.clone()
    clip = x.permute(0, 4, 1, 2, 3)  # (B, C, F, H, W)
    if over_frames:
        expected = norm(clip).permute(0, 2, 3, 4, 1)
    else:
        expected = norm(clip.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 3)).permute(0, 1, 3, 4, 2)
    expected = F.silu(expected) if silu else expected
    torch.testing.assert_close(kernels.group_norm(x, norm, over_frames=over_frames, silu=silu), expected)
    assert torch.equal(x, kept)
