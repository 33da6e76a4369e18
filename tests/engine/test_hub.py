"""What is fetched from the hub, what is not, and what happens when the line or the disk fails."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save

from i2v.engine import hub, source
from i2v.errors import ModelUnavailable
from i2v.notes import Note, say
from tests.engine.hub_double import COMMIT, HubDouble, serving

REPO = "someone/i2vgen-xl-test"
UNET = "unet/diffusion_pytorch_model.fp16.safetensors"


def repository() -> dict[str, bytes]:
    """The published repository's layout with small files: fp16 and fp32 twins, pickles, samples, a README."""
    small = {name: json.dumps({"file": name}).encode() for name in (*hub.REQUIRED, *hub.OPTIONAL[1:])}
    small["model_index.json"] = b'{"_class_name": "I2VGenXLPipeline"}'
    files = {**small, "README.md": b"# readme", "samples/cat.gif": b"GIF89a" * 50}
    for number, part in enumerate(hub.PARTS):
        stem = "diffusion_pytorch_model" if part in ("unet", "vae") else "model"
        weight = torch.full((300_000,), float(number))
        files[f"{part}/{stem}.fp16.safetensors"] = save({"weight": weight.half()})
        files[f"{part}/{stem}.safetensors"] = save({"weight": weight})
        files[f"{part}/{stem}.fp16.bin"] = b"\x80\x02pickle"
        files[f"{part}/{stem}.bin"] = b"\x80\x02pickle"
    files["models/i2vgen_xl_00854500.pth"] = b"\x80\x02pickle"
    files["models/open_clip.ckpt"] = b"\x80\x02pickle"
    return files


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(hub, "PAUSE_S", 0.0)
    with serving(HubDouble(REPO, repository())) as running:
        yield running


def fetch(double: HubDouble, cache: Path, **options: object) -> Path:
    given = {"revision": COMMIT, "endpoint": double.endpoint, **options}
    return hub.download(REPO, cache_dir=cache, **given)


def test_only_configs_and_half_precision_safetensors_are_fetched(double: HubDouble, tmp_path: Path) -> None:
    folder = fetch(double, tmp_path)

    wanted = {name for name in double.files if name.endswith(".fp16.safetensors")}
    wanted |= {*hub.REQUIRED, *hub.OPTIONAL[1:]}
    assert double.fetched() == wanted
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert there == wanted
    assert all((folder / name).read_bytes() == double.files[name] for name in wanted)


def test_a_repository_without_a_half_precision_part_gives_its_full_one(double: HubDouble, tmp_path: Path) -> None:
    del double.files[UNET]

    fetch(double, tmp_path)

    assert "unet/diffusion_pytorch_model.safetensors" in double.fetched()
    assert "vae/diffusion_pytorch_model.safetensors" not in double.fetched()


def test_a_part_that_is_there_as_a_pickle_only_is_refused_and_not_fetched(double: HubDouble, tmp_path: Path) -> None:
    for name in [name for name in double.files if name.startswith("unet/") and name.endswith(".safetensors")]:
        del double.files[name]

    with pytest.raises(ModelUnavailable, match=r"no safetensors file in unet/"):
        fetch(double, tmp_path)
    assert double.fetched() == set()


def test_progress_rises_from_nothing_to_the_whole_and_names_the_model(double: HubDouble, tmp_path: Path) -> None:
    reports: list[tuple[Note, float | None]] = []

    fetch(double, tmp_path, on_load=lambda what, fraction: reports.append((what, fraction)))

    fractions = [fraction for _, fraction in reports if fraction is not None]
    assert fractions == sorted(fractions)
    assert fractions[0] < 0.1
    assert fractions[-1] == 1.0
    assert all(REPO in say(what) for what, _ in reports)
    assert {what.code for what, _ in reports} == {"asking_hub", "downloading"}


def test_a_download_that_breaks_off_goes_on_where_it_stopped(double: HubDouble, tmp_path: Path) -> None:
    double.cut[UNET] = [100_000, 50_000]

    folder = fetch(double, tmp_path)

    assert double.ranges(UNET) == ["bytes=0-", "bytes=100000-", "bytes=150000-"]
    assert (folder / UNET).read_bytes() == double.files[UNET]


def test_a_new_process_goes_on_from_the_part_the_last_one_left(double: HubDouble, tmp_path: Path) -> None:
    fetch(double, tmp_path)
    blob = (tmp_path / f"models--{REPO.replace('/', '--')}" / "snapshots" / COMMIT / UNET).resolve()
    whole = blob.read_bytes()
    blob.unlink()
    blob.with_name(f"{blob.name}.i2v.part").write_bytes(whole[:123_456])
    double.requests.clear()
    fractions: list[float] = []

    folder = fetch(double, tmp_path, on_load=lambda _, fraction: fractions.append(fraction or 0.0))

    assert double.fetched() == {UNET}
    assert double.ranges(UNET) == ["bytes=123456-"]
    assert (folder / UNET).read_bytes() == whole


