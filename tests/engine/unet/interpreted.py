"""Runs the Triton kernels in Triton's interpreter, on the CPU: for test_triton_kernels.py, in a process of its own.

The interpreter must be chosen before Triton is imported, and nothing can be compiled in the same process afterwards.
Prints one JSON object: what each kernel's examination said, how far a UNet on fused kernels is from a plain one,
and how often it called each of them; and the same of single layers for the choices that change what a kernel is given.
"""

import json
import os
import sys
from collections import Counter
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch

from i2v.engine.unet import choices, fused
from i2v.engine.unet.choices import Choices
from i2v.engine.unet.layers import StepInputs, Transformer
from tests.engine.unet.unet_pairs import CONFIGS, alone, difference, inputs

CPU = torch.device("cpu")

# Not attention in bfloat16: the interpreter multiplies such matrices as if they were integers, and only a GPU can tell.
CASES = [(kernel, dtype) for kernel in fused.EXAMPLES for dtype in ("float32", "float16", "bfloat16")]
CASES.remove(("temporal_attention", "bfloat16"))


class Counted:
    """The Triton kernels; `calls` tells how often each was asked for."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def load(self) -> "Counted":
        return self

    def __getattr__(self, kernel: str) -> Any:
        self.calls[kernel] += 1
        return getattr(fused.triton_kernels(), kernel)


# Two levels, as few calls and groups as they can have: the interpreter takes its time for each. The upper level's heads
# are narrower than it is, the lower level's are as wide; one row serves both guidance halves down to the middle.
CONFIG = CONFIGS["uneven heads"] | {
    "down_block_types": ("DownBlock3D",) * 2,
    "layers_per_block": 1,
    "norm_num_groups": 2,
}


OTHER = Choices(norm_chunks=2, joined_qkv=True, fused_residual=True)
LARGER = ((2, torch.float16), (3, torch.float32))  # chunks of a GroupNorm's program; some of them end behind the tokens


@torch.no_grad()
def main() -> None:
    kernels = Counted()
    interpreted = fused.Fused(devices=("cpu",), load=kernels.load)
    said = {
        f"{kernel} {dtype}": str(interpreted.examine(kernel, CPU, getattr(torch, dtype))) for kernel, dtype in CASES
    }
    larger = {}
    for chunks, dtype in LARGER:
        with choices.using(Choices(norm_chunks=chunks)):
            larger[chunks] = str(interpreted.examine("group_norm", CPU, dtype))

    unet, job = alone(CONFIG), inputs(CONFIG, 3, 2, 2)
    state = job.begin(unet)
    with fused.using(None):
        expected = unet.step(state, job.latents, 1)
    kernels.calls.clear()
    with fused.using(interpreted):
        apart = difference(unet.step(state, job.latents, 1), expected)
    said_of_unet = {"apart": apart, "calls": dict(kernels.calls)}

    layer, x, none = Transformer(8, 2, 8, 2), torch.randn(1, 3, 5, 5, 8), StepInputs((), ())  # 75 tokens: two chunks
    layer.arrange()
    with fused.using(None):
        expected = layer.forward(x, none)
    kernels.calls.clear()
    with fused.using(interpreted), choices.using(OTHER), torch.backends.mkldnn.flags(enabled=False):
        apart = difference(layer.forward(x, none), expected)
    said_of_layer = {"apart": apart, "calls": dict(kernels.calls)}
    found = {"examined": said, "in larger chunks": larger, "unet": said_of_unet, "layer": said_of_layer}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
