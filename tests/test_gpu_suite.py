"""The GPU suite, rehearsed at toy size on the CPU: what its sections say, and what one costs that ends badly.

One run answers for all: each way in which a section can end happens in it, after the section has done its work.
"""

import gc
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from i2v.errors import FatalEngineError
from tests.conftest import ROOT

BENCH = ROOT / "bench"
BROKEN = {"kernels": "raise", "profile": "hang", "sizes": "kill", "upstream_compiled": "lost"}

ALONE = ["cudnn_search", "gpu_tests", "upstream_compiled", "ours_compiled", "old_pipeline"]

Lines = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the suite left. Its processes are forked from this one: to load the libraries in each takes a minute."""
    folder = tmp_path_factory.mktemp("suite")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        patch.setenv("I2V_SUITE", "toy")
        import gpu_bench
        import gpu_sections  # noqa: F401 (the suite's processes find it loaded)
        import gpu_suite

        gc.collect()
        gc.freeze()  # else each process copies what it looks through
        gpu_bench.models("toy", "cpu", gpu_bench.torch.float32)
        faults = [f"{section}={kind}" for section, kind in BROKEN.items()]
        assert gpu_suite.main([str(folder), "--no-compiler", "--start", "fork", "--break", *faults]) == 1
        gpu_bench.models.cache_clear()
    return folder


@pytest.fixture(scope="module")
def figures(folder: Path) -> Lines:
    """The lines by section, in their order."""
    found: Lines = {}
    for line in map(json.loads, (folder / "figures.jsonl").read_text().splitlines()):
        found.setdefault(line.pop("section"), []).append(line)
    return found


def of(figures: Lines, section: str, key: str) -> dict[str, dict[str, Any]]:
    """A section's lines that have `key`, by its value."""
    return {str(line[key]): line for line in figures[section] if key in line}


@pytest.mark.slow
def test_every_section_answers_and_the_broken_ones_alone_failed(figures: Lines) -> None:
    shared = ["machine", "kernels", "parity", "step", "profile", "graphs", "jobs", "peaks", "sizes", "decoding"]
    assert list(figures) == [*shared, "recovery", *ALONE]
    failed = {section: line["failed"] for section, lines in figures.items() for line in lines if "failed" in line}
    assert set(failed) == set(BROKEN)
    assert failed["kernels"].endswith("RuntimeError: broken on purpose\n")
    assert failed["profile"] == "it hung and was killed"
    assert failed["sizes"] == "its process died: exit code -9"
    assert "an illegal memory access" in failed["upstream_compiled"]
    whole = [section for section, lines in figures.items() if "took_s" in lines[-1]]
    assert set(figures) - set(whole) == {"profile", "sizes"}  # which could not say so any more
    assert not [line for lines in figures.values() for line in lines if "error" in line]


@pytest.mark.slow
def test_figures_from_before_a_fault_are_kept_and_the_log_says_where_it_hung(figures: Lines, folder: Path) -> None:
    assert list(of(figures, "profile", "what")) == ["ours", "diffusers"]
    assert len(of(figures, "sizes", "what")) == 2
    assert re.search(r"Timeout .*\n(.*\n)* +File .*gpu_suite.py.* in break_down", figures["profile"][-1]["log"])
    assert all((folder / f"profile_{side}.txt").read_text().count("aten::") > 50 for side in ("ours", "diffusers"))


