"""The pieces of a layer as plain functions: normalise and activate, project and add, gated feed-forward.

Each has one meaning and one signature. On a CPU in fp32 the matrix products go through oneDNN, which takes the bias and
the residual into its epilogue. On CUDA the passes over memory between the products are Triton kernels where `fused.py`
found them good; everywhere else, and under torch.compile, they are plain PyTorch. `choices.py` has the switches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2v.engine.unet import choices, fused

# Tokens of one feed-forward piece on a CPU: its 8 C wide activations then stay in the cache (measured: 1.5 to 3.5
# times as fast as one piece at C = 64, no loss at C = 256).
CPU_TOKENS = 1024


def _onednn(x: Tensor) -> bool:
    """Whether the oneDNN product serves `x`: on an AMD CPU it ran 1.3 to 2 times as fast as MKL's under `F.linear`."""
    if x.device.type != "cpu" or x.dtype is not torch.float32 or torch.compiler.is_compiling():
        return False
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """x W^T + bias + residual over the last axis: (..., K) and (M, K) give (..., M)."""
    if residual is not None and residual.shape != (*x.shape[:-1], weight.shape[0]):
        return linear(x, weight, bias) + residual  # broadcast: a residual that both guidance halves share
    if not _onednn(x):
        y = F.linear(x, weight, bias)
        return y if residual is None else y.add_(residual)
    # The overload is named: to find it by the arguments' types costs more than a small product.
    product = torch.ops.mkldnn._linear_pointwise
    result: Tensor = (
        product.default(x, weight, bias, "none", [], "")
        if residual is None
        else product.binary(x, residual, weight, bias, "add")
    )
    return result


def fuses_residual(x: Tensor) -> bool:
    """Whether products add to a residual in place (`add_product`); oneDNN's take bias and residual as it is."""
    return choices.current().fused_residual and not _onednn(x)


def add_product(total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Adds x W^T to `total` in place, inside the product: (..., M), (..., K) and (M, K)."""
    total.view(-1, total.shape[-1]).addmm_(x.flatten(0, -2), weight.t())  # a view, or the sum would go to a copy
    return total


def feed_forward(x: Tensor, proj: nn.Linear, out: nn.Linear, residual: Tensor, chunks: int = 1) -> Tensor:
    """GEGLU feed-forward with its residual: out(h * gelu(g)) + residual, (h, g) = proj(x).

    Rows are independent, so they are taken in `chunks` pieces (more on a CPU, for the cache, and as `choices` say): the
    8 C wide intermediate of one piece is all that exists at a time. The two halves of `proj` are two products, so the
    activation and the gate work in place. Where `fuses_residual`, the sum is written into `residual`, and the caller
    adds `out`'s bias.
    """
    tokens, base = x.flatten(0, -2), residual.flatten(0, -2)
    size = -(-len(tokens) // max(chunks, choices.current().ff_chunks))
    if x.device.type == "cpu":
        size = min(size, CPU_TOKENS)
    pieces = [slice(i, i + size) for i in range(0, len(tokens), size)]
    if fuses_residual(x):
        total = residual.view(-1, residual.shape[-1])
        for piece in pieces:
            add_product(total[piece], _gated(tokens[piece], proj), out.weight)
        return residual
    if len(pieces) == 1:
        return linear(_gated(tokens, proj), out.weight, out.bias, base).view_as(residual)
    result = torch.empty_like(base)
    for piece in pieces:
        result[piece] = linear(_gated(tokens[piece], proj), out.weight, out.bias, base[piece])
    return result.view_as(residual)


def _gated(x: Tensor, proj: nn.Linear) -> Tensor:
    (w_value, w_gate), (b_value, b_gate) = proj.weight.chunk(2), proj.bias.chunk(2)
    gate: Tensor = linear(x, w_gate, b_gate)
    if fused.serves("gelu_gate", x):
        gate = fused.kernels().gelu_gate(gate, linear(x, w_value, b_value))
    else:
        gate = torch.ops.aten.gelu_(gate).mul_(linear(x, w_value, b_value))
    return gate


def fuses_shift(x: Tensor) -> bool:
    """Whether `group_norm` adds a `shift` for free; where it does not, the convolution before it does, as its bias."""
    return fused.serves("group_norm", x)


def group_norm(
    x: Tensor, norm: nn.GroupNorm, *, over_frames: bool, silu: bool = True, shift: Tensor | None = None
) -> Tensor:
    """GroupNorm of x + shift, then SiLU: x (B, F, H, W, C), shift (C); statistics per frame, or per clip."""
    if fused.serves("group_norm", x):
        tokens = x.flatten(1, 3) if over_frames else x.flatten(0, 1).flatten(1, 2)  # (N, tokens, C)
        normed: Tensor = fused.kernels().group_norm(
            tokens, norm.num_groups, norm.weight, norm.bias, norm.eps, silu=silu, shift=shift
        )
        return normed.view(x.shape)
    x = x if shift is None else x + shift
    rows = x.flatten(1, 2) if over_frames else x.flatten(0, 1)  # (N, rows, W, C)
    y = F.group_norm(rows.permute(0, 3, 1, 2), norm.num_groups, norm.weight, norm.bias, norm.eps)
    y = F.silu(y, inplace=True) if silu else y
    return y.permute(0, 2, 3, 1).reshape(x.shape)


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm over the last axis."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def linear_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, norm: nn.LayerNorm
) -> tuple[Tensor, Tensor]:
    """x W^T + bias + residual, and LayerNorm of that. A residual of one row serves all rows of x."""
    if fused.serves("add_layer_norm", x):
        total = F.linear(x, weight, bias)
        return total, fused.kernels().add_layer_norm(total, residual, norm.weight, norm.bias, norm.eps)
    total = linear(x, weight, bias, residual)
    return total, layer_norm(total, norm)
