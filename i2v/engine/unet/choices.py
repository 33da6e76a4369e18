"""Choices that only a card can make: switches of the UNet's step, each with its reason and what is expected of it.

The defaults are what was never measured against the others. `kernels.py`, `layers.py` and `triton_kernels.py` ask
`current()`, torch has flags of its own for the rest; the GPU suite tries each one. Times are estimates of a roofline
model for a guided step at 512x512x16 in float16 on an H100, of 105 to 115 ms in all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True, slots=True)
class Choices:
    """Which of two ways a step goes where both are right. Results differ by rounding alone.

    `attention`: cuDNN builds a plan for each new shape, about 9 for a size of video, and nobody has tried it on queries
    of stride 0; flash needs no plan and may be slower on sm_90 and later. `auto` is PyTorch's own order: cuDNN first on
    those cards, flash first on older ones. No estimate.

    `cudnn_benchmark`: cuDNN times its algorithms for each new shape instead of guessing: 0 to 10 ms, for seconds in a
    size's first step. Convolutions are the largest share, most of them (3,1); only a card shows how good the guess is.
    PyTorch keeps what was found or guessed: the choice counts for shapes that have not run in the process before.

    `ff_chunks`: pieces of each feed-forward, at least. In 16 to 32 pieces the intermediate stays in the L2 cache, as if
    activation and gate were in the product: up to 6 ms. More pieces are smaller products: how small is too small?

    `norm_chunks`: chunks of 64 tokens for each program of a GroupNorm: fewer moments to write and read, 1 ms, against
    fewer programs to fill the card.

    `joined_qkv`: one product for q, k and v of a self-attention: 0.9 ms, against strided reads in the attention. Only
    where the weights are as `arrange` laid them, so not with offload, and not in a compiled step. Without the fused
    temporal kernel q, k and v are copied apart again.

    `fused_residual`: residual and bias ride on products and convolutions that write the sum anyway, so that no pass of
    its own adds them: 1.5 ms. A product that reads its result may take another, slower kernel.
    """

    attention: Literal["auto", "cudnn", "flash"] = "auto"
    cudnn_benchmark: bool = False
    ff_chunks: int = 1
    norm_chunks: int = 1
    joined_qkv: bool = False
    fused_residual: bool = False


DEFAULT = Choices()
_current = DEFAULT


def current() -> Choices:
    """The choices of this process."""
    return _current


def adopt(choices: Choices) -> None:
    """Choose for the process, torch's own flags included. Steps that were recorded before keep their choices."""
    _set(choices, choices.cudnn_benchmark, choices.attention != "flash", choices.attention != "cudnn")


@contextmanager
def using(choices: Choices) -> Iterator[None]:
    """Other choices inside the block; then what was before, torch's flags too."""
    cuda = torch.backends.cuda
    before = current(), torch.backends.cudnn.benchmark, cuda.cudnn_sdp_enabled(), cuda.flash_sdp_enabled()
    adopt(choices)
    try:
        yield
    finally:
        _set(*before)


def _set(choices: Choices, benchmark: bool, cudnn: bool, flash: bool) -> None:
    global _current
    _current = choices
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    torch.backends.cuda.enable_flash_sdp(flash)
