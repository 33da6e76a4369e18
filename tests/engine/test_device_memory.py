"""Reading a device's memory: pretended cards, and containers with a limit."""

from pathlib import Path

import torch

from i2v.engine import device_memory
from i2v.engine.memory import GIB, MemoryBudget


def test_a_cpus_memory_is_read_and_a_smaller_card_can_be_pretended() -> None:
    real = device_memory.read(torch.device("cpu"))
    small = device_memory.read(torch.device("cpu"), max_vram_gb=0.5)

    assert 0 < real.available <= real.total
    assert small.total == GIB // 2
    assert small.available == GIB // 2  # however much of main memory others hold


def test_what_others_hold_counts_against_a_pretended_card_too() -> None:
    held_by_others = MemoryBudget(total=24 * GIB, available=22 * GIB)

    assert device_memory.pretend(held_by_others, 8) == MemoryBudget(8 * GIB, 6 * GIB)
    assert device_memory.pretend(held_by_others, 40) == held_by_others
    assert device_memory.pretend(held_by_others, None) == held_by_others


def test_a_containers_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "limited").write_text("1073741824\n")
    (tmp_path / "unlimited").write_text("max\n")

    assert device_memory.container_limit(tmp_path / "limited") == GIB
    assert device_memory.container_limit(tmp_path / "unlimited") is None
    assert device_memory.container_limit(tmp_path / "absent") is None
