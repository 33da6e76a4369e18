"""Scaled dot-product attention over token-major activations, and the one place that chooses its kernel and says why.

Activations are (B, F, H, W, C), contiguous, with C = heads x head dim. Each of the three attentions of the model is a
strided view of them, (N, heads, length, head dim): nothing is copied before the kernel or after it. q, k and v may
be parts of one product's rows (`choices.joined_qkv`); temporal attention without its fused kernel then copies them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from i2v.engine.unet import fused

# A CUDA grid's second and third axis end at 65,535; the kernels behind `scaled_dot_product_attention` put batch and
# heads there. Temporal attention has one "head" per pixel and head: 1280x704 gives 14,080 x 5 = 70,400.
CUDA_GRID = 65_535

LONGEST_TILE = 32  # frames of the fused temporal kernel: the longest clip that a request may ask for


@dataclass(frozen=True, slots=True)
class Kernel:
    """Which attention runs on a device, why, and how many batch x heads rows one launch may have (None: any)."""

    name: str
    reason: str
    max_rows: int | None


def choose(device: torch.device, dtype: torch.dtype) -> Kernel:
    """The kernel for `dtype` tensors on `device`. Pure: reads no environment and probes nothing."""
    if device.type != "cuda":
        return Kernel("sdpa", f"{device.type}: the native kernel works in blocks and takes strided views", None)
    if dtype in (torch.float16, torch.bfloat16):
        return Kernel("sdpa", f"CUDA and {dtype}: torch takes flash kernels, cuDNN's or its own", CUDA_GRID)
    return Kernel("sdpa", f"CUDA and {dtype}: flash needs 16 bits, torch takes the memory-efficient kernel", CUDA_GRID)


def spatial(q: Tensor, k: Tensor, v: Tensor, head_dim: int) -> Tensor:
    """Every pixel of a frame attends to the frame: q, k, v and the result are (B, F, H, W, C)."""
    rows = [x.flatten(0, 1).flatten(1, 2).unflatten(-1, (-1, head_dim)).transpose(1, 2) for x in (q, k, v)]
    return attend(*rows).transpose(1, 2).reshape(q.shape)  # rows: (B F, heads, H W, D)


def temporal(q: Tensor, k: Tensor, v: Tensor, head_dim: int) -> Tensor:
    """Every pixel attends to itself in all frames: q, k, v and the result are (B, F, H, W, C).

    Pixels and heads are neighbours in memory, so together they serve as the heads axis and the view needs no copy. The
    fused kernel holds a pixel's frames in one tile; flash kernels would pad them to 64 or 128.
    """
    if q.shape[1] <= LONGEST_TILE and fused.serves("temporal_attention", q):
        mixed: Tensor = fused.kernels().temporal_attention(q, k, v, head_dim)
        return mixed
    rows = [x.flatten(2, 4).unflatten(-1, (-1, head_dim)).transpose(1, 2) for x in (q, k, v)]
    return attend(*rows).transpose(1, 2).reshape(q.shape)  # rows: (B, H W heads, F, D)


def cross(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every pixel of every frame attends to the context: q (B, F, H, W, C), k and v (G, heads, N, D).

    Frames are folded into the query length, so the context is never repeated over them. With B = 1 and G = 2 the
    query serves both guidance halves: the result is (G, F, H, W, C).
    """
    row = q.flatten(1, 3).unflatten(-1, (-1, k.shape[-1])).transpose(1, 2)  # (B, heads, F H W, D)
    row = row.expand(k.shape[0], -1, -1, -1)
    return attend(row, k, v).transpose(1, 2).reshape(k.shape[0], *q.shape[1:-1], k.shape[1] * k.shape[-1])


def attend(q: Tensor, k: Tensor, v: Tensor, max_rows: int | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over (N, heads, length, D), in as many launches as the kernel's grid needs.

    `max_rows` overrides the chosen kernel's limit on N x heads.
    """
    limit = max_rows or choose(q.device, q.dtype).max_rows
    n, heads = q.shape[:2]
    if limit is None or n * heads <= limit:
        return F.scaled_dot_product_attention(q, k, v)
    # One launch per slice of the axis that is too long; the slices' memory order is kept, so callers still get a view.
    out = q.new_empty(n, q.shape[2], heads, q.shape[3]).transpose(1, 2)
    rows, columns = max(1, limit // heads), min(heads, limit)
    for i in range(0, n, rows):
        for j in range(0, heads, columns):
            at = (slice(i, i + rows), slice(j, j + columns))
            out[at] = F.scaled_dot_product_attention(q[at], k[at], v[at])
    return out
