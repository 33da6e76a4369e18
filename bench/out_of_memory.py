"""A job that does not fit, then one that does: shows that running out of memory costs one job and no memory.

On a GPU the process's share of memory is capped (set_per_process_memory_fraction), so the failure is the allocator's
own: with `memory_mode="resident"`, where the job cannot go on with offloaded weights. A second case leaves the mode to
the product and must succeed. A CPU has no such cap: there the UNet raises the same error, in the first case always and
in the second once, which only rehearses this script. Also compares the memory model's prediction with each job's
measured peak. The last line is one JSON object.
"""

import argparse
import json
import sys
from dataclasses import replace
from itertools import count
from typing import Any
from unittest import mock

import torch
from PIL import Image
from random_models import engine as random_engine

from i2v.engine import device_memory, memory
from i2v.engine.faster_steps import Accelerator
from i2v.errors import DoesNotFit, OutOfMemory
from i2v.notes import say
from i2v.request import GenerateRequest

ROOM = 1.5 * 2**30  # bytes beside the weights under the cap


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", default="published")
    parser.add_argument("--small", default="256x256x8", help="WIDTHxHEIGHTxFRAMES of the job that fits")
    parser.add_argument("--large", default="1280x704x32", help="of the job that does not")
    parser.add_argument(
        "--peaks", nargs="*", default=["512x512x16", "768x768x16", "1280x704x16"], help="more jobs to compare peaks of"
    )
    parser.add_argument("--recovers", default="1024x1024x16", help="of the job that the product finds a plan for")
    options = parser.parse_args()
    cuda = options.device.startswith("cuda")
    engine, _ = random_engine(options.model, options.device, torch.float16 if cuda else torch.float32)
    engine = replace(engine, steps=Accelerator.of("auto", engine.device))
    photo = Image.effect_noise((256, 256), 60).convert("RGB")
    small, large, middle = job(options.small), job(options.large), job(options.recovers)
    report: dict[str, Any] = {"device": options.device, "model": options.model}

    first = engine.generate(small, photo)  # warm: workspaces are there
    report["plan"], report["stage_seconds"] = first.plan and say(first.plan), first.stage_seconds
    report["steps"] = [[say(note) for note in notes] for notes in engine.steps.report()]
    engine.steps.drop()
    device_memory.recover(engine.device)
    before = allocated(options.device)
    report["refused_beforehand"] = not fits(engine, large)
    report["large"] = run_out(replace(engine, memory_mode="resident"), large, photo, cuda)
    engine.steps.drop()
    device_memory.recover(engine.device)
    report["bytes_left_behind"] = allocated(options.device) - before
    frames = engine.generate(small, photo).frames
    report["next_job_frames"] = len(frames)
    report["recovers"] = run_out(engine, middle, photo, cuda, times=1)
    device_memory.recover(engine.device)
    report["peaks"] = (
        [compare(engine, request, photo, options.device) for request in (small, *map(job, options.peaks))]
        if cuda
        else []
    )
    good = (
        report["large"] == "OutOfMemory"
        and report["recovers"].startswith("it fitted")
        and report["bytes_left_behind"] <= 2**20
        and len(frames) == small.num_frames
    )
    print(json.dumps(report | {"recovered": good}))
    return 0 if good else 1


def job(size: str) -> GenerateRequest:
    width, height, frames = (int(part) for part in size.split("x"))
    return GenerateRequest(prompt="sunset", width=width, height=height, num_frames=frames, steps=2, seed=1)


def fits(engine: Any, request: GenerateRequest) -> bool:
    try:
        engine.check(request)
    except DoesNotFit:
        return False
    return True


def run_out(engine: Any, request: GenerateRequest, photo: Image.Image, cuda: bool, times: int | None = None) -> str:
    """What became of the job: OutOfMemory or the plan. The check before a job is left out, so that the job does fail.

    `times` counts a rehearsal's failures, None is always.
    """
    with mock.patch.object(type(engine), "choose_plan", return_value=memory.Plan()):
        return _capped(engine, request, photo) if cuda else _rehearsed(engine, request, photo, times)


def _capped(engine: Any, request: GenerateRequest, photo: Image.Image) -> str:
    total = torch.cuda.get_device_properties(engine.device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + ROOM) / total, engine.device)
    try:
        return attempt(engine, request, photo)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, engine.device)


def _rehearsed(engine: Any, request: GenerateRequest, photo: Image.Image, times: int | None) -> str:
    step, calls = type(engine.parts.unet).step, count(1)

    def fails(*given: Any, **named: Any) -> torch.Tensor:
        if times is None or next(calls) <= times:
            raise torch.OutOfMemoryError("rehearsal: CUDA out of memory")
        return step(*given, **named)

    with mock.patch.object(type(engine.parts.unet), "step", fails):
        return attempt(engine, request, photo)


def attempt(engine: Any, request: GenerateRequest, photo: Image.Image) -> str:
    try:
        result = engine.generate(request, photo)
    except OutOfMemory:
        return "OutOfMemory"
    return f"it fitted: {result.plan and say(result.plan)}"


def compare(engine: Any, request: GenerateRequest, photo: Image.Image, device: str) -> dict[str, Any]:
    """The memory model's peak against the measured one, in MiB."""
    predicted = memory.predict(engine.shape, request, engine.choose_plan(request)).peak / 2**20
    measured = engine.generate(request, photo).peak_memory_mb
    return {
        "job": f"{request.width}x{request.height}x{request.num_frames}",
        "predicted": predicted,
        "measured": measured,
        "recordings": engine.steps.held / 2**20,
    }


def allocated(device: str) -> int:
    return torch.cuda.memory_allocated(device) if device.startswith("cuda") else 0


if __name__ == "__main__":
    sys.exit(main())
