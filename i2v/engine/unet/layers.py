"""The layers of the I2VGen-XL UNet, on token-major activations x of shape (B, F, H, W, C).

In this order a spatial convolution (channels last), a temporal one (the clip as an image of F x (H W) pixels), every
linear and both attentions are views of the same memory: no layer copies to change the layout. Parameter names are the
published checkpoint's. `model.py` puts the layers together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2v.engine.unet import attention, choices, kernels


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What the layers look up in one denoising step, by their `slot`.

    `shifts[i]` (C): conv1's bias plus the projected time and fps embedding of residual block i. `context[i]`: keys and
    values (G, heads, N, D) of cross-attention i. `ff_chunks`: pieces of a feed-forward (memory, not result).
    """

    shifts: tuple[Tensor, ...]
    context: tuple[tuple[Tensor, Tensor], ...]
    ff_chunks: int = 1


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    """3x3 convolution of every frame with padding 1: (B, F, H, W, C) -> (B, F, H', W', M)."""
    y: Tensor = F.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), weight, bias, stride=stride, padding=1)
    return y.permute(0, 2, 3, 1).contiguous().view(*x.shape[:2], *y.shape[2:], len(weight))


class ResnetBlock(nn.Module):
    """norm, SiLU, 3x3 conv, + time embedding, norm, SiLU, 3x3 conv, + input; GroupNorm statistics per frame."""

    def __init__(self, in_channels: int, out_channels: int, time_channels: int, groups: int) -> None:
        super().__init__()
        self.slot = -1  # set by the UNet
        self.acts = True  # set by `arrange`
        self.norm1 = nn.GroupNorm(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, inputs: StepInputs) -> Tensor:
        if not self.acts:
            return x if self.conv_shortcut is None else self._shortcut(x, None)
        # The embedding is one vector for all frames and both guidance halves. On a CPU conv1 adds it for free, as its
        # bias; cuDNN would add a bias in one more pass, the fused norm does not.
        h = kernels.group_norm(x, self.norm1, over_frames=False)
        shift, late = inputs.shifts[self.slot], kernels.fuses_shift(h)
        h = conv2d(h, self.conv1.weight, None if late else shift)
        h = kernels.group_norm(h, self.norm2, over_frames=False, shift=shift if late else None)
        if self.conv_shortcut is not None and kernels.fuses_residual(h):
            # cuDNN adds a bias in a pass of its own, which takes the shortcut's along
            bias = cast(Tensor, self.conv2.bias) + cast(Tensor, self.conv_shortcut.bias)
            h = conv2d(h, self.conv2.weight, bias)
            return kernels.add_product(h, x, self.conv_shortcut.weight.flatten(1))
        h = conv2d(h, self.conv2.weight, self.conv2.bias)
        if self.conv_shortcut is None:
            return h.add_(x)
        return self._shortcut(x, h)

    def _shortcut(self, x: Tensor, residual: Tensor | None) -> Tensor:
        shortcut = cast(nn.Conv2d, self.conv_shortcut)
        return kernels.linear(x, shortcut.weight.flatten(1), shortcut.bias, residual)

    @torch.no_grad()
    def arrange(self) -> None:
        """After loading: convolutions that end in zero are left out."""
        self.acts = not is_zero(self.conv2)

    def shift(self, embedding: Tensor) -> Tensor:
        """What conv1 adds for every timestep: SiLU of the embeddings (T, time_channels) -> (T, C)."""
        proj = self.time_emb_proj
        return kernels.linear(F.silu(embedding), proj.weight, proj.bias, residual=self.conv1.bias)


class TemporalConvBlock(nn.Module):
    """Four times norm, SiLU, (3,1,1) convolution over time, then + input; GroupNorm statistics per clip."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.identity = False  # set by `arrange`
        self.stages = tuple(
            (nn.GroupNorm(groups, channels), nn.Conv3d(channels, channels, (3, 1, 1))) for _ in range(4)
        )
        for number, (norm, conv) in enumerate(self.stages, start=1):
            dropout = [] if number == 1 else [nn.Identity()]  # it has a number in the published keys
            self.add_module(f"conv{number}", nn.Sequential(norm, nn.SiLU(), *dropout, conv))

    def forward(self, x: Tensor, inputs: StepInputs) -> Tensor:
        if self.identity:
            return x
        h, shift = x, None
        for number, (norm, conv) in enumerate(self.stages, start=1):
            h = kernels.group_norm(h, norm, over_frames=True, shift=shift)
            late = number < len(self.stages) and kernels.fuses_shift(h)  # the next norm adds the bias (see ResnetBlock)
            shift = conv.bias if late else None
            h = temporal_conv(h, conv.weight, None if late else conv.bias)
        return h.add_(x)

    @torch.no_grad()
    def arrange(self) -> None:
        """After loading: a block whose last convolution is zero adds exactly nothing and is left out."""
        self.identity = is_zero(self.stages[-1][1])


def temporal_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(3,1,1) convolution with padding 1 in time, as a (3,1) convolution on an image of F x (H W) pixels."""
    y = F.conv2d(x.flatten(2, 3).permute(0, 3, 1, 2), weight.squeeze(-1), bias, padding=(1, 0))
    return y.permute(0, 2, 3, 1).contiguous().view(*x.shape[:-1], len(weight))


