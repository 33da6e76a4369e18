"""Calibration on the demo model as it is (1 is right) and with its photo channels halved (2 is right)."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from i2v.cli import calibration, commands
from i2v.cli.calibration import Calibration, Trial, calibrate, psnr
from i2v.engine import Engine
from i2v.engine.source import DEMO_FOLDER
from i2v.request import GenerateRequest

pytestmark = pytest.mark.slow

SHORT = GenerateRequest(prompt="static camera", width=128, height=128, num_frames=2, steps=2, seed=1)


def halved_copy(folder: Path) -> Path:
    """The demo model as a conversion that forgot the factor of 2 would have written it."""
    shutil.copytree(DEMO_FOLDER, folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["conv_in.weight"][:, 4:] /= 2  # channels 0 to 3 are the noisy latents, 4 to 7 the photo's
    save_file(state, file, metadata={"format": "pt"})
    return folder


def test_the_demo_model_is_found_right_as_it_is(photo: Image.Image) -> None:
    engine = Engine.load("demo", device="cpu")
    found = calibrate(engine, photo, SHORT)
    assert [trial.scale for trial in found.trials] == [1.0, 2.0]
    assert found.best.scale == 1.0
    assert found.right
    assert "nothing to change" in found.lines()[-1]
    assert engine.conventions.image_concat_scale == 1.0


def test_halved_weights_are_found_and_the_setting_is_named(photo: Image.Image, tmp_path: Path) -> None:
    folder = halved_copy(tmp_path / "halved")
    found = calibrate(Engine.load(folder, device="cpu"), photo, SHORT)
    assert found.best.scale == 2.0
    assert found.clear
    assert not found.right
    assert "image_concat_scale: 2.0" in found.lines()[-1]
    mended = calibrate(Engine.load(folder, device="cpu", image_concat_scale=2.0), photo, SHORT)
    assert mended.right


def test_a_photo_that_decides_nothing_is_said_to() -> None:
    found = Calibration((Trial(1.0, 20.0), Trial(2.0, 20.5)), used=2.0)
    assert not found.clear
    assert not found.right
    assert "another one with --image" in found.lines()[-1]


def test_a_video_that_fails_its_check_counts_as_no_likeness(photo: Image.Image) -> None:
    engine = Engine.load("demo", device="cpu")
    engine.parts.unet.conv_out.bias.fill_(float("nan"))
    found = calibrate(engine, photo, SHORT)
    assert [trial.psnr for trial in found.trials] == [0.0, 0.0]
    assert not found.clear


def test_psnr_is_that_of_the_formula() -> None:
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 51, np.uint8)
    assert psnr(black, grey) == pytest.approx(20 * np.log10(5))
    assert psnr(grey, grey) == 99.0


def test_the_command_prints_both_scales_and_its_exit_code_tells_whether_to_act(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = calibration.short_request
    smaller = {"width": SHORT.width, "height": SHORT.height}
    monkeypatch.setattr(calibration, "short_request", lambda kind: own(kind).model_copy(update=smaller))
    folder = halved_copy(tmp_path / "halved")
    with pytest.raises(SystemExit) as ended:
        commands.main(["doctor", "--calibrate", "--model", str(folder), "--device", "cpu", "--outputs", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 1
    assert [line.split(":")[0] for line in lines[:2]] == ["image_concat_scale 1", "image_concat_scale 2"]
    assert "--image-concat-scale 2.0" in lines[2]


def test_the_fake_engine_has_nothing_to_calibrate(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        commands.main(["doctor", "--calibrate", "--model", "fake"])
    assert ended.value.code == 2
    assert "no weights to calibrate" in capsys.readouterr().err


def test_the_example_ships_and_the_module_imports_no_torch() -> None:
    with Image.open(calibration.EXAMPLE) as example:
        assert example.size == (512, 512)
    code = "import sys, i2v.cli.calibration; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
