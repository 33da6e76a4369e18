"""The GPU suite runs: rehearsed at toy size on the CPU, so that a GPU's minutes are not spent on its mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
def test_the_gpu_suite_runs_at_toy_size_and_every_part_reports(tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    environment = os.environ | {"I2V_SUITE": "toy", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [ROOT / "bench" / "gpu_suite.sh", out],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    parts = {line["part"]: line for line in map(json.loads, out.read_text().splitlines())}
    assert list(parts) == ["parity", "kernels", "engine", "recovery"]
    assert all(part["status"] == 0 for part in parts.values())
    assert parts["parity"]["result"]["float32"] <= 1e-5
    assert parts["recovery"]["result"]["large"] == "OutOfMemory"
    assert parts["recovery"]["result"]["next_job_frames"] == 2
    assert parts["recovery"]["result"]["recovers"].startswith(
        "it fitted: all resident, one guidance pass, feed-forward in 4"
    )
    assert all(len(verdicts) == 4 for verdicts in parts["kernels"]["result"].values())
    contest = parts["engine"]["result"]["jobs"][0]
    ours = {f"ours {kind}" for kind in ("exact", "fast", "turbo", "exact, plain kernels", "exact, as served")}
    assert set(contest["medians"]) == {"upstream eager"} | ours
    assert contest["left_out"] == {}
    assert contest["forms"]["ours exact"]["used"] == contest["forms"]["ours exact, as served"]["used"] == []
    assert all("plain PyTorch (cpu: " in line for line in parts["engine"]["result"]["kernels"])
    assert run.stdout.endswith(out.read_text())
    assert all(seconds > 0 for seconds in contest["medians"].values())
    assert contest["bounds"]["step_tflop"] < contest["bounds"]["upstream_step_tflop"]
    assert contest["bounds"]["peak_gib"] < contest["bounds"]["upstream_peak_gib"] / 2
