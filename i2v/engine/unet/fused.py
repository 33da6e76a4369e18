"""Which fused kernels run, and why: Triton's where the tensors are on a GPU and it has proved itself there, else none.

Each kernel is compared with the plain formula on the device at its first use, once for each dtype; one that does not
compile there or disagrees is left out with its reason. `kernels.py` and `attention.py` ask `serves(...)`;
`report` is for people.
"""

import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from i2v.engine import failures

logger = logging.getLogger(__name__)

# Relative error in the Euclidean norm that is still rounding: two of the dtype's steps; sums in another order in fp32
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """What serves a kernel's calls, and why."""

    kernel: str
    triton: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.kernel}: {'Triton' if self.triton else 'plain PyTorch'} ({self.reason})"


def triton_kernels() -> Any:
    return importlib.import_module("i2v.engine.unet.triton_kernels")


@dataclass
class Fused:
    """The kernels of one module, and what is known of them. `devices` and `load` are other ones in tests."""

    devices: tuple[str, ...] = ("cuda",)
    load: Callable[[], Any] = triton_kernels
    choices: dict[tuple[str, torch.device, torch.dtype], KernelChoice] = field(default_factory=dict)

    def serves(self, kernel: str, x: Tensor) -> bool:
        """Whether the fused kernel takes tensors like `x`; examines it when that is not known yet."""
        if x.device.type not in self.devices:
            return False
        known = self.choices.get((kernel, x.device, x.dtype))
        if known is None:
            if x.is_cuda and torch.cuda.is_current_stream_capturing():
                return False  # a graph cannot hold the examination; the warm-up before it does
            known = self.examine(kernel, x.device, x.dtype)
        return known.triton

    def examine(self, kernel: str, device: torch.device, dtype: torch.dtype) -> KernelChoice:
        """Compare the kernel with the plain formula on small tensors there, and keep the choice.

        Running out of memory and a lost device say nothing about the kernel: they are raised.
        """
        try:
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():  # where kernels are launched
                choice = judge(kernel, self.load(), device, dtype)
        except Exception as error:
            if failures.is_out_of_memory(error) or failures.is_fatal(error):
                raise
            choice = KernelChoice(kernel, False, words_of(error))
        return self.keep(choice, device, dtype)

    def keep(self, choice: KernelChoice, device: torch.device, dtype: torch.dtype) -> KernelChoice:
        self.choices[choice.kernel, device, dtype] = choice
        logger.log(logging.INFO if choice.triton else logging.WARNING, "fused kernel %s", choice)
        return choice


_current: ContextVar[Fused | None] = ContextVar("fused", default=Fused())  # noqa: B039 (one for the process is meant)


def serves(kernel: str, x: Tensor) -> bool:
    """Whether the fused `kernel` takes tensors like `x`, here and now."""
    if torch.compiler.is_compiling():
        return False  # the compiler fuses by itself, and could not trace what follows
    fused = _current.get()
    return fused is not None and fused.serves(kernel, x)


def kernels() -> Any:
    """The module whose kernels serve; only to be asked for when `serves` said so."""
    return (_current.get() or Fused()).load()


@contextmanager
def using(fused: Fused | None) -> Iterator[None]:
    """Other kernels, or with None the plain formulas alone, for calls inside the block (this thread)."""
    token = _current.set(fused)
    try:
        yield
    finally:
        _current.reset(token)


def report(device: torch.device, dtype: torch.dtype) -> list[KernelChoice]:
    """For each kernel what runs for `dtype` tensors on `device`, and why; examines what is not known yet."""
    fused = _current.get()
    if fused is None:
        return [KernelChoice(kernel, False, "plain formulas were asked for") for kernel in EXAMPLES]
    if device.type not in fused.devices:
        reason = f"{device.type}: fused kernels are for CUDA; the native ones work in cache and in place"
        return [KernelChoice(kernel, False, reason) for kernel in EXAMPLES]
    device = torch.empty(0, device=device).device  # "cuda" has a number
    return [fused.choices.get((k, device, dtype)) or fused.examine(k, device, dtype) for k in EXAMPLES]


@torch.no_grad()
def compile_for(unet: Any, device: torch.device) -> None:
    """Compile the kernels that guided steps of `unet` launch on `device`, so no job waits for it; nothing on a CPU.

    A UNet of the same config without memory takes one step at 512x512 with 16 frames: for its tensors the kernels are
    compiled and loaded, not launched. Their forms follow the widths, hardly the video's size. Where one fails, none
    serves.
    """
    fused = _current.get()
    if fused is None or device.type not in fused.devices:
        return
    examined, meta = report(device, unet.dtype), torch.device("meta")
    serving = Fused((meta.type,), fused.load, {(choice.kernel, meta, unet.dtype): choice for choice in examined})
    with meta:
        blank = type(unet)(unet.config).to(unet.dtype)
        latents, width = torch.empty(1, 4, 16, 64, 64), unet.config.cross_attention_dim
        text, image = torch.empty(2, 77, width), torch.empty(2, width)
    try:
        with using(serving):
            blank.step(blank.begin(text, image, latents, 16.0, torch.arange(1)), latents, 0)
    except Exception as error:
        if failures.is_out_of_memory(error) or failures.is_fatal(error):
            raise
        for choice in filter(lambda choice: choice.triton, examined):
            fused.keep(KernelChoice(choice.kernel, False, words_of(error)), device, unet.dtype)


