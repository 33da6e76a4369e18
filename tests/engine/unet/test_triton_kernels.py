"""The Triton kernels are right in Triton's interpreter. (test_ahead_of_time.py compiles them.)"""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

triton = pytest.importorskip("triton", reason="Triton has no package for this system")

KERNELS = ("group_norm", "add_layer_norm", "gelu_gate", "temporal_attention")


# Attention in bfloat16 is for a GPU alone to tell: see interpreted.py.
CASES = [(kernel, dtype) for kernel in KERNELS for dtype in ("float32", "float16")]
CASES += [(kernel, "bfloat16") for kernel in KERNELS if kernel != "temporal_attention"]


@pytest.mark.slow
def test_interpreted_kernels_equal_the_plain_formulas_alone_and_in_a_unet(subtests: pytest.Subtests) -> None:
    command = [sys.executable, "-m", "tests.engine.unet.interpreted"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    interpreted = json.loads(done.stdout)
    for kernel, dtype in CASES:
        with subtests.test(kernel=kernel, dtype=dtype):
            assert interpreted["examined"][f"{kernel} {dtype}"].startswith(f"{kernel}: Triton (within ")
    for chunks, verdict in interpreted["in larger chunks"].items():
        with subtests.test("group_norm in larger chunks", chunks=chunks):
            assert verdict.startswith("group_norm: Triton (within ")
    for what in ("unet", "layer"):  # as it is, and with other choices
        with subtests.test(what):
            assert set(interpreted[what]["calls"]) == set(KERNELS)
            assert 0 < interpreted[what]["apart"] <= 1e-5  # not 0: other kernels did run
