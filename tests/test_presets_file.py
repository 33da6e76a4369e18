"""Presets in a file: the package's own are the ones in configs/, and whatever is wrong in another file is named."""

from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from i2v.cli.doctor import check_steps
from i2v.engine import Engine
from i2v.errors import ModelUnavailable, SettingsError
from i2v.loading import load_engine
from i2v.notes import say
from i2v.presets import PRESETS, CacheRule, Sampling, read_presets
from i2v.request import GenerateRequest
from i2v.settings import Settings
from tests.conftest import ROOT

OWN = ROOT / "configs" / "presets.yaml"


def written(folder: Path, text: str) -> Path:
    file = folder / "presets.yaml"
    file.write_text(text)
    return file


def test_the_file_in_configs_is_what_the_package_does_without_one() -> None:
    assert read_presets(OWN) == read_presets(None) == PRESETS


def test_the_file_in_configs_names_every_value_of_every_preset() -> None:
    for name, values in yaml.safe_load(OWN.read_text()).items():
        assert set(values) == set(Sampling.model_fields), name


def test_the_file_says_of_every_preset_what_it_approximates() -> None:
    text = OWN.read_text()
    for name in PRESETS:
        before = text.split(f"\n{name}:")[0].rpartition("\n\n")[2]
        assert "approximates" in before or "Approximates" in before, name


def test_what_a_file_leaves_out_stays_as_it_is(tmp_path: Path) -> None:
    read = read_presets(written(tmp_path, "fast:\n  solver: dpm++2m\n  max_steps: 20\n"))
    assert read["fast"] == Sampling(solver="dpm++2m", max_steps=20)
    assert (read["exact"], read["turbo"]) == (PRESETS["exact"], PRESETS["turbo"])
    assert read_presets(written(tmp_path, "# nothing\n")) == PRESETS
    assert read_presets(written(tmp_path, "fast:\n  deep_cache: {branch: 8}\n")) == PRESETS  # is off, so of no meaning
    sparser = read_presets(written(tmp_path, "turbo:\n  deep_cache: {interval: 3}\n"))["turbo"]
    assert sparser == PRESETS["turbo"].model_copy(update={"deep_cache": CacheRule(interval=3, branch=1)})


def test_a_branch_that_the_model_has_no_layers_for_is_refused_as_it_is_loaded(tmp_path: Path) -> None:
    presets = read_presets(written(tmp_path, "turbo:\n  deep_cache: {branch: 8}\n"))
    with pytest.raises(ModelUnavailable, match=r"preset turbo: deep_cache.branch is 8; this model takes 0 to \d"):
        Engine.load("demo", device="cpu", presets=presets)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("exact:\n  max_steps: 20", "exact is the reference and cannot be changed"),
        ("quick:\n  max_steps: 20", "no preset 'quick'"),
        ("fast:\n  solver: euler", r"fast\.solver: .*'ddim', 'dpm\+\+2m' or 'unipc'"),
        ("fast:\n  max_stepz: 3", r"fast\.max_stepz is not a known field"),
        ("turbo:\n  guidance_interval: [0.5, 1.5]", r"turbo\.guidance_interval\.1"),
        ("turbo:\n  guidance_interval: [0.5, 0.1]", "its first end comes first"),
        ("turbo:\n  deep_cache: {interval: 0}", r"turbo\.deep_cache\.interval"),
        ("- fast", "one block of"),
        ("fast: 3", "one block of"),
        ("fast: [", "not valid YAML"),
    ],
)
def test_a_wrong_line_is_named_with_its_file_also_by_the_doctor(tmp_path: Path, text: str, words: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(SettingsError, match=words) as caught:
        read_presets(file)
    assert str(file) in str(caught.value)
    check = check_steps(Settings(presets=file, device="cpu"))
    assert not check.ok
    assert check.text == str(caught.value)


def test_a_missing_file_is_an_error_and_not_the_packages_own(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_presets(tmp_path / "missing.yaml")


def test_the_doctor_says_how_steps_will_run() -> None:
    assert check_steps(Settings(device="cpu")).text.startswith("plain (accelerate is auto")
    assert check_steps(Settings(device="cpu", accelerate="graph")).text.startswith("plain (CUDA graphs need")
    assert "compiled" in check_steps(Settings(device="cpu", accelerate="compile")).text


def test_the_engine_samples_as_the_file_says_and_the_result_says_it_too(tmp_path: Path, photo: Image.Image) -> None:
    file = written(tmp_path, "fast: {solver: ddim, max_steps: 2}")
    engine = load_engine(Settings(model="demo", device="cpu", presets=file, accelerate="off"), lambda what, part: None)
    assert isinstance(engine, Engine)
    assert engine.steps.form is None
    job = GenerateRequest(prompt="night falls", width=64, height=64, num_frames=2, steps=3, preset="fast", seed=1)
    seen: list[str] = []
    result = engine.generate(job, photo, on_step=lambda progress: seen.append(progress.stage))
    assert seen.count("denoise") == 2
    assert "Preset fast: DDIM in 2 steps stands in for DDIM in 3." in map(say, result.notes)
    asked = job.model_copy(update={"preset": "exact", "steps": 2})
    assert torch.allclose(result.latents, engine.generate(asked, photo).latents)
