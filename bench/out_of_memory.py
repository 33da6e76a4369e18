"""A job that does not fit, for the suite's section `recovery`: what became of it.

On a GPU the process's share of memory is capped (set_per_process_memory_fraction), so the failure is the allocator's
own. A CPU has no such cap: there the UNet raises the same error, always or so many times, which only rehearses.
"""

from itertools import count
from typing import Any
from unittest import mock

import torch
from PIL import Image

from i2v.engine import memory
from i2v.errors import OutOfMemory
from i2v.notes import say
from i2v.request import GenerateRequest

ROOM = 1.5 * 2**30  # bytes beside the weights under the cap


def run_out(engine: Any, request: GenerateRequest, photo: Image.Image, cuda: bool, times: int | None = None) -> str:
    """OutOfMemory, or the plan that it fitted under. The check before a job is left out, so that the job does fail.

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


def allocated(device: str) -> int:
    """Bytes in tensors."""
    return torch.cuda.memory_allocated(device) if device.startswith("cuda") else 0