def words_of(error: Exception) -> str:
    words = str(error).strip().splitlines() or [""]
    return f"it failed here: {type(error).__name__}: {words[0][:200]}"


# --- the examination


def judge(kernel: str, module: Any, device: torch.device, dtype: torch.dtype) -> KernelChoice:
    """The kernel's results on random tensors of odd sizes against the plain formula's in fp32."""
    if dtype not in BOUNDS:
        return KernelChoice(kernel, False, f"no bound is known for {dtype}")
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    worst = 0.0
    for given, expected in EXAMPLES[kernel](module, random):
        worst = max(worst, relative_error(given, expected))
    if not worst <= BOUNDS[dtype]:
        return KernelChoice(kernel, False, f"it is {worst:.1e} from the plain formula, {BOUNDS[dtype]:.0e} is rounding")
    return KernelChoice(kernel, True, f"within {worst:.1e} of the plain formula here")


def relative_error(given: Tensor, expected: Tensor) -> float:
    """In the Euclidean norm; infinite when shapes differ or a number is not finite."""
    if given.shape != expected.shape or not bool(torch.isfinite(given).all()):
        return float("inf")
    return float((given.float() - expected).norm() / expected.norm())


Random = Callable[..., Tensor]
Pairs = Iterator[tuple[Tensor, Tensor]]


def group_norms(module: Any, random: Random) -> Pairs:
    """Several chunks of tokens, groups that are no power of two wide, means far from zero, one token alone."""
    for (samples, tokens, channels), groups, silu, shifted in (
        ((2, 70, 60), 6, True, False), ((1, 200, 320), 32, False, True), ((3, 1, 96), 32, True, True)
    ):  # fmt: skip
        x, weight, bias = random(samples, tokens, channels) * 2 + 3, random(channels), random(channels)
        shift = random(channels) if shifted else None
        moved = x.float() if shift is None else x.float() + shift.float()
        expected = F.group_norm(moved.transpose(1, 2), groups, weight.float(), bias.float(), 1e-5).transpose(1, 2)
        yield (
            module.group_norm(x, groups, weight, bias, 1e-5, silu=silu, shift=shift),
            F.silu(expected) if silu else expected,
        )


def layer_norms(module: Any, random: Random) -> Pairs:
    """A residual of as many rows, and one that is repeated; both results count."""
    for rows, residual_rows, channels in ((7, 7, 320), (6, 3, 40), (5, 1, 1280)):
        x, residual, weight, bias = random(rows, channels), random(residual_rows, channels), *random(2, channels)
        total = x.float() + residual.float().repeat(rows // residual_rows, 1)
        normed = module.add_layer_norm(x, residual, weight, bias, 1e-5)  # adds in place
        yield x, total
        yield normed, F.layer_norm(total, (channels,), weight.float(), bias.float(), 1e-5)


def gates(module: Any, random: Random) -> Pairs:
    for shape in ((37, 77), (2, 3, 1024)):
        gate, value = random(*shape) * 3, random(*shape)
        expected = F.gelu(gate.float()) * value.float()
        yield module.gelu_gate(gate, value), expected


def temporal_attentions(module: Any, random: Random) -> Pairs:
    """The published shape, and frames and heads that fill no tile; q, k and v alone, and as parts of one tensor."""
    for frames, heads, head_dim, joined in ((16, 5, 64, True), (5, 3, 8, False), (32, 2, 20, True), (1, 1, 64, False)):
        q, k, v = random(2, frames, 2, 3, 3 * heads * head_dim).chunk(3, dim=-1)
        q, k, v = (q, k, v) if joined else (q.contiguous(), k.contiguous(), v.contiguous())
        rows = [x.float().flatten(2, 4).unflatten(-1, (-1, head_dim)).transpose(1, 2) for x in (q, k, v)]
        weights = (rows[0] @ rows[1].transpose(2, 3) * head_dim**-0.5).softmax(-1)
        expected = (weights @ rows[2]).transpose(1, 2).reshape(q.shape)
        yield module.temporal_attention(q, k, v, head_dim), expected


EXAMPLES: dict[str, Callable[[Any, Random], Pairs]] = {
    "group_norm": group_norms,
    "add_layer_norm": layer_norms,
    "gelu_gate": gates,
    "temporal_attention": temporal_attentions,
}
