"""Where weights are while they are not in use: on the device, or in main memory (model and group offload).

Parameters are swapped, not copied back: a copy in main memory stays (its home), the device's copy is dropped after use.
The engine wraps each stage in `resident`; nothing else knows that weights move. `paging.py` moves a UNet's blocks.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from i2v.engine.memory import Offload
from i2v.engine.paging import Held, bring, hold, homes_of, lane_of, leave, page
from i2v.engine.unet.model import I2VGenXLUNet


@contextmanager
def resident(module: nn.Module, device: torch.device, offload: Offload) -> Iterator[None]:
    """`module` can run on `device` inside the block; with offload its weights are in main memory again after it.

    `group` offloads a UNet block by block; any other module as a whole.
    """
    if offload == "none":
        module.to(device)
        yield
        return
    if isinstance(module, I2VGenXLUNet):
        module.arrange()  # in main memory, so that the copies on the device have the layout already
    homes = send_home(module, device)
    with ExitStack() as stack:
        stack.callback(leave, homes)
        if offload == "group" and isinstance(module, I2VGenXLUNet):
            page(module, lane_of(device), stack)
        bring(homes, device)
        yield


def settle(modules: Iterable[nn.Module], device: torch.device, offload: Offload) -> None:
    """Before a job with offload: everything goes to main memory, also what an earlier job kept on the device."""
    if offload != "none":
        for module in modules:
            send_home(module, device)


def send_home(module: nn.Module, device: torch.device) -> list[Held]:
    """Move what is on the device to main memory (page-locked for a GPU: twice the transfer rate) and list it."""
    for owner, name, tensor in homes_of(module):
        home = tensor.cpu()
        if device.type == "cuda" and not home.is_pinned():
            home = home.pin_memory()
        hold(owner, name, home)
    return homes_of(module)
