"""What an installed package holds, read from setuptools' own configuration without building a wheel."""

from pathlib import Path

import pytest
from setuptools import Distribution

from tests.conftest import ROOT


@pytest.fixture
def packaged(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The files that a wheel of this checkout holds, apart from its own metadata."""
    monkeypatch.chdir(ROOT)
    distribution = Distribution({"script_name": "setup.py"})
    distribution.parse_config_files(["pyproject.toml"])
    distribution.include_package_data = False  # else setuptools writes an egg-info folder into the checkout
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    modules = {Path(file) for _, _, file in build.find_all_modules()}
    data = {Path(folder, name) for _, folder, _, names in build.data_files for name in names}
    return {
        path.as_posix() for path in (file.relative_to(ROOT) if file.is_absolute() else file for file in modules | data)
    }


def test_a_wheel_holds_every_file_of_the_package_and_nothing_else(packaged: set[str]) -> None:
    """Neither the tests, nor the benchmarks, nor the tools that made the demo model."""
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "i2v").rglob("*") if path.is_file()}
    assert packaged == {name for name in there if "__pycache__" not in name}
    assert {name.split("/")[0] for name in packaged} == {"i2v"}
    assert {"i2v/ui/mount/style.css", "i2v/ui/mount/icon.svg", "i2v/py.typed"} <= packaged
    assert "i2v/demo/model/vae/diffusion_pytorch_model.safetensors" in packaged
