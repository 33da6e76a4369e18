"""The fused kernels for CUDA, in Triton: the four pieces that eager PyTorch spreads over several passes of memory.

Imported by `fused.py` alone, where Triton is installed and the tensors are on a GPU (or in the tests' interpreter). All
tensors are contiguous unless said; arithmetic is in fp32 whatever the dtype. Offsets are 64-bit: a feed-forward at
1280x704 with 32 frames has over 2^31 numbers. Sizes that the width of no load or store depends on are not specialized:
a kernel that was compiled for one video then serves those of every size.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from i2v.engine.unet import choices

TOKENS, CHANNELS = 64, 64  # a tile of a normalisation: 32 numbers for each of 128 threads
ELEMENTS = 1024  # of a program of the gated activation


def launch(kernel: Any, grid: tuple[int, ...], *given: Any, **constants: Any) -> None:
    """Queue a kernel on the thread's current card; for tensors without memory (meta) only compile and load it there.

    `make_current` (`device_work.py`) has made the engine's card the current one.
    """
    if given[0].is_meta:
        compiled = kernel.warmup(*given, grid=grid, **constants)
        _ = compiled and compiled.run  # loads it; None where a hook of Triton's has taken it over
    else:
        kernel[grid](*given, **constants)


# --- GroupNorm with SiLU over channels-last tokens


@triton.jit(do_not_specialize=["tokens", "chunks"])
def channel_moments(
    x, moments, tokens, channels, chunks, TOKENS: tl.constexpr, CHANNELS: tl.constexpr, TILES: tl.constexpr
):
    """Mean and sum of squared deviations of each channel over a chunk of tokens: (N, T, C) -> (N, chunks, 2, C).

    A chunk is `TILES` tiles of `TOKENS`; moments of two sets merge as in Chan, Golub and LeVeque 1979.
    """
    row = tl.program_id(0).to(tl.int64)  # sample and chunk
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mean = tl.zeros([CHANNELS], tl.float32)
    squares = tl.zeros([CHANNELS], tl.float32)
    seen = 0.0
    for tile in range(TILES):
        start = (row % chunks) * (TOKENS * TILES) + tile * TOKENS
        t = start + tl.arange(0, TOKENS)
        inside = (t < tokens)[:, None] & (c < channels)[None, :]
        at = ((row // chunks) * tokens + t)[:, None] * channels + c[None, :]
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        count = tl.maximum(tl.minimum(tokens - start, TOKENS), 0).to(tl.float32)  # 0 in a tile behind the last token
        own = tl.sum(values, 0) / tl.maximum(count, 1.0)
        deviation = tl.where(inside, values - own[None, :], 0.0)
        share = count / (seen + count)
        apart = own - mean
        squares += tl.sum(deviation * deviation, 0) + apart * (apart * (seen * share))
        mean += apart * share
        seen += count
    tl.store(moments + 2 * row * channels + c, mean, mask=c < channels)
    tl.store(moments + (2 * row + 1) * channels + c, squares, mask=c < channels)


@triton.jit(do_not_specialize=["tokens", "chunks", "size"])
def group_scales(
    moments, shift, weight, bias, scales, tokens, channels, chunks, size, width, eps,
    HAS_SHIFT: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A group's moments out of its channels', as the factor and the summand of each channel: (N, 2, C).

    A chunk has `size` tokens. `shift` (C) is added to the values before their statistics, which only moves the
    channels' means.
    """
    sample, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = tl.arange(0, WIDTH)
    c, own = group * width + lane, lane < width
    moved = tl.load(shift + c, mask=own, other=0.0).to(tl.float32) if HAS_SHIFT else tl.zeros([WIDTH], tl.float32)
    numbers = 1.0 * tokens * width
    moments += 2 * sample * chunks * channels  # within a sample 32 bits reach everywhere
    total = tl.zeros([WIDTH], tl.float32)
    for first in range(0, chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        inside = (chunk < chunks)[:, None] & own[None, :]
        at = 2 * chunk[:, None] * channels + c[None, :]
        mean = tl.load(moments + at, mask=inside, other=0.0)
        count = tl.minimum(tokens - chunk * size, size).to(tl.float32)
        total += tl.sum(tl.where(inside, (mean + moved[None, :]) * count[:, None], 0.0), 0)
    middle = tl.sum(total, 0) / numbers
    squares = tl.zeros([WIDTH], tl.float32)
    for first in range(0, chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        inside = (chunk < chunks)[:, None] & own[None, :]
        at = 2 * chunk[:, None] * channels + c[None, :]
        distance = tl.load(moments + at, mask=inside, other=0.0) + moved[None, :] - middle
        within = tl.load(moments + at + channels, mask=inside, other=0.0)
        count = tl.minimum(tokens - chunk * size, size).to(tl.float32)
        squares += tl.sum(tl.where(inside, within + distance * distance * count[:, None], 0.0), 0)
    factor = 1.0 / tl.sqrt(tl.sum(squares, 0) / numbers + eps)
    factor = factor * tl.load(weight + c, mask=own, other=0.0).to(tl.float32)
    summand = tl.load(bias + c, mask=own, other=0.0).to(tl.float32) + (moved - middle) * factor
    tl.store(scales + 2 * sample * channels + c, factor, mask=own)
    tl.store(scales + (2 * sample + 1) * channels + c, summand, mask=own)


@triton.jit(do_not_specialize=["tokens", "chunks"])
def scale_activate(
    x, scales, y, tokens, channels, chunks,
    SILU: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """x * factor + summand by channel, then SiLU: (N, T, C), in chunks of `TILES` tiles of `TOKENS`."""
    row = tl.program_id(0).to(tl.int64)
    sample = row // chunks
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    factor = tl.load(scales + 2 * sample * channels + c, mask=c < channels, other=0.0)
    summand = tl.load(scales + (2 * sample + 1) * channels + c, mask=c < channels, other=0.0)
    for tile in range(TILES):
        t = (row % chunks) * (TOKENS * TILES) + tile * TOKENS + tl.arange(0, TOKENS)
        inside = (t < tokens)[:, None] & (c < channels)[None, :]
        at = (sample * tokens + t)[:, None] * channels + c[None, :]
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * factor[None, :] + summand[None, :]
        if SILU:
            values = values / (1.0 + tl.exp(-values))
        tl.store(y + at, values.to(y.dtype.element_ty), mask=inside)


def group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, silu: bool, shift: Tensor | None = None
) -> Tensor:
    """GroupNorm of x + shift over tokens x (N, T, C), shift (C); then SiLU."""
    x = x.contiguous()
    samples, tokens, channels = x.shape
    tiles = choices.current().norm_chunks
    chunks, width = triton.cdiv(tokens, TOKENS * tiles), channels // groups
    moments = torch.empty(samples, chunks, 2, channels, device=x.device, dtype=torch.float32)
    scales = torch.empty(samples, 2, channels, device=x.device, dtype=torch.float32)
    y = torch.empty_like(x)
    grid = (samples * chunks, triton.cdiv(channels, CHANNELS))
    shape = {"TOKENS": TOKENS, "CHANNELS": CHANNELS, "TILES": tiles}
    lanes = triton.next_power_of_2(width)
    launch(channel_moments, grid, x, moments, tokens, channels, chunks, **shape)
    launch(
        group_scales, (samples, groups),
        moments, weight if shift is None else shift, weight, bias, scales,
        tokens, channels, chunks, TOKENS * tiles, width, eps,
        HAS_SHIFT=shift is not None, CHUNKS=max(1, 1024 // lanes), WIDTH=lanes,
    )  # fmt: skip
    launch(scale_activate, grid, x, scales, y, tokens, channels, chunks, SILU=silu, **shape)
    return y


# --- residual and LayerNorm


@triton.jit(do_not_specialize=["rows", "residual_rows"])
def add_normalise(
    x, residual, normed, weight, bias, rows, residual_rows, channels, eps, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    """x += residual (its rows repeated), and LayerNorm of the sum as it was stored."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, CHANNELS)
    own = c < channels
    inside = (row < rows)[:, None] & own[None, :]
    at = row.to(tl.int64)[:, None] * channels + c[None, :]
    other = (row % residual_rows).to(tl.int64)[:, None] * channels + c[None, :]
    total = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(residual + other, mask=inside, other=0.0).to(tl.float32)
    total = total.to(x.dtype.element_ty)
    tl.store(x + at, total, mask=inside)
    values = total.to(tl.float32)
    mean = tl.sum(values, 1) / channels
    deviation = tl.where(inside, values - mean[:, None], 0.0)
    factor = 1.0 / tl.sqrt(tl.sum(deviation * deviation, 1) / channels + eps)
    scaled = deviation * factor[:, None] * tl.load(weight + c, mask=own, other=0.0).to(tl.float32)[None, :]
    scaled += tl.load(bias + c, mask=own, other=0.0).to(tl.float32)[None, :]
    tl.store(normed + at, scaled.to(normed.dtype.element_ty), mask=inside)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Adds `residual` to x (..., C) in place and returns LayerNorm of that; a residual of fewer rows is repeated."""
    channels = x.shape[-1]
    rows = x.numel() // channels
    block = triton.next_power_of_2(channels)
    size = max(1, 4096 // block)
    normed = torch.empty_like(x)
    launch(
        add_normalise, (triton.cdiv(rows, size),),
        x, residual, normed, weight, bias, rows, residual.numel() // channels, channels, eps,
        ROWS=size, CHANNELS=block,
    )  # fmt: skip
    return normed


# --- the gate of a feed-forward


@triton.jit
def gate_in_place(gate, value, count, ELEMENTS: tl.constexpr):
    """gate = gelu(gate) * value, gelu by the error function."""
    at = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = at < count
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(value + at, mask=inside, other=0.0).to(tl.float32)
    activated = 0.5 * g * (1.0 + tl.math.erf(g * 0.7071067811865476))
    tl.store(gate + at, (activated * v).to(gate.dtype.element_ty), mask=inside)


def gelu_gate(gate: Tensor, value: Tensor) -> Tensor:
    """gelu(gate) * value, written into `gate`; both of one shape."""
    launch(gate_in_place, (triton.cdiv(gate.numel(), ELEMENTS),), gate, value, gate.numel(), ELEMENTS=ELEMENTS)
    return gate


# --- attention over a few frames


@triton.jit(do_not_specialize=["frames", "pixels", "heads"])
def attend_frames(
    q, k, v, out, frames, pixels, stride, channels, heads, head_dim, scale, FRAMES: tl.constexpr, LANES: tl.constexpr
):
    """One pixel and head: softmax(q k^T scale) v over the frames, all of them in one tile. (B, F, pixels, C).

    Rows of q, k and v begin `stride` numbers apart, those of the result `channels`.
    """
    index = tl.program_id(0).to(tl.int64)
    head, pixel, clip = index % heads, (index // heads) % pixels, index // (heads * pixels)
    f, d = tl.arange(0, FRAMES), tl.arange(0, LANES)
    inside = (f < frames)[:, None] & (d < head_dim)[None, :]
    # From the first frame on, unlike the result's offsets: with both in one form ptxas spills at 32 frames
    first = clip * frames * pixels + pixel
    at = first * stride + head * head_dim + (f.to(tl.int64) * pixels * stride)[:, None] + d[None, :]
    queries = tl.load(q + at, mask=inside, other=0.0)
    keys = tl.load(k + at, mask=inside, other=0.0)
    values = tl.load(v + at, mask=inside, other=0.0)
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
    scores = tl.where((f < frames)[None, :], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    mixed = tl.dot(weights.to(values.dtype), values, input_precision="ieee") / tl.sum(weights, 1)[:, None]
    own = ((clip * frames + f)[:, None] * pixels + pixel) * channels + head * head_dim + d[None, :]
    tl.store(out + own, mixed.to(out.dtype.element_ty), mask=inside)


def temporal_attention(q: Tensor, k: Tensor, v: Tensor, head_dim: int) -> Tensor:
    """Every pixel attends to itself in all frames: q, k, v and the result are (B, F, ..., C). One tile holds F.

    q, k and v may be parts of the rows of one contiguous tensor.
    """
    clips, frames, channels = q.shape[0], q.shape[1], q.shape[-1]
    pixels, heads = q[0, 0].numel() // channels, channels // head_dim
    out = q.new_empty(q.shape)
    launch(
        attend_frames, (clips * pixels * heads,),
        q, k, v, out, frames, pixels, q.stride(-2), channels, heads, head_dim, head_dim**-0.5,
        FRAMES=max(16, triton.next_power_of_2(frames)),  # a matrix product needs 16 at least
        LANES=max(16, triton.next_power_of_2(head_dim)),
        # In 16 bits tensor cores multiply a tile. In fp32 its product is unrolled over the threads: with 32 frames
        # one warp would spill 2.4 KiB of each thread's numbers to memory.
        num_warps=1 if q.element_size() == 2 else 4,
    )  # fmt: skip
    return out
