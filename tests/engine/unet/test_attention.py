"""Attention on strided views equals the formula; long launches are cut; the choice says why."""

import pytest
import torch
from torch import Tensor

from i2v.engine.unet import attention


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.softmax(-1) @ v.double()


def near(result: Tensor, expected: Tensor) -> bool:
    return result.shape == expected.shape and bool(torch.allclose(result.double(), expected, rtol=1e-5, atol=1e-6))


B, F, H, W, HEADS, D = 2, 3, 4, 5, 2, 8
SHAPE = (B, F, H, W, HEADS * D)


@pytest.fixture
def qkv() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(SHAPE, generator=generator) for _ in range(3))
    return q, k, v


def split(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, D))  # (B, F, H, W, heads, D)


def test_spatial_attention_stays_within_a_frame(qkv):
    rows = [split(x).flatten(2, 3).transpose(2, 3) for x in qkv]  # (B, F, heads, H W, D)
    expected = formula(*rows).transpose(2, 3).reshape(SHAPE)
    assert near(attention.spatial(*qkv, D), expected)


def test_temporal_attention_stays_within_a_pixel(qkv):
    rows = [split(x).permute(0, 2, 3, 4, 1, 5) for x in qkv]  # (B, H, W, heads, F, D)
    expected = formula(*rows).permute(0, 4, 1, 2, 3, 5).reshape(SHAPE)
    assert near(attention.temporal(*qkv, D), expected)


@pytest.mark.parametrize("rows", [1, 2])
def test_cross_attention_widens_one_row_of_queries_to_the_contexts(qkv, rows):
    q = qkv[0][:rows]
    k, v = torch.randn(2, 2, HEADS, 7, D)
    queries = split(q).permute(0, 4, 1, 2, 3, 5).flatten(2, 4)  # (rows, heads, F H W, D)
    expected = formula(queries, k, v).transpose(1, 2).reshape(SHAPE)
    assert near(attention.cross(q, k, v), expected)


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 7, 11])
def test_cutting_a_launch_along_batch_and_heads_changes_nothing(limit):
    q, k, v = (torch.randn(5, 7, 4, 6) for _ in range(3))
    whole = attention.attend(q, k, v)
    cut = attention.attend(q, k, v, max_rows=limit)
    torch.testing.assert_close(cut, whole)


def test_no_launch_exceeds_the_limit(monkeypatch):
    """1280x704 has 70,400 pixels x heads in one temporal attention: more than a CUDA grid's axis has places."""
    launched = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        launched.append(q.shape[0] * q.shape[1])
        return kernel(q, k, v)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", spy)
    q = torch.randn(2, 70_400, 1, 2)
    attention.attend(q, q, q, max_rows=attention.CUDA_GRID)
    assert max(launched) <= 65_535
    assert sum(launched) == 2 * 70_400


def test_temporal_attention_copies_nothing_before_the_kernel(monkeypatch, qkv):
    seen = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", lambda *rows: seen.extend(rows) or kernel(*rows))
    attention.temporal(*qkv, D)
    attention.spatial(*qkv, D)
    assert [row.data_ptr() for row in seen] == [x.data_ptr() for x in qkv] * 2


def test_spatial_attention_of_parts_of_one_product_copies_nothing_either(monkeypatch, qkv):
    parts = torch.cat(qkv, dim=-1).chunk(3, dim=-1)
    expected = attention.spatial(*qkv, D)
    seen = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", lambda *rows: seen.extend(rows) or kernel(*rows))
    assert near(attention.spatial(*parts, D), expected.double())
    assert [row.data_ptr() for row in seen] == [x.data_ptr() for x in parts]
    assert near(attention.temporal(*parts, D), attention.temporal(*qkv, D).double())


def test_the_choice_of_kernel_names_its_reason():
    cpu = attention.choose(torch.device("cpu"), torch.float32)
    half, full = (attention.choose(torch.device("cuda"), dtype) for dtype in (torch.float16, torch.float32))
    assert cpu.max_rows is None
    assert half.max_rows == full.max_rows == 65_535
    assert "flash" in half.reason
    assert "memory-efficient" in full.reason
