"""A fused kernel runs only where it has proved itself, and the report says what runs and why."""

import types
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from i2v.engine.unet import fused, kernels
from i2v.engine.unet.fused import EXAMPLES, Fused
from tests.engine.unet.unet_pairs import CONFIGS, difference, inputs, own, upstream

CPU = torch.device("cpu")


class Module:
    """Kernels with the fused signatures, made of plain formulas; notes its calls. `wrong` breaks some of them."""

    def __init__(self, **wrong: Any) -> None:
        self.calls: list[str] = []
        self.loads = 0
        self.wrong = wrong

    def load(self) -> "Module":
        self.loads += 1
        return self

    def answer(self, kernel: str, result: Tensor) -> Tensor:
        self.calls.append(kernel)
        spoil = self.wrong.get(kernel)
        return result if spoil is None else spoil(result)

    def group_norm(
        self, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, silu: bool, shift: Tensor | None
    ) -> Tensor:
        moved = (x.float() if shift is None else x.float() + shift.float()).transpose(1, 2)
        y = F.group_norm(moved, groups, weight.float(), bias.float(), eps).transpose(1, 2)
        return self.answer("group_norm", (F.silu(y) if silu else y).to(x.dtype).contiguous())

    def add_layer_norm(self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        x += residual.repeat(x.shape[0] // residual.shape[0], *[1] * (x.dim() - 1))
        return self.answer("add_layer_norm", F.layer_norm(x, x.shape[-1:], weight, bias, eps))

    def gelu_gate(self, gate: Tensor, value: Tensor) -> Tensor:
        return self.answer("gelu_gate", gate.copy_(F.gelu(gate) * value))

    def temporal_attention(self, q: Tensor, k: Tensor, v: Tensor, head_dim: int) -> Tensor:
        rows = [x.flatten(2, -2).unflatten(-1, (-1, head_dim)).permute(0, 2, 3, 1, 4) for x in (q, k, v)]
        mixed = F.scaled_dot_product_attention(*rows).permute(0, 3, 1, 2, 4).reshape(q.shape)
        return self.answer("temporal_attention", mixed)


def on_the_cpu(module: Module) -> Fused:
    return Fused(devices=("cpu",), load=module.load)


def raising(error: Exception) -> Any:
    def spoil(_: Tensor) -> Tensor:
        raise error

    return spoil


@pytest.mark.parametrize("kernel", EXAMPLES)
def test_a_good_kernel_is_examined_once_for_each_dtype_and_serves(kernel: str) -> None:
    module = Module()
    chosen = on_the_cpu(module)
    assert chosen.serves(kernel, torch.zeros(1))
    examined = len(module.calls)
    assert examined > 1
    assert chosen.serves(kernel, torch.zeros(1))
    assert len(module.calls) == examined
    assert chosen.serves(kernel, torch.zeros(1, dtype=torch.float16))
    assert len(module.calls) == 2 * examined


@pytest.mark.parametrize("kernel", EXAMPLES)
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda y: y * 1.001, "from the plain formula"),
        (lambda y: y[:1], "from the plain formula"),
        (lambda y: y.fill_(float("nan")), "from the plain formula"),
        (raising(RuntimeError("no C compiler was found\nsecond line")), "RuntimeError: no C compiler was found"),
    ],
    ids=["a little off", "wrong shape", "not finite", "does not compile"],
)
def test_a_bad_kernel_is_left_out_with_its_reason(
    kernel: str, spoil: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = Module(**{kernel: spoil})
    with fused.using(on_the_cpu(module)):
        assert not fused.serves(kernel, torch.zeros(1))
        examined = len(module.calls)
        assert not fused.serves(kernel, torch.zeros(1))
        report = {choice.kernel: choice for choice in fused.report(CPU, torch.float32)}
    assert module.calls.count(kernel) <= examined
    assert reason in report[kernel].reason
    assert [name for name, choice in report.items() if not choice.triton] == [kernel]
    assert f"{kernel}: plain PyTorch ({report[kernel].reason})" in caplog.text


@pytest.mark.parametrize("words", ["CUDA out of memory", "CUDA error: an illegal memory access was encountered"])
def test_lost_memory_and_a_lost_device_say_nothing_about_a_kernel(words: str) -> None:
    chosen = on_the_cpu(
        Module(gelu_gate=raising(torch.OutOfMemoryError(words) if "out" in words else RuntimeError(words)))
    )
    with pytest.raises(RuntimeError, match=words.split(":")[0]):
        chosen.serves("gelu_gate", torch.zeros(1))
    assert not chosen.choices


def test_a_unet_calls_every_fused_kernel_and_gives_the_same() -> None:
    config = CONFIGS["published"]
    unet, job = own(upstream(config)), inputs(config, 3, 4, 5)
    module = Module()
    with torch.no_grad():
        state = job.begin(unet)
        expected = unet.step(state, job.latents, 1)
        with fused.using(on_the_cpu(module)):
            result = unet.step(state, job.latents, 1)
    assert set(module.calls) == set(EXAMPLES)
    assert difference(result, expected) <= 1e-5


def test_kernels_are_compiled_for_a_whole_step_before_the_first_one() -> None:
    """On tensors without memory, which `launch` compiles for; the first step of a job took 6 s more."""
    unet, module, without_memory = own(upstream(CONFIGS["published"])), Module(), []

    def note(result: Tensor) -> Tensor:
        without_memory.append(result.is_meta)
        return result

    module.wrong = dict.fromkeys(EXAMPLES, note)
    with fused.using(on_the_cpu(module)):
        examined = fused.report(CPU, torch.float32)
        module.calls.clear()
        without_memory.clear()
        fused.compile_for(unet, CPU)
        assert set(module.calls) == set(EXAMPLES)
        assert all(without_memory)
        assert fused.report(CPU, torch.float32) == examined
    assert not any(parameter.is_meta for parameter in unet.parameters())


def test_kernels_that_do_not_compile_for_a_step_are_left_out() -> None:
    def fails_to_compile(result: Tensor) -> Tensor:
        if result.is_meta:
            raise RuntimeError("PassManager::run failed")
        return result

    with fused.using(on_the_cpu(Module(gelu_gate=fails_to_compile))):
        assert all(choice.triton for choice in fused.report(CPU, torch.float32))
        fused.compile_for(own(upstream(CONFIGS["published"])), CPU)
        report = fused.report(CPU, torch.float32)
    assert not any(choice.triton for choice in report)
    assert all("PassManager::run failed" in choice.reason for choice in report)


def test_a_kernel_that_was_left_out_before_keeps_its_own_reason() -> None:
    def fails_to_compile(result: Tensor) -> Tensor:
        if result.is_meta:
            raise RuntimeError("PassManager::run failed")
        return result

    with fused.using(on_the_cpu(Module(gelu_gate=fails_to_compile, group_norm=lambda y: y * 0))):
        fused.compile_for(own(upstream(CONFIGS["published"])), CPU)
        reasons = {choice.kernel: choice.reason for choice in fused.report(CPU, torch.float32)}
    assert "from the plain formula" in reasons.pop("group_norm")
    assert all("PassManager::run failed" in reason for reason in reasons.values())


def test_a_kernel_is_examined_on_the_card_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches go to the current one."""
    second, current = torch.device("cuda", 1), []
    cuda = mock.MagicMock()
    cuda.device.return_value.__enter__.side_effect = lambda: current.append(cuda.device.call_args.args[0])
    cuda.device.return_value.__exit__.side_effect = lambda *_: current.clear()
    monkeypatch.setattr(torch, "cuda", cuda)
    seen: list[list[torch.device]] = []

    def judge(kernel: str, *_: Any) -> fused.KernelChoice:
        seen.append(list(current))
        return fused.KernelChoice(kernel, True, "in a test")

    monkeypatch.setattr(fused, "judge", judge)
    Fused(load=Module().load).examine("gelu_gate", second, torch.float32)
    assert seen == [[second]]


def test_a_unet_with_a_bad_kernel_runs_on_the_plain_formula() -> None:
    config = CONFIGS["published"]
    unet, job = own(upstream(config)), inputs(config, 3, 4, 5)
    with torch.no_grad():
        state = job.begin(unet)
        expected = unet.step(state, job.latents, 1)
        with fused.using(on_the_cpu(Module(group_norm=lambda y: y * 0, gelu_gate=raising(RuntimeError("no"))))):
            assert difference(unet.step(state, job.latents, 1), expected) <= 1e-5


def test_on_a_cpu_nothing_is_loaded_and_the_report_says_so() -> None:
    module = Module()
    with fused.using(Fused(load=module.load)):
        kernels.group_norm(torch.randn(1, 2, 3, 3, 4), torch.nn.GroupNorm(2, 4), over_frames=True)
        report = fused.report(CPU, torch.float32)
    assert module.loads == 0
    assert {choice.kernel for choice in report} == set(EXAMPLES)
    assert all(str(choice).startswith(f"{choice.kernel}: plain PyTorch (cpu: ") for choice in report)


def test_plain_formulas_can_be_asked_for() -> None:
    module = Module()
    with fused.using(on_the_cpu(module)), fused.using(None):
        assert not fused.serves("gelu_gate", torch.zeros(1))
        assert "asked for" in fused.report(CPU, torch.float32)[0].reason
    assert module.calls == []


def test_under_the_compiler_the_plain_formulas_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    module = Module()
    with fused.using(on_the_cpu(module)):
        assert not fused.serves("gelu_gate", torch.zeros(1))
    assert module.calls == []


def test_an_unknown_dtype_is_not_served() -> None:
    choice = on_the_cpu(Module()).examine("gelu_gate", CPU, torch.float64)
    assert not choice.triton
    assert "float64" in choice.reason


def test_while_a_graph_is_captured_nothing_is_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    """An examination reads numbers back, which a capture forbids; what is known already serves there too."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    module = Module()
    chosen = Fused(devices=("cuda",), load=module.load)
    x = types.SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float16, is_cuda=True)
    assert not chosen.serves("gelu_gate", x)  # type: ignore[arg-type]
    assert module.calls == []
    chosen.choices["gelu_gate", x.device, x.dtype] = fused.KernelChoice("gelu_gate", True, "known")
    assert chosen.serves("gelu_gate", x)  # type: ignore[arg-type]