@pytest.mark.slow
def test_each_section_says_its_figures(figures: Lines, subtests: pytest.Subtests) -> None:
    with subtests.test("machine"):
        bounds = of(figures, "machine", "bounds").popitem()[1]["bounds"]
        assert bounds["step_tflop"] < bounds["upstream_step_tflop"]
        assert bounds["peak_gib"] < bounds["upstream_peak_gib"]
    with subtests.test("kernels"):
        verdicts = [line["verdicts"] for line in of(figures, "kernels", "dtype").values()]
        assert [len(said) for said in verdicts] == [4, 4, 4]
        assert all("plain PyTorch (cpu: " in verdict for said in verdicts for verdict in said)
    with subtests.test("parity"):
        errors = of(figures, "parity", "dtype")
        for dtype, bound in (("float32", 1e-5), ("float16", 1e-2), ("bfloat16", 1e-1)):
            line = errors[f"torch.{dtype}"]
            assert 0 < line["ours"] < bound
            assert 0 < line["diffusers"] < bound
    with subtests.test("step"):
        steps = of(figures, "step", "what")
        assert len(steps) == 12  # three sides, nine switches
        assert all(line["ms"] >= line["queued_ms"] > 0 for line in steps.values())
        apart = [line["apart"] for line in steps.values() if "apart" in line]
        assert len(apart) == 9
        assert max(apart) < 1e-5
    with subtests.test("cuDNN's search"):
        assert list(of(figures, "cudnn_search", "what")) == ["ours", "diffusers"]
    with subtests.test("decoding"):
        assert list(of(figures, "decoding", "what")) == ["channels last", "plain"]
    with subtests.test("graphs"):
        assert {line["run"] for line in figures["graphs"][:-1]} == {1, 2}
    with subtests.test("jobs"):
        jobs = of(figures, "jobs", "what")
        loops = [f"{side}, loop" for side in ("ours exact", "ours fast", "ours turbo", "diffusers")]
        assert list(jobs) == [*loops, "ours whole"]
        assert all(seconds > 0 for seconds in jobs["ours whole"]["stages"].values())
    with subtests.test("peaks"):
        assert of(figures, "peaks", "predicted").popitem()[1]["predicted"] > 0
    with subtests.test("recovery"):
        found = {key: value for line in figures["recovery"] for key, value in line.items()}
        assert found["resident"] == "OutOfMemory"
        assert found["left_behind"] == 0
        assert found["next_job_frames"] == 2
        assert found["product"].startswith("it fitted: all resident, one guidance pass, feed-forward in 4")
    with subtests.test("GPU tests"):
        assert figures["gpu_tests"][-2]["tests"]["skipped"] == len(of(figures, "gpu_tests", "test")) >= 6
    with subtests.test("compiled"):
        assert of(figures, "ours_compiled", "compile_s")
        assert of(figures, "upstream_compiled", "ms")


def test_sections_that_no_time_is_left_for_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCH)
    monkeypatch.setenv("TOTAL_S", "1")
    import gpu_suite

    assert gpu_suite.main([str(tmp_path)]) == 0
    lines = list(map(json.loads, (tmp_path / "figures.jsonl").read_text().splitlines()))
    assert {line["section"]: line["skipped"] for line in lines} == dict.fromkeys(gpu_suite.LIMITS, "no time is left")
    assert capsys.readouterr().out.endswith(f"failed: none; skipped: {', '.join(sorted(gpu_suite.LIMITS))}\n")


@pytest.mark.slow
def test_a_gpu_that_is_lost_within_a_job_is_known_as_lost(folder: Path) -> None:
    """The engine has an error of its own for it."""
    from gpu_bench import Spoiled, is_lost

    lost = [
        FatalEngineError("the GPU's context is lost"),
        RuntimeError("CUDA error: an illegal memory access"),
        Spoiled(),
    ]
    assert all(map(is_lost, lost))
    assert not is_lost(RuntimeError("CUDA out of memory"))


def test_the_script_finds_its_python_and_hands_its_options_on() -> None:
    command = ["bash", str(BENCH / "gpu_suite.sh"), "--help"]
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--no-compiler" in done.stdout


def test_nothing_that_the_suite_needs_is_missing_among_the_wheels() -> None:
    """Such a machine has torch, triton, transformers and pytest, each with what it needs."""

    def needs(names: set[str]) -> set[str]:
        """Of these distributions and all that they need, the names, as far as they are installed here."""
        found: set[str] = set()
        while names:
            name = canonicalize_name(names.pop())
            if name in found:
                continue
            found.add(name)
            for line in metadata.requires(name) or []:
                one = Requirement(line)
                if one.marker is None or one.marker.evaluate({"extra": ""}):
                    names.add(one.name)
        return found

    there = needs({"torch", "transformers", "pytest"})
    listed = {
        canonicalize_name(line.partition("==")[0]) for line in (BENCH / "gpu_wheels.txt").read_text().splitlines()
    }
    assert needs({"accelerate", "diffusers", "pillow", "psutil", "pydantic"}) - there - listed == set()


def test_the_wheels_have_the_versions_of_the_constraints() -> None:
    def pins(file: Path) -> dict[str, str]:
        lines = [line.partition(";")[0].strip() for line in file.read_text().splitlines()]
        pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
        return {name.lower().replace("_", "-"): version for name, version in pairs}

    known = pins(ROOT / "constraints.txt")
    listed = pins(BENCH / "gpu_wheels.txt")
    assert listed == {name: known[name] for name in listed}
    old = pins(BENCH / "gpu_wheels_reference.txt")
    assert set(old) == {"diffusers", "transformers", "tokenizers", "huggingface-hub"}
    assert all(old[name] != known[name] for name in old)
