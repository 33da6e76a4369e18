"""A device's memory: how much is free, a lower limit on it, the peak of a job, and giving back what a failed job held.

The only file that asks a device or the system for numbers; what a job needs of them is in `memory.py`.
"""

import gc
import resource
from pathlib import Path

import psutil
import torch

from i2v.engine.interface import DeviceMemory
from i2v.engine.memory import GIB, MemoryBudget

_lost: dict[torch.device, int] = {}  # bytes of this process that PyTorch can neither use nor give back, by card


def lose(device: torch.device, held: int) -> None:
    """From now on `held` bytes of this process's memory on a card do not count as free (see `CudaCapture`)."""
    _lost[device] = held


def read(device: torch.device, max_vram_gb: float | None = None) -> MemoryBudget:
    """The device's memory now. `max_vram_gb` (GiB) pretends that the card has only this much."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        own = max(0, torch.cuda.memory_reserved(device) - _lost.get(device, 0))
    else:
        machine = psutil.virtual_memory()
        free, total = machine.available, machine.total
        own = psutil.Process().memory_info().rss
        if (group := container_limit()) is not None and group < total:
            total, free = group, min(free, group - own)
        if max_vram_gb is not None:  # a card has memory of its own: what others hold of main memory does not count
            total = free + own
    return pretend(MemoryBudget(total, free + own), max_vram_gb)


def device_memory(device: torch.device) -> DeviceMemory | None:
    """What is held, free and there in all on a GPU, as it is; None on a CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(held=torch.cuda.memory_reserved(device), free=free, total=total)


def pretend(memory: MemoryBudget, max_vram_gb: float | None) -> MemoryBudget:
    """`memory` as a card of `max_vram_gb` GiB would report it: what others hold counts against the smaller card too."""
    if max_vram_gb is None:
        return memory
    total = min(memory.total, int(max_vram_gb * GIB))
    return MemoryBudget(total, max(0, total - (memory.total - memory.available)))


def container_limit(file: Path = Path("/sys/fs/cgroup/memory.max")) -> int | None:
    """The memory limit of the container this process runs in, in bytes; None without one."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def limit(device: torch.device, max_vram_gb: float | None) -> None:
    """Make PyTorch's allocator refuse more than `max_vram_gb` GiB, so a pretended card runs out like a real one."""
    if device.type == "cuda" and max_vram_gb is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, max_vram_gb * GIB / total), device)


def recover(device: torch.device) -> None:
    """Give back what a failed job held. Call it when the exception is gone: its frames keep the job's tensors alive."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reset_peak(device: torch.device) -> None:
    """Begin a new peak for `peak_memory_mb`; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """MiB at the peak since `reset_peak`; on the CPU the process's peak so far, which is all the system keeps.

    Linux begins that peak at the size of the process that started this one.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts kibibytes
