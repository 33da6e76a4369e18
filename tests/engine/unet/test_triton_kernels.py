"""The Triton kernels are right in Triton's interpreter and compile for GPUs that are not at hand."""

import json
import subprocess
import sys
from pathlib import Path

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
    with subtests.test("a UNet"):
        assert set(interpreted["unet"]["calls"]) == set(KERNELS)
        assert 0 < interpreted["unet"]["apart"] <= 1e-5  # not 0: other kernels did run


# Parameters in order: p is a tensor of the model's dtype, f one of fp32, i a number, e a real number; then constants.
SIGNATURES = {
    "channel_moments": ("pfiii", {"TOKENS": 64, "CHANNELS": 64}),
    "group_scales": ("fpppfiiiie", {"HAS_SHIFT": True, "TOKENS": 64, "CHUNKS": 128, "WIDTH": 16}),
    "scale_activate": ("pfpiii", {"SILU": True, "TOKENS": 64, "CHANNELS": 64}),
    "add_normalise": ("pppppiiie", {"ROWS": 8, "CHANNELS": 512}),
    "gate_in_place": ("ppi", {"ELEMENTS": 1024}),
    "attend_frames": ("ppppiiiiie", {"FRAMES": 16, "LANES": 64}),
}


@pytest.mark.parametrize("name", SIGNATURES)
@pytest.mark.parametrize("capability", [80, 90])
def test_a_kernel_compiles_for_a_gpu_that_is_not_there(
    name: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from i2v.engine.unet import triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(triton_kernels, name)
    kinds, constants = SIGNATURES[name]
    types = {"p": "*fp16", "f": "*fp32", "i": "i32", "e": "fp32"}
    given = [types[kind] for kind in kinds] + ["constexpr"] * len(constants)
    source = ASTSource(kernel, dict(zip(kernel.arg_names, given, strict=True)), constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert f"sm_{capability}" in compiled.asm["ptx"]
    assert len(compiled.asm["cubin"]) > 1000
