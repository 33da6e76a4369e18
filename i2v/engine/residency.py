"""Where weights are while they are not in use: on the device, or at home in main memory (model and group offload).

Parameters are swapped, not copied back: a home copy in main memory stays, the device's copy is dropped after use. The
engine wraps each stage in `resident`; nothing else knows that weights move.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from i2v.engine.memory import Offload

Held = tuple[nn.Module, str, Tensor]  # who holds a tensor, under which name, and its home copy


@contextmanager
def resident(module: nn.Module, device: torch.device, offload: Offload) -> Iterator[None]:
    """`module` can run on `device` inside the block; with offload its weights are at home again after it.

    `group` offloads a UNet block by block; any other module as a whole.
    """
    if offload == "none":
        module.to(device)
        yield
        return
    homes = send_home(module, device)
    blocks = [(block, homes_of(block)) for block in (blocks_of(module) if offload == "group" else [])]
    bring(homes, device)
    with ExitStack() as stack:
        stack.callback(leave, homes)
        if blocks:
            page(module, blocks, device, stack)
        yield


def settle(modules: Iterable[nn.Module], device: torch.device, offload: Offload) -> None:
    """Before a job with offload: everything goes home, also what an earlier job kept on the device."""
    if offload != "none":
        for module in modules:
            send_home(module, device)


def page(unet: Any, blocks: list[tuple[nn.Module, list[Held]]], device: torch.device, stack: ExitStack) -> None:
    """Have each block bring its own weights and drop them after use, until `stack` closes.

    What is computed once a request reads every block's weights and needs few activations: they are all there until
    `transformer_in` opens the first step and sends them home.
    """

    def clear() -> None:
        for _block, homes in blocks:
            leave(homes)

    around_forward(unet.transformer_in, clear, nothing, stack)
    for block, homes in blocks:
        around_forward(block, partial(bring, homes, device), partial(leave, homes), stack)


def around_forward(module: nn.Module, before: Callable[[], None], after: Callable[[], None], stack: ExitStack) -> None:
    """Wrap `module.forward` until `stack` closes. (Hooks would not see a caller that names `forward` itself.)"""
    forward = module.forward

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        before()
        try:
            return forward(*args, **kwargs)
        finally:
            after()

    object.__setattr__(module, "forward", wrapped)
    stack.callback(object.__delattr__, module, "forward")


def nothing() -> None:
    """After `transformer_in` nothing is to be done."""


def blocks_of(module: Any) -> list[nn.Module]:
    """A UNet's residual blocks, temporal convolutions, transformers and resamplers, each called once a step."""
    if not hasattr(module, "mid_block"):
        return []
    levels = [*module.down_blocks, module.mid_block, *module.up_blocks]
    return [block for level in levels for column in level.children() for block in column]


def send_home(module: nn.Module, device: torch.device) -> list[Held]:
    """Move what is on the device to main memory (page-locked for a GPU: twice the transfer rate) and list it."""
    for owner, name, tensor in homes_of(module):
        home = tensor.cpu()
        if device.type == "cuda" and not home.is_pinned():
            home = home.pin_memory()
        hold(owner, name, home)
    return homes_of(module)


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
