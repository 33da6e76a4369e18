"""Compiles the Triton kernels for GPUs that are not at hand, in every form that a guided step at full size launches.

`forms` runs the published UNet on the meta device through the product's own wrappers. Triton's launcher derives each
form (types, constants, what 16 divides) as it does on a GPU, but hands it over instead of compiling it. `compiled` goes
the rest of Triton's way to machine code; no cache is read or written. For test_ahead_of_time.py and bench/kernels.py.
"""

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from triton import JITFunction, knobs
from triton._C.libtriton import ir  # the context that the stages of a compilation share; it has no public name
from triton.backends.compiler import GPUTarget, Language
from triton.compiler import ASTSource, make_backend
from triton.runtime.driver import driver

from i2v.engine.unet import choices
from i2v.engine.unet.choices import Choices
from i2v.engine.unet.fused import EXAMPLES, Fused, KernelChoice, using
from i2v.engine.unet.model import I2VGenXLUNet
from tests.engine.accounting import FusedAttention
from tests.engine.full_size import UNET

META = torch.device("meta")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SIZES = ((16, 32, 32), (16, 64, 64), (32, 88, 160))  # latents of 256x256x16, 512x512x16 and 1280x704x32: frames, h, w

# Compute capability -> bytes of shared memory that one program may have (CUDA C++ Programming Guide, "Technical
# Specifications per Compute Capability").
SHARED = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}

# Down to PTX, Triton makes the same of a kernel for 8.6 and 8.9 as for 8.0, but for the line that names the target: its
# passes ask for the generation, and for 8.9 in fp8 alone. (Compared for all forms, 2026-11-28; a test compares some.)
SAME_PTX = {86: 80, 89: 80}

LAUNCH_OPTIONS = ("num_warps", "num_ctas", "num_stages", "maxnreg", "enable_fp_fusion", "launch_pdl")


# --- what a step launches


@dataclass(frozen=True)
class Form:
    """A kernel with all that its machine code depends on; parameters are numbered, as Triton does."""

    kernel: JITFunction
    types: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], list[Any]]  # [["tt.divisibility", 16]] or nothing
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.__name__

    def __str__(self) -> str:
        arguments = [
            f"{name}={self.constants[number,]}"
            if (number,) in self.constants
            else f"{name}: {kind}" + " by 16" * bool(self.attributes.get((number,)))
            for number, (name, kind) in enumerate(self.types.items())
        ]
        return f"{self.name}({', '.join(arguments)}; num_warps={self.options['num_warps']})"


class NoDevice:
    """Stands where Triton looks for a GPU. Its number is no device's, so a real one's compiled kernels stay apart."""

    def get_current_device(self) -> int:
        return -1

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 80, 32)


