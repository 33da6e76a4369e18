"""Weights that visit the device: here the meta device stands in for a GPU, so their place can be seen on a CPU."""

import pytest
import torch
from torch import nn

from i2v.engine.residency import resident, settle

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