def test_a_server_that_ignores_ranges_is_read_from_the_beginning(double: HubDouble, tmp_path: Path) -> None:
    double.cut[UNET] = [100_000]
    double.ignore_range = True
    fractions: list[float] = []

    folder = fetch(double, tmp_path, on_load=lambda _, fraction: fractions.append(fraction or 0.0))

    assert (folder / UNET).read_bytes() == double.files[UNET]
    assert fractions[-1] == 1.0


def test_bytes_with_another_hash_are_refused_and_removed(double: HubDouble, tmp_path: Path) -> None:
    good = double.files[UNET]
    double.served[UNET] = good[:-1] + bytes([good[-1] ^ 1])

    with pytest.raises(ModelUnavailable, match=rf"{UNET} came with .*SHA-256"):
        fetch(double, tmp_path)
    assert not list(tmp_path.rglob("*.part"))

    double.served.clear()
    assert (fetch(double, tmp_path) / UNET).read_bytes() == good


def test_a_file_shorter_than_promised_is_refused(double: HubDouble, tmp_path: Path) -> None:
    double.served[UNET] = double.files[UNET][:1000]

    with pytest.raises(ModelUnavailable, match=rf"{UNET}.*1000"):
        fetch(double, tmp_path)


def test_a_line_that_stays_dead_ends_with_a_readable_error(double: HubDouble, tmp_path: Path) -> None:
    double.cut[UNET] = [0] * 20

    with pytest.raises(ModelUnavailable, match=rf"{REPO} at revision {COMMIT} cannot be fetched"):
        fetch(double, tmp_path)
    assert 2 <= len(double.ranges(UNET)) < 20


def test_a_cached_commit_is_used_without_a_request(double: HubDouble, tmp_path: Path) -> None:
    first = fetch(double, tmp_path)
    double.requests.clear()

    assert fetch(double, tmp_path) == first
    assert fetch(double, tmp_path, offline=True) == first
    assert double.requests == []


def test_offline_without_a_whole_snapshot_says_so_and_asks_nobody(double: HubDouble, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="offline"):
        fetch(double, tmp_path, offline=True)

    folder = fetch(double, tmp_path)
    (folder / UNET).unlink()
    double.requests.clear()
    with pytest.raises(ModelUnavailable, match="not whole in the cache"):
        fetch(double, tmp_path, offline=True)
    assert double.requests == []


def test_a_branch_is_served_from_the_cache_while_the_hub_is_down(double: HubDouble, tmp_path: Path) -> None:
    first = fetch(double, tmp_path, revision="main")
    double.down = True

    assert fetch(double, tmp_path, revision="main") == first


def test_an_unknown_repository_is_named(double: HubDouble, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="nobody/nothing at revision main cannot be fetched"):
        hub.download("nobody/nothing", cache_dir=tmp_path, endpoint=double.endpoint)


def test_another_kind_of_repository_is_refused_before_anything_large(double: HubDouble, tmp_path: Path) -> None:
    del double.files["scheduler/scheduler_config.json"]

    with pytest.raises(ModelUnavailable, match=r"scheduler/scheduler_config\.json is missing"):
        fetch(double, tmp_path)
    assert double.fetched() == set()


def test_a_disk_too_small_is_refused_before_the_download(
    double: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000_000))

    with pytest.raises(ModelUnavailable, match=r"0\.00 GB are free"):
        fetch(double, tmp_path)
    assert double.fetched() == set()


def test_the_published_model_is_asked_for_at_the_pinned_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(HubDouble(source.REAL_MODEL, repository())) as double:
        folder = hub.download(source.REAL_MODEL, cache_dir=tmp_path, endpoint=double.endpoint)

    assert folder.name == "39e1979ea27be737b0278c06755e321f2b4360d5"
    assert any("39e1979ea27be737b0278c06755e321f2b4360d5" in path for _, path, _ in double.requests)


def test_auto_on_a_gpu_machine_takes_the_published_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(HubDouble(source.REAL_MODEL, repository())) as double:
        folder = source.resolve("auto", cache_dir=tmp_path, endpoint=double.endpoint, gpu_bytes=24 * 2**30)

    assert (folder.name, folder.kind, folder.variant) == (source.REAL_MODEL, "real", "fp16")


def test_auto_on_a_gpu_machine_without_weights_says_where_to_put_them(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"--model FOLDER.*--model demo"):
        source.resolve("auto", cache_dir=tmp_path, offline=True, gpu_bytes=24 * 2**30)


def test_auto_without_a_usable_gpu_takes_the_demo_model(tmp_path: Path) -> None:
    for gpu_bytes in (0, 4 * 2**30):
        assert source.resolve("auto", cache_dir=tmp_path, offline=True, gpu_bytes=gpu_bytes).kind == "demo"