def is_zero(layer: nn.Module) -> bool:
    """Whether a layer's output is zero whatever its input; False for weights that are not there yet (meta)."""
    return not any(p.is_meta or bool(p.any()) for p in layer.parameters())


class Attention(nn.Module):
    """Multi-head attention. `head_dim` in channels; `context_dim` None means self-attention."""

    def __init__(self, dim: int, heads: int, head_dim: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.acts = True  # set by TransformerBlock.arrange
        inner, source = heads * head_dim, context_dim or dim
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(source, inner, bias=False)
        self.to_v = nn.Linear(source, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, dim)])

    def spatial(self, x: Tensor) -> Tensor:
        return attention.spatial(*self._project(x), self.head_dim)

    def temporal(self, x: Tensor) -> Tensor:
        return attention.temporal(*self._project(x), self.head_dim)

    def cross(self, x: Tensor, keys_values: tuple[Tensor, Tensor]) -> Tensor:
        """From here on the guidance halves differ: x (1, ...) and keys of G rows give (G, ...)."""
        return attention.cross(kernels.linear(x, self.to_q.weight), *keys_values)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the context (G, N, context_dim), each (G, heads, N, D): constant over a request."""
        k, v = (kernels.linear(context, w) for w in (self.to_k.weight, self.to_v.weight))
        shape = (self.heads, self.head_dim)
        return k.unflatten(-1, shape).transpose(1, 2), v.unflatten(-1, shape).transpose(1, 2)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of x (..., dim), each (..., inner): three products, or parts of one where `choices` say so."""
        weights = self.to_q.weight, self.to_k.weight, self.to_v.weight
        joined = None
        if choices.current().joined_qkv and not torch.compiler.is_compiling():  # a compiled step has no addresses
            joined = as_one(weights)
        q, k, v = (
            (kernels.linear(x, w) for w in weights) if joined is None else kernels.linear(x, joined).chunk(3, dim=-1)
        )
        return q, k, v

    def arrange(self) -> None:
        """After loading, in a self-attention: the weights of q, k and v are laid out as neighbours in one buffer."""
        layers = self.to_q, self.to_k, self.to_v
        if as_one([layer.weight for layer in layers]) is None:
            whole = torch.cat([layer.weight for layer in layers])
            for layer, part in zip(layers, whole.chunk(len(layers)), strict=True):
                layer.weight.data = part

    def out(self, x: Tensor, residual: Tensor) -> Tensor:
        out = cast(nn.Linear, self.to_out[0])
        return kernels.linear(x, out.weight, out.bias, residual)

    def out_normed(self, x: Tensor, residual: Tensor, norm: nn.LayerNorm | None) -> tuple[Tensor, Tensor | None]:
        """The sum, and LayerNorm of it for what follows, if anything does."""
        if norm is None:
            return self.out(x, residual), None
        out = cast(nn.Linear, self.to_out[0])
        return kernels.linear_layer_norm(x, out.weight, out.bias, residual, norm)


def as_one(weights: Sequence[Tensor]) -> Tensor | None:
    """Weights (M, K) as (n M, K), where they lie one behind the other in one buffer; None where they do not any more.

    They do not after a move to another device or dtype, which takes them one by one.
    """
    first = weights[0]
    buffer, place = first.untyped_storage().data_ptr(), first.storage_offset()
    for number, weight in enumerate(weights):
        at = weight.untyped_storage().data_ptr(), weight.storage_offset()
        if at != (buffer, place + number * first.numel()) or not weight.is_contiguous():
            return None
    return first.as_strided((len(weights) * len(first), first.shape[1]), first.stride())


