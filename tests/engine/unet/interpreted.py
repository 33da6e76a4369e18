"""Runs the Triton kernels in Triton's interpreter, on the CPU: for test_triton_kernels.py, in a process of its own.

The interpreter must be chosen before Triton is imported, and nothing can be compiled in the same process afterwards.
Prints one JSON object: what each kernel's examination said, and how far UNets on fused kernels are from plain ones.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch

from i2v.engine.unet import fused
from tests.engine.unet.unet_pairs import CONFIGS, difference, inputs, own, upstream


@torch.no_grad()
def main() -> None:
    interpreted = fused.Fused(devices=("cpu",))
    said = {
        f"{kernel} {dtype}".replace("torch.", ""): str(interpreted.examine(kernel, torch.device("cpu"), dtype))
        for kernel in fused.EXAMPLES
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    }
    unets = {}
    for name in ("one level", "uneven heads"):
        config = CONFIGS[name] | {"layers_per_block": 1}  # the interpreter takes its time for each call
        unet, job = own(upstream(config)), inputs(config, 3, 2, 3)
        state = job.begin(unet)
        with fused.using(None):
            expected = unet.step(state, job.latents, 1)
        with fused.using(interpreted):
            unets[name] = difference(unet.step(state, job.latents, 1), expected)
    json.dump({"examined": said, "unets": unets}, sys.stdout)


if __name__ == "__main__":
    main()