@contextmanager
def recorded() -> Iterator[dict[tuple[str, str], Form]]:
    """Launches inside the block are not run: their forms are gathered, by the kernel and Triton's own key of a form."""
    found: dict[tuple[str, str], Form] = {}

    def record(*, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        if (fn.name, key) not in found:
            asked = json.loads(compile["specialization_data"])["options"]
            options = {name: asked[name] for name in LAUNCH_OPTIONS}
            types, constants, attributes = compile["signature"], compile["constants"], compile["configs"][0]
            found[fn.name, key] = Form(fn.jit_function, types, constants, attributes, options)
        return True  # to Triton: somebody else compiles it, there is nothing to launch

    driver.set_active(NoDevice())
    knobs.runtime.jit_cache_hook = record
    try:
        yield found
    finally:
        knobs.runtime.jit_cache_hook = None
        driver.set_active(None)  # Triton looks for a GPU again when it needs one


@torch.no_grad()
def forms(dtype: torch.dtype, sizes: Iterable[tuple[int, int, int]], chosen: Choices) -> dict[tuple[str, str], Form]:
    """Of all kernels in `begin` and one guided `step` of the published UNet at `sizes` (frames, height, width)."""
    with META:
        unet = I2VGenXLUNet.from_config(UNET).to(dtype)
    serving = {(kernel, META, dtype): KernelChoice(kernel, True, "nothing runs here") for kernel in EXAMPLES}
    text, image = torch.empty(2, 77, 1024, device=META), torch.empty(2, 1024, device=META)
    with choices.using(chosen), recorded() as found, using(Fused((META.type,), choices=serving)), FusedAttention():
        for size in sizes:
            latents = torch.empty(1, 4, *size, device=META)
            state = unet.begin(text, image, latents, 16.0, torch.arange(50, device=META))
            unet.step(state, latents, 1)
    return found


def every_form(dtype: torch.dtype) -> list[Form]:
    """At three sizes, and with the switches that launch kernels in another way."""
    switched = forms(dtype, SIZES[:1], Choices(norm_chunks=4, joined_qkv=True))
    return list((forms(dtype, SIZES, choices.DEFAULT) | switched).values())


# --- machine code


@dataclass(frozen=True)
class Code:
    """What a kernel's machine code takes: registers of a thread, bytes of a program, bytes of a thread in memory."""

    registers: int
    shared: int
    spilled: int


@contextmanager
def compiling() -> Iterator[io.StringIO]:
    """Triton tells what ptxas says, and leaves line numbers out: they take a sixth of the time and change no figure."""
    said = io.StringIO()
    with knobs.compilation.scope(), knobs.nvidia.scope(), redirect_stdout(said):
        knobs.compilation.disable_line_info = True
        knobs.nvidia.dump_ptxas_log = True
        yield said


def stages(form: Form, capability: int) -> tuple[Any, Any, dict[str, Callable[..., Any]]]:
    """Triton's backend for that GPU, its options, and its stages by name: ttir, ttgir, llir, ptx, cubin."""
    backend = make_backend(GPUTarget("cuda", capability, 32))
    options = backend.parse_options(form.options)
    found: dict[str, Callable[..., Any]] = {}
    backend.add_stages(found, options, Language.TRITON)
    return backend, options, found


def lowered(form: Form, capability: int) -> tuple[str, int]:
    """The kernel's PTX, and the bytes of shared memory that a launch asks for."""
    backend, options, steps = stages(form, capability)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    source = ASTSource(form.kernel, form.types, form.constants, form.attributes)
    functions, modules = backend.get_codegen_implementation(options), backend.get_module_map()
    code: Any = source.make_ir(backend.target, options, functions, modules, context)
    metadata: dict[str, Any] = {}
    with compiling():
        for name in ("ttir", "ttgir", "llir", "ptx"):
            code = steps[name](code, metadata)
    return code, metadata["shared"]


def assembled(form: Form, capability: int, ptx: str) -> tuple[int, int]:
    """Registers and spilled bytes of a thread, as ptxas says them when Triton calls it."""
    ptx = re.sub(r"^\.target sm_\d+", f".target sm_{capability}", ptx, flags=re.MULTILINE)
    with compiling() as said:
        stages(form, capability)[2]["cubin"](ptx, {})
    registers = re.search(r"Used (\d+) registers", said.getvalue())
    spilled = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said.getvalue())
    if registers is None or spilled is None:
        raise ValueError(f"ptxas said something else: {said.getvalue()}")
    return int(registers[1]), max(map(int, spilled.groups()))


@dataclass(frozen=True)
class Outcome:
    """A form on a GPU: its code, if there is any, and why it cannot be used ("" when it can)."""

    form: Form
    capability: int
    code: Code | None
    trouble: str


def compiled(forms: Iterable[Form], capabilities: Iterable[int] = tuple(SHARED)) -> Iterator[Outcome]:
    """Every form for every GPU. Nothing is raised for a form that does not compile."""
    for form in forms:
        ptx: dict[int, tuple[str, int]] = {}
        for capability in capabilities:
            code, source = None, SAME_PTX.get(capability, capability)
            try:
                ptx[source] = ptx.get(source) or lowered(form, source)
                text, shared = ptx[source]
                registers, spilled = assembled(form, capability, text)
                code = Code(registers, shared, spilled)
                trouble = trouble_of(code, capability)
            except Exception as error:  # a compiler may raise anything
                trouble = f"{type(error).__name__}: {error}"
            yield Outcome(form, capability, code, trouble and f"{form} for sm_{capability}: {trouble}")


def trouble_of(code: Code, capability: int) -> str:
    if code.spilled:
        return f"{code.spilled} bytes of each thread are spilled to memory"
    if code.shared > SHARED[capability]:
        return f"{code.shared} bytes of shared memory, the GPU has {SHARED[capability]}"
    return ""


def table(outcomes: Mapping[torch.dtype, list[Outcome]]) -> str:
    """Markdown: the most that any form of a kernel takes, a line for each kernel and dtype, the GPUs side by side."""
    gpus = sorted({outcome.capability for found in outcomes.values() for outcome in found})
    registers = f"registers on sm_{', '.join(map(str, gpus))}"
    rows = [["kernel", "dtype", "forms", registers, "shared, bytes", "spilled, bytes"], ["---"] * 6]
    for dtype, found in outcomes.items():
        for name in sorted({outcome.form.name for outcome in found}):
            own = [outcome for outcome in found if outcome.form.name == name]
            codes = [(outcome.capability, outcome.code) for outcome in own if outcome.code is not None]
            most = [max((code.registers for c, code in codes if c == gpu), default="none") for gpu in gpus]
            shared = max((code.shared for _, code in codes), default="none")
            spilled = max((code.spilled for _, code in codes), default="none")
            count = len(own) // len(gpus)
            row = [name, str(dtype).removeprefix("torch."), count, ", ".join(map(str, most)), shared, spilled]
            rows.append(list(map(str, row)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
