"""Weights that visit the device: here the meta device stands in for a GPU, so their place can be seen on a CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_folder import write_tiny_folder
from torch import nn

from i2v.engine.residency import blocks_of, resident, settle
from i2v.engine.source import open_folder
from i2v.engine.weights import load_parts

META, CPU = torch.device("meta"), torch.device("cpu")


def places(module: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in [*module.parameters(), *module.buffers()]}


@pytest.fixture
def module() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_a_whole_module_visits_the_device_and_comes_home_unchanged(module: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with resident(module, META, "model"):
        assert places(module) == {"meta"}
    assert places(module) == {"cpu"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_it_comes_home_when_the_stage_fails(module: nn.Module) -> None:
    with pytest.raises(RuntimeError, match="in the stage"), resident(module, META, "model"):
        raise RuntimeError("in the stage")
    assert places(module) == {"cpu"}


def test_without_offload_it_stays_on_the_device(module: nn.Module) -> None:
    with resident(module, META, "none"):
        assert places(module) == {"meta"}
    assert places(module) == {"meta"}


def test_a_job_with_offload_begins_with_everything_at_home(module: nn.Module) -> None:
    before = module[0].weight.clone()
    settle([module], CPU, "model")
    assert places(module) == {"cpu"}
    assert torch.equal(module[0].weight, before)


def test_group_offload_holds_one_block_at_a_time_while_stepping(tmp_path: Path) -> None:
    folder = open_folder(write_tiny_folder(tmp_path / "tiny"))
    unet = load_parts(folder, CPU, torch.float32).unet
    blocks = blocks_of(unet)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    held: list[int] = []

    def counting(block: nn.Module) -> Callable[..., Any]:
        forward = block.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            held.append(sum(places(other) == {"meta"} for other in blocks))
            return forward(*args, **kwargs)

        return run

    for block in blocks:
        block.forward = counting(block)
    with resident(unet, META, "group"):
        assert places(unet) == {"meta"}  # what is computed once a request reads every block
        state = unet.begin(
            torch.zeros(2, 77, 32, device=META),
            torch.zeros(2, 1, 32, device=META),
            torch.zeros(1, 4, 2, 8, 8, device=META),
            16,
            torch.tensor([999, 1], device=META),
        )
        for index in range(2):
            prediction = unet.step(state, torch.zeros(1, 4, 2, 8, 8, device=META), index)
            assert prediction.shape == (2, 4, 2, 8, 8)
            assert all(places(block) == {"cpu"} for block in blocks)
    assert set(held) == {1}
    assert len(held) >= len(blocks) > 10
    assert places(unet) == {"cpu"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())


def test_the_blocks_are_all_that_the_levels_hold(tmp_path: Path) -> None:
    unet = load_parts(open_folder(write_tiny_folder(tmp_path / "tiny")), CPU, torch.float32).unet
    levels = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    held = [id(parameter) for block in blocks_of(unet) for parameter in block.parameters()]
    assert sorted(held) == sorted(id(parameter) for level in levels for parameter in level.parameters())
