"""Our UNet against diffusers' on the device, same random weights: relative errors, and whether each is within bounds.

fp32 must agree to 1e-5 (TF32 off). In 16 bits both are compared with the fp32 result: ours may not be further from it
than diffusers' by more than a tenth. The last line is one JSON object; the exit status is 1 when a bound is missed.
"""

import argparse
import json
import sys
from typing import Any

import torch
from random_models import UNETS, unets

STEP = 501


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", choices=list(UNETS), default="published")
    parser.add_argument("--latents", type=int, nargs=3, default=[8, 32, 32], metavar=("FRAMES", "HEIGHT", "WIDTH"))
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = options.device
    own, upstream = unets(UNETS[options.model], device, torch.float32)
    context = own.config.cross_attention_dim
    torch.manual_seed(1)
    text, embedding = torch.randn(2, 77, context, device=device), torch.randn(2, 1, context, device=device)
    latents, images = torch.randn(2, 1, 4, *options.latents, device=device)

    def results(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        ours, theirs = own.to(dtype), upstream.to(dtype)
        given = [x.to(dtype) for x in (text, embedding, images)]
        state = ours.begin(*given, 16.0, torch.tensor([STEP]))
        pair, both = (torch.cat([x.to(dtype)] * 2) for x in (latents, images))
        fps, time = torch.tensor([16, 16], device=device), torch.tensor(STEP, device=device)
        expected = theirs(pair, time, fps, both, given[1], given[0]).sample
        return ours.step(state, latents, 0).float(), expected.float()

    def error(result: torch.Tensor, expected: torch.Tensor) -> float:
        return float((result - expected).norm() / expected.norm())

    ours, exact = results(torch.float32)
    report: dict[str, Any] = {"device": device, "model": options.model, "float32": error(ours, exact)}
    good = report["float32"] <= 1e-5
    for dtype in (torch.float16, torch.bfloat16):
        half, theirs = (error(x, exact) for x in results(dtype))
        report[str(dtype).removeprefix("torch.")] = {"ours": half, "diffusers": theirs}
        good = good and half <= 1.1 * theirs + 1e-4
    print(json.dumps(report | {"within_bounds": good}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