class Projection(nn.Module):
    """Holds a feed-forward's first linear under its published name."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, inner)


class FeedForward(nn.Module):
    """GEGLU feed-forward, four times as wide inside; the dropout between the two linears keeps its number."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.acts = True  # set by TransformerBlock.arrange
        self.net = nn.ModuleList([Projection(dim, 8 * dim), nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, x: Tensor, residual: Tensor, chunks: int = 1) -> Tensor:
        first, last = cast(Projection, self.net[0]), cast(nn.Linear, self.net[2])
        return kernels.feed_forward(x, first.proj, last, residual, chunks)


class TransformerBlock(nn.Module):
    """Self-attention, a second attention, feed-forward; LayerNorm before and a residual around each.

    The second attention looks at the context in a spatial block (`context_dim`), at the frames again in a temporal one.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.slot = -1  # set by the UNet in blocks with a context
        self.over_frames = context_dim is None
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.attn1 = Attention(dim, heads, head_dim)
        self.attn2 = Attention(dim, heads, head_dim, context_dim)
        self.ff = FeedForward(dim)

    def run(self, x: Tensor, inputs: StepInputs) -> Tensor:
        """The parts that act, each with its norm before it; a norm is taken together with the sum it is of."""
        parts = [part for part in self._attentions(inputs) if part[0].acts]
        norms = [norm for _, norm, _ in parts] + [self.norm3 if self.ff.acts else None]
        normed = None if norms[0] is None else kernels.layer_norm(x, norms[0])
        for (attends, _, mix), following in zip(parts, norms[1:], strict=True):
            x, normed = attends.out_normed(mix(cast(Tensor, normed)), x, following)
        x = x if normed is None else self.ff.forward(normed, x, inputs.ff_chunks)
        return x if self.over_frames else widened(x, len(inputs.context[self.slot][0]))

    def bias_left_out(self, x: Tensor) -> Tensor | None:
        """What `run` did not add to a result like x: the feed-forward's bias, where its product adds the residual."""
        return cast(nn.Linear, self.ff.net[2]).bias if self.ff.acts and kernels.fuses_residual(x) else None

    def _attentions(self, inputs: StepInputs) -> list[tuple[Attention, nn.LayerNorm, Callable[[Tensor], Tensor]]]:
        if self.over_frames:
            return [(self.attn1, self.norm1, self.attn1.temporal), (self.attn2, self.norm2, self.attn2.temporal)]
        cross = partial(self.attn2.cross, keys_values=inputs.context[self.slot])
        return [(self.attn1, self.norm1, self.attn1.spatial), (self.attn2, self.norm2, cross)]

    @torch.no_grad()
    def arrange(self) -> None:
        """After loading: attentions and a feed-forward whose last projection is zero are left out, others laid out."""
        self.attn1.acts, self.attn2.acts = (not is_zero(part.to_out) for part in (self.attn1, self.attn2))
        self.ff.acts = not is_zero(self.ff.net[2])
        self.attn1.arrange()
        if self.over_frames:
            self.attn2.arrange()


def widened(x: Tensor, rows: int) -> Tensor:
    """x, or its one row repeated: where a cross-attention that adds nothing was left out, the guidance halves part."""
    return x if len(x) == rows else x.expand(rows, *x.shape[1:]).contiguous()


class Transformer(nn.Module):
    """norm, proj_in, one block, proj_out, + input: spatial with a context, temporal without one."""

    def __init__(self, channels: int, heads: int, head_dim: int, groups: int, context_dim: int | None = None) -> None:
        super().__init__()
        inner = heads * head_dim
        self.identity = False  # set by `arrange`
        self.over_frames = context_dim is None
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(inner, heads, head_dim, context_dim)])
        self.proj_out = nn.Linear(inner, channels)

    @property
    def block(self) -> TransformerBlock:
        return cast(TransformerBlock, self.transformer_blocks[0])

    def forward(self, x: Tensor, inputs: StepInputs) -> Tensor:
        if self.identity:
            return x if self.over_frames else widened(x, len(inputs.context[self.block.slot][0]))
        h = kernels.group_norm(x, self.norm, over_frames=self.over_frames, silu=False)
        # No name is kept for the projection's result, so it is gone when the block has added its first attention.
        h = self.block.run(kernels.linear(h, self.proj_in.weight, self.proj_in.bias), inputs)
        bias: Tensor = self.proj_out.bias
        late = self.block.bias_left_out(h)
        if late is not None:
            bias = F.linear(late, self.proj_out.weight, bias)  # the projection is linear: one vector instead of a pass
        return kernels.linear(h, self.proj_out.weight, bias, residual=x)

    @torch.no_grad()
    def arrange(self) -> None:
        """After loading: a transformer whose last projection is zero adds exactly nothing and is left out."""
        self.identity = is_zero(self.proj_out)
        self.block.arrange()


class Downsample(nn.Module):
    """3x3 convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, inputs: StepInputs) -> Tensor:
        return conv2d(x, self.conv.weight, self.conv.bias, stride=2)


class Upsample(nn.Module):
    """Nearest neighbour to the size of the next skip (twice as large, or one less at odd sizes), 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        y = F.interpolate(x.flatten(0, 1).permute(0, 3, 1, 2), size=(height, width), mode="nearest")
        return conv2d(y.permute(0, 2, 3, 1).contiguous().unflatten(0, x.shape[:2]), self.conv.weight, self.conv.bias)


class ImageTemporalEncoder(nn.Module):
    """Lets the image latents' frames see each other; once per request, on 4 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, 2, channels)  # two heads, each as wide as its input
        self.ff = PlainFeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.ff.forward(self.attn1.out(self.attn1.temporal(kernels.layer_norm(x, self.norm1)), x))


class PlainFeedForward(nn.Module):
    """GELU feed-forward with its residual and, as published, no norm before it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([Projection(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        first, last = cast(Projection, self.net[0]), cast(nn.Linear, self.net[2])
        return kernels.linear(F.gelu(first.proj(x)), last.weight, last.bias, residual=x)
