"""Group offload: a UNet's blocks are on the device one after the other; the next is copied while one works.

At most two blocks are on the device. Which one comes next is the run order of the config at first, and from then on
what followed last time (a step that reuses deep features leaves blocks out). Called by `residency.py` alone.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from i2v.engine.unet.model import I2VGenXLUNet

Held = tuple[nn.Module, str, Tensor]  # the module that holds a tensor, its name there, and its copy in main memory


# --- tensors that change place


def homes_of(module: nn.Module) -> list[Held]:
    """Every tensor of the module as it is now."""
    return [
        (owner, name, tensor.data)
        for owner in module.modules()
        for named in (owner.named_parameters(recurse=False), owner.named_buffers(recurse=False))
        for name, tensor in named
    ]


def bring(homes: list[Held], device: torch.device) -> None:
    for owner, name, home in homes:
        hold(owner, name, home.to(device, non_blocking=True))


def leave(homes: list[Held]) -> None:
    for owner, name, home in homes:
        hold(owner, name, home)


def hold(owner: nn.Module, name: str, tensor: Tensor) -> None:
    """Parameters are replaced, not written into: a tensor of another device cannot be set into a parameter."""
    setattr(owner, name, nn.Parameter(tensor, requires_grad=False) if name in owner._parameters else tensor)


# --- the way to the device


class Lane(Protocol):
    """Brings weights to a device beside the work that runs there, and orders the two."""

    def bring(self, homes: list[Held]) -> Any:
        """Begin to copy; the result names the copy for `arrive`."""

    def arrive(self, copy: Any) -> None:
        """Work that is queued from now on waits for the copy."""

    def mark(self) -> Any:
        """The point after all work queued so far, for `finish`."""

    def finish(self, mark: Any) -> None:
        """Return when the device has passed the mark."""

    def drain(self) -> None:
        """Return when neither copies nor work are under way."""


def lane_of(device: torch.device) -> Lane:
    return CudaLane(device) if device.type == "cuda" else PlainLane(device)


class PlainLane:
    """A device without streams: a copy is there when `bring` returns, and work is done when its call returns."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def bring(self, homes: list[Held]) -> None:
        bring(homes, self.device)

    def arrive(self, copy: None) -> None:
        """There already."""

    def mark(self) -> None:
        """Passed already."""

    def finish(self, mark: None) -> None:
        """Passed already."""

    def drain(self) -> None:
        """Nothing is under way."""


class CudaLane:
    """Copies from page-locked memory on a stream of their own.

    Their memory comes from that stream's pool. A block is dropped only after the host has seen its work finish, so the
    pool may hand the memory to the next copy at once. `Tensor.record_stream` would order that without the host, but a
    host that runs ahead of the device would then ask for new memory for block after block, and the bound be lost.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def bring(self, homes: list[Held]) -> torch.cuda.Event:
        copied = torch.cuda.Event()
        with torch.cuda.stream(self.stream):
            bring(homes, self.device)
            copied.record(self.stream)
        return copied

    def arrive(self, copy: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self.device).wait_event(copy)

    def mark(self) -> torch.cuda.Event:
        passed = torch.cuda.Event()
        passed.record(torch.cuda.current_stream(self.device))
        return passed

    def finish(self, mark: torch.cuda.Event) -> None:
        mark.synchronize()

    def drain(self) -> None:
        torch.cuda.synchronize(self.device)


# --- one block after the other


class Pager:
    """Which blocks are on the device. Blocks have numbers, in the order of the first pass."""

    def __init__(self, homes: list[list[Held]], lane: Lane) -> None:
        self.homes, self.lane = homes, lane
        self.follows = [*range(1, len(homes)), 0]  # the block that ran after this one last time
        self.here: dict[int, Any] = {}  # the copies of the blocks on the device
        self.last: tuple[int, Any] | None = None  # the block that ran last, and the mark after its work

    def open(self) -> None:
        """Everything is on the device, for what is computed once a request; from now on two blocks are."""
        self.lane.drain()
        for homes in self.homes:
            leave(homes)
        self.here, self.last = {0: self.lane.bring(self.homes[0])}, None

    def before(self, number: int) -> None:
        """Block `number` is about to run: have its weights there."""
        last = self.last[0] if self.last else None
        if last is not None:
            self.follows[last] = number
        for other in [block for block in self.here if block not in (number, last)]:
            self.drop(other)  # a wrong guess; nothing has used it
        if number not in self.here:
            self.here[number] = self.lane.bring(self.homes[number])
        self.lane.arrive(self.here[number])

    def after(self, number: int) -> None:
        """Block `number` is queued: give up the one before it when its work is done, and send for the next."""
        if self.last is not None and self.last[0] != number:
            self.lane.finish(self.last[1])
            self.drop(self.last[0])
        self.last = number, self.lane.mark()
        following = self.follows[number]
        if following not in self.here:
            self.here[following] = self.lane.bring(self.homes[following])

    def drop(self, number: int) -> None:
        leave(self.homes[number])
        del self.here[number]


def page(unet: "I2VGenXLUNet", lane: Lane, stack: ExitStack) -> None:
    """Move the blocks of a UNet in main memory to the device and back as they run, until `stack` closes.

    What is computed once a request reads every block's weights and needs few activations: the caller brings them all,
    and they stay until `transformer_in` begins the first step and drops them.
    """
    blocks = blocks_of(unet)
    pager = Pager([homes_of(block) for block in blocks], lane)
    opened = False

    def open_once() -> None:
        nonlocal opened
        if not opened:
            opened = True
            pager.open()

    stack.callback(lane.drain)  # before the weights leave the device, also when a step failed
    around_forward(unet.transformer_in, open_once, nothing, stack)
    for number, block in enumerate(blocks):
        around_forward(block, partial(pager.before, number), partial(pager.after, number), stack)


def around_forward(module: nn.Module, before: Callable[[], None], after: Callable[[], None], stack: ExitStack) -> None:
    """Wrap `module.forward` until `stack` closes. (Hooks would not see a caller that names `forward` itself.)"""
    forward = module.forward

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        before()
        result = forward(*args, **kwargs)
        after()
        return result

    object.__setattr__(module, "forward", wrapped)
    stack.callback(object.__delattr__, module, "forward")


def nothing() -> None:
    """After `transformer_in` nothing is to be done."""


def blocks_of(unet: Any) -> list[nn.Module]:
    """A UNet's residual blocks, temporal convolutions, transformers and resamplers, in the order of a whole step."""
    ordered: list[nn.Module] = []
    for level in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        ordered += [part for layer in level.layers() for part in layer]
        ordered += getattr(level, "upsamplers", [])
    return ordered
