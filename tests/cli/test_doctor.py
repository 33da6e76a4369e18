"""Each check says what it found, and what to do when that is not enough; the report is whole whatever happens."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from i2v.cli import doctor
from i2v.engine import source
from i2v.settings import Settings


def settings(tmp_path: Path, **changes: object) -> Settings:
    return Settings(**{"outputs": tmp_path / "outputs", "port": 0, "model": "demo", **changes})


def test_a_sound_machine_passes_every_check_and_nothing_is_made(tmp_path: Path) -> None:
    checks = list(doctor.checks(settings(tmp_path)))

    assert [check.name for check in checks] == [
        "python",
        "torch",
        "device",
        "steps",
        "kernels",
        "ffmpeg",
        "outputs",
        "disk",
        "model",
        "port",
    ]
    assert [check for check in checks if not check.ok] == []
    assert all(check.text for check in checks)
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_breaks_is_a_failed_line_and_the_rest_still_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> doctor.Check:
        raise OSError("the disk hums")

    monkeypatch.setattr(doctor, "check_ffmpeg", broken)

    checks = {check.name: check for check in doctor.checks(settings(tmp_path))}

    assert not checks["ffmpeg"].ok
    assert "the disk hums" in checks["ffmpeg"].text
    assert checks["port"].ok


@pytest.mark.parametrize(
    ("version", "ok"), [((3, 10), False), ((3, 11), True), ((3, 13), True), ((3, 14), False), ((4, 0), False)]
)
def test_python_outside_the_supported_versions_is_named(version: tuple[int, int], ok: bool) -> None:
    check = doctor.check_python(version)

    assert check.ok is ok
    assert f"Python {version[0]}.{version[1]}" in check.text


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    check = doctor.check_device(settings(tmp_path, device="cuda:77"))

    assert not check.ok
    assert "cuda:77" in check.text


def test_the_device_is_named_with_its_free_memory(tmp_path: Path) -> None:
    check = doctor.check_device(settings(tmp_path, device="cpu"))

    assert check.ok
    assert "GiB free" in check.text


def test_an_ffmpeg_that_is_missing_or_fails_is_a_failed_check(tmp_path: Path) -> None:
    def nowhere() -> str:
        raise RuntimeError("No ffmpeg exe could be found")

    assert not doctor.check_ffmpeg(nowhere).ok
    assert not doctor.check_ffmpeg(lambda: str(tmp_path / "absent")).ok
    failing = tmp_path / "ffmpeg"
    failing.write_text("#!/bin/sh\nexit 3\n")
    failing.chmod(stat.S_IRWXU)
    assert not doctor.check_ffmpeg(lambda: str(failing)).ok
    assert doctor.check_ffmpeg().text.startswith("ffmpeg version")


def test_a_file_in_the_place_of_the_outputs_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("")

    check = doctor.check_writable("outputs", tmp_path / "outputs")

    assert not check.ok
    assert "is a file" in check.text


def test_a_folder_that_cannot_be_written_to_is_named() -> None:
    check = doctor.check_writable("outputs", Path("/proc/1/outputs"))

    assert not check.ok
    assert "cannot be written to" in check.text


def test_too_little_disk_names_the_setting(tmp_path: Path) -> None:
    assert doctor.check_disk(tmp_path, 200, free_bytes=200_000_000).ok
    check = doctor.check_disk(tmp_path, 200, free_bytes=199_000_000)
    assert not check.ok
    assert "min_free_mb" in check.text


def test_a_model_that_is_not_on_this_disk_will_be_downloaded_unless_offline(tmp_path: Path) -> None:
    wanted = {"model": source.REAL_MODEL, "cache_dir": tmp_path / "cache"}
    online = doctor.check_model(settings(tmp_path, **wanted))
    offline = doctor.check_model(settings(tmp_path, **wanted, offline=True))

    assert "5.0 GB" in online.text
    assert not offline.ok
    assert source.REAL_MODEL in offline.text


def test_a_folder_without_weights_fails_the_model_check_by_file(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()

    check = doctor.check_model(settings(tmp_path, model=str(tmp_path / "model")))

    assert not check.ok
    assert "model_index.json" in check.text


def test_the_port_check_names_the_port_it_looked_at_and_how_to_name_another() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        taken = doctor.check_port("127.0.0.1", port)
    assert not taken.ok
    assert f"port {port} is held by process {os.getpid()} (" in taken.text
    assert f"kill {os.getpid()}" in taken.text
    assert "--port" in taken.text
    free = doctor.check_port("127.0.0.1", port)
    assert free.ok
    assert f"nothing listens at 127.0.0.1:{port}" in free.text
    assert "--port" in free.text


def test_a_port_whose_holder_may_not_be_seen_is_named_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "holder", lambda port: None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = doctor.check_port("127.0.0.1", port)
    assert taken.text == f"port {port} is held by another program; stop it, or name another port with --port"


def test_a_free_port_has_no_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    assert doctor.holder(port) is None


def test_an_address_of_another_machine_is_a_failed_check() -> None:
    check = doctor.check_port("192.0.2.1", 8000)

    assert not check.ok
    assert "192.0.2.1" in check.text


def test_importing_the_checks_imports_no_torch() -> None:
    code = "import sys, i2v.cli.doctor; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


def test_offloaded_weights_are_said_to_take_plain_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from i2v.engine import source

    monkeypatch.setattr(source, "choose_device", lambda wanted: torch.device("cuda:0"))
    assert doctor.check_steps(Settings(memory="low-vram")).text.startswith("plain (memory is low-vram")
    assert "as a CUDA graph" in doctor.check_steps(Settings()).text


def test_compiled_steps_need_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(accelerate="compile", device="cpu")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    check = doctor.check_steps(settings)
    assert (check.ok, "no C++ compiler" in check.text) == (False, True)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert doctor.check_steps(settings).text.startswith("as compiled")


def test_the_kernels_are_reported_where_they_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from i2v.engine import source
    from i2v.engine.unet import fused

    assert "native (cpu" in doctor.check_kernels(Settings(device="cpu")).text
    monkeypatch.setattr(source, "choose_device", lambda wanted: torch.device("cuda:0"))
    verdict = fused.KernelChoice("gates", False, "it failed here")
    monkeypatch.setattr(fused, "report", lambda device, dtype: [verdict] * (dtype == torch.float16))
    assert doctor.check_kernels(Settings()).text == str(verdict)
