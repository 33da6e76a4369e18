"""Every Triton kernel compiles for every GPU in the forms of a real step, fits there and spills nothing."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no package for this system")

import triton
import triton.language as tl

from i2v.engine.unet import triton_kernels
from i2v.engine.unet.choices import DEFAULT, Choices
from i2v.engine.unet.fused import EXAMPLES, Fused, KernelChoice, compile_for, using
from i2v.engine.unet.model import I2VGenXLUNet
from tests.engine.accounting import FusedAttention
from tests.engine.full_size import UNET
from tests.engine.unet import ahead_of_time
from tests.engine.unet.ahead_of_time import META, SAME_PTX, SHARED, SIZES, compiled, forms, lowered, recorded, table

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", ahead_of_time.DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_every_kernel_of_a_step_compiles_for_every_gpu_and_spills_nothing(dtype: torch.dtype, record_property) -> None:
    launched = ahead_of_time.every_form(dtype)
    kernels = {name for name, value in vars(triton_kernels).items() if isinstance(value, triton.JITFunction)}
    assert {form.name for form in launched} == kernels
    outcomes = list(compiled(launched))
    record_property("table", table({dtype: outcomes}))
    assert len(outcomes) == len(launched) * len(SHARED)
    troubles = [outcome.trouble for outcome in outcomes if outcome.trouble]
    assert not troubles, "\n".join(troubles)


def test_a_video_of_another_size_and_most_switches_need_no_further_form() -> None:
    """So none is compiled in a later job, and the table is about every size. Nothing divides these numbers."""
    usual = forms(torch.float16, SIZES[:1], DEFAULT).keys()
    others = Choices(ff_chunks=16, joined_qkv=True, fused_residual=True)
    assert forms(torch.float16, [(7, 65, 89)], others).keys() <= usual


def test_loading_a_model_compiles_what_its_steps_launch() -> None:
    """The first step of a job took 6 s more; `compile_for` runs when the weights are there."""
    with META:
        unet = I2VGenXLUNet.from_config(UNET).to(torch.float16)
    serving = {(kernel, META, torch.float16): KernelChoice(kernel, True, "nothing runs here") for kernel in EXAMPLES}
    with recorded() as found, using(Fused((META.type,), choices=serving)), FusedAttention():
        compile_for(unet, META)
    assert found.keys() == forms(torch.float16, [(16, 64, 64)], DEFAULT).keys()


def test_capabilities_that_share_their_ptx_do_so_for_one_form_of_each_kernel() -> None:
    first = {form.name: form for form in reversed(forms(torch.float16, SIZES[:1], DEFAULT).values())}
    for form in first.values():
        ptx, shared = lowered(form, 80)
        for capability, same in SAME_PTX.items():
            own, own_shared = lowered(form, capability)
            assert own.replace(f".target sm_{capability}", f".target sm_{same}") == ptx, form
            assert own_shared == shared


# --- what must be reported


@triton.jit
def keep_all(x, count, NUMBERS: tl.constexpr):  # noqa: N803 (as in triton_kernels.py)
    """One program holds all numbers until their sum is known."""
    at = tl.arange(0, NUMBERS)
    values = tl.load(x + at, mask=at < count)
    tl.store(x + at, values * tl.sum(values, 0), mask=at < count)


@triton.jit
def count_three(x, count):
    """Tiles have a power of two numbers."""
    tl.store(x + tl.arange(0, 3), count)


def test_what_a_launch_depends_on_is_derived_as_on_a_gpu() -> None:
    """Tensors begin at multiples of 16 bytes, views need not; a 1 is a constant; a large number has 64 bits."""
    x = torch.empty(64, device="meta", dtype=torch.bfloat16)
    with recorded() as found:
        for tensor, count in ((x, 48), (x[8:], 1), (x[1:], 7), (x.float(), 2**31 + 1)):
            keep_all[(1,)](tensor, count, NUMBERS=64)
        keep_all[(1,)](x[16:], 96, NUMBERS=64)  # as the first
        keep_all[(1,)](x, 48, NUMBERS=64, num_warps=1)
    assert [str(form) for form in found.values()] == [
        "keep_all(x: *bf16 by 16, count: i32 by 16, NUMBERS=64; num_warps=4)",
        "keep_all(x: *bf16 by 16, count=1, NUMBERS=64; num_warps=4)",
        "keep_all(x: *bf16, count: i32, NUMBERS=64; num_warps=4)",
        "keep_all(x: *fp32 by 16, count: i64, NUMBERS=64; num_warps=4)",
        "keep_all(x: *bf16 by 16, count: i32 by 16, NUMBERS=64; num_warps=1)",
    ]


def test_a_kernel_that_spills_is_reported() -> None:
    with recorded() as found:
        keep_all[(1,)](torch.empty(2**14, device="meta"), 2**14, NUMBERS=2**14, num_warps=1)  # 512 for each thread
    outcomes = list(compiled(found.values(), [80, 120]))
    for outcome in outcomes:
        assert outcome.code is not None
        assert outcome.code.spilled > 0
        form = "keep_all(x: *fp32 by 16, count: i32 by 16, NUMBERS=16384; num_warps=1)"
        said = f"{outcome.code.spilled} bytes of each thread are spilled to memory"
        assert outcome.trouble == f"{form} for sm_{outcome.capability}: {said}"
    assert f"| {max(outcome.code.spilled for outcome in outcomes)} |" in table({torch.float32: outcomes})


def test_a_kernel_that_does_not_compile_is_named_with_dtype_gpu_and_arguments() -> None:
    with recorded() as found:
        count_three[(1,)](torch.empty(3, device="meta", dtype=torch.float16), 5)
    (outcome,) = compiled(found.values(), [90])
    assert outcome.code is None
    form = "count_three(x: *fp16 by 16, count: i32; num_warps=4)"
    assert outcome.trouble.startswith(f"{form} for sm_90: CompilationError: ")
    assert "power of 2" in outcome.trouble
