"""Each choice gives the same result by other calls, and torch's own switches are given back."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from i2v.engine import weights
from i2v.engine.engine import Engine
from i2v.engine.paging import hold, homes_of
from i2v.engine.unet import choices, kernels
from i2v.engine.unet.choices import DEFAULT, Choices
from i2v.engine.unet.layers import Attention, ResnetBlock, StepInputs, Transformer, as_one
from i2v.engine.unet.model import I2VGenXLUNet
from tests.engine.unet.unet_pairs import CONFIGS, ONE_LEVEL, alone, difference, inputs

LIMIT = 1e-5
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "mkldnn::_linear_pointwise")
OTHER = Choices(ff_chunks=5, joined_qkv=True, fused_residual=True)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class Calls(TorchDispatchMode):
    """How often each operation ran."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[operation._schema.name] += 1
        return operation(*args, **(kwargs or {}))

    @property
    def products(self) -> int:
        return sum(self.counts[name] for name in PRODUCTS)


class Launches:
    """Stands in for a Triton kernel: notes the grid of each launch, and what the kernel was given."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, ...]] = []
        self.given: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        self.grids.append(grid)
        return lambda *given, **constants: self.given.append(given)


# --- what each choice changes


def sdp_flags(_: pytest.MonkeyPatch) -> tuple[bool, bool]:
    return torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()


def benchmark_flag(_: pytest.MonkeyPatch) -> bool:
    return torch.backends.cudnn.benchmark


def products_of_a_feed_forward(_: pytest.MonkeyPatch) -> int:
    x = torch.randn(2, 6, 4)
    with Calls() as calls:
        kernels.feed_forward(x, nn.Linear(4, 32), nn.Linear(16, 4), x.clone())
    return calls.products


def programs_of_a_norm(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    pytest.importorskip("triton", reason="Triton has no package for this system")
    from i2v.engine.unet import triton_kernels

    moments, scales, activate = Launches(), Launches(), Launches()
    monkeypatch.setattr(triton_kernels, "channel_moments", moments)
    monkeypatch.setattr(triton_kernels, "group_scales", scales)
    monkeypatch.setattr(triton_kernels, "scale_activate", activate)
    triton_kernels.group_norm(torch.zeros(2, 300, 64), 4, torch.zeros(64), torch.zeros(64), 1e-5, silu=True)
    return moments.grids + scales.grids + activate.grids


def products_of_a_self_attention(_: pytest.MonkeyPatch) -> int:
    attention = Attention(16, 2, 8)
    attention.arrange()
    with Calls() as calls:
        attention.spatial(torch.randn(1, 2, 3, 3, 16))
    return calls.products


def products_into_the_residual(_: pytest.MonkeyPatch) -> int:
    unet, job = alone(ONE_LEVEL), inputs(ONE_LEVEL, 2, 4, 4)
    state = job.begin(unet)
    with torch.backends.mkldnn.flags(enabled=False), Calls() as calls:
        unet.step(state, job.latents, 1)
    return calls.counts["aten::addmm_"]


def sums_of(unet: I2VGenXLUNet) -> int:
    blocks = [m for m in unet.modules() if isinstance(m, Transformer)]
    shortcuts = [m for m in unet.modules() if isinstance(m, ResnetBlock) and m.conv_shortcut is not None]
    return len(blocks) + len(shortcuts)


CHANGES: dict[str, tuple[object, Callable[[pytest.MonkeyPatch], object], object, object]] = {
    # field: another value, what is looked at, what it is by default, what it is with that value
    "attention": ("flash", sdp_flags, (True, True), (False, True)),
    "cudnn_benchmark": (True, benchmark_flag, False, True),
    "ff_chunks": (4, products_of_a_feed_forward, 3, 12),
    "norm_chunks": (2, programs_of_a_norm, [(10, 1), (2, 4), (10, 1)], [(6, 1), (2, 4), (6, 1)]),
    "joined_qkv": (True, products_of_a_self_attention, 3, 1),
    "fused_residual": (True, products_into_the_residual, 0, sums_of(alone(ONE_LEVEL))),
}


@pytest.mark.parametrize("field", [field.name for field in fields(Choices)])
def test_each_choice_changes_what_is_called(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value, look, by_default, with_it = CHANGES[field]
    with choices.using(DEFAULT):
        assert look(monkeypatch) == by_default
    with choices.using(Choices(**{field: value})):
        assert look(monkeypatch) == with_it


def test_cudnn_attention_is_chosen_by_forbidding_flash() -> None:
    with choices.using(Choices(attention="cudnn")):
        assert (torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()) == (True, False)


def test_the_fused_temporal_attention_is_given_the_parts_of_one_product_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton", reason="Triton has no package for this system")
    from i2v.engine.unet import triton_kernels

    monkeypatch.setattr(triton_kernels, "attend_frames", Launches())
    parts = torch.randn(1, 2, 3, 4, 48).chunk(3, dim=-1)
    result = triton_kernels.temporal_attention(*parts, 8)
    q, k, v, out, frames, pixels, stride, channels, *_ = triton_kernels.attend_frames.given[0]
    assert all(given is part for given, part in zip((q, k, v), parts, strict=True))
    assert (frames, pixels, stride, channels) == (2, 12, 48, 16)
    assert out is result
    assert result.is_contiguous()


# --- the same results


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS.keys())
def job(request: pytest.FixtureRequest) -> tuple[I2VGenXLUNet, Any, Any, Tensor]:
    with torch.no_grad():
        unet, given = alone(request.param), inputs(request.param, 3, 6, 5)
        state = given.begin(unet)
        return unet, given, state, unet.step(state, given.latents, 1)


@pytest.mark.parametrize("onednn", [True, False], ids=["onednn", "plain"])
@pytest.mark.parametrize(
    "chosen",
    [Choices(ff_chunks=5), Choices(joined_qkv=True), Choices(fused_residual=True), OTHER],
    ids=["ff_chunks", "joined_qkv", "fused_residual", "all"],
)
def test_no_choice_changes_the_result(job: Any, chosen: Choices, onednn: bool) -> None:
    unet, given, state, expected = job
    before = [parameter.clone() for parameter in unet.parameters()]
    with choices.using(chosen), torch.backends.mkldnn.flags(enabled=onednn):
        first = unet.step(state, given.latents, 1)
        assert torch.equal(unet.step(state, given.latents, 1), first)  # nothing that lasts was written over
    assert difference(first, expected) <= LIMIT
    assert all(torch.equal(a, b) for a, b in zip(before, unet.parameters(), strict=True))


def test_a_sum_that_would_go_to_a_copy_is_refused() -> None:
    total = torch.zeros(2, 3, 4).transpose(0, 1)
    with pytest.raises(RuntimeError, match="view"):
        kernels.add_product(total, torch.ones(3, 2, 5), torch.ones(4, 5))


def test_a_kernel_for_tensors_without_memory_is_compiled_and_loaded_but_not_launched() -> None:
    pytest.importorskip("triton", reason="Triton has no package for this system")
    from i2v.engine.unet.triton_kernels import launch

    kernel = mock.MagicMock()
    loaded = mock.PropertyMock()
    type(kernel.warmup.return_value).run = loaded
    x = torch.empty(3, device="meta")
    launch(kernel, (2,), x, 5, TOKENS=64)
    kernel.warmup.assert_called_once_with(x, 5, grid=(2,), TOKENS=64)
    loaded.assert_called_once_with()
    kernel.__getitem__.assert_not_called()
    launch(kernel, (2,), torch.empty(3), 5, TOKENS=64)
    kernel.__getitem__.assert_called_once_with((2,))
    assert kernel.warmup.call_count == 1


def test_a_feed_forward_of_pieces_adds_to_the_residual_in_place() -> None:
    x, residual, proj, out = torch.randn(1, 3000, 4), torch.randn(1, 3000, 4), nn.Linear(4, 32), nn.Linear(16, 4)
    expected = kernels.feed_forward(x, proj, out, residual)
    with choices.using(Choices(fused_residual=True)), torch.backends.mkldnn.flags(enabled=False):
        result = kernels.feed_forward(x, proj, out, residual)
    assert result is residual
    torch.testing.assert_close(result + out.bias, expected)


def test_layers_of_other_choices_are_traced_as_one_graph() -> None:
    """What the compiler makes of the graph is not looked at here; test_faster_steps.py compiles a whole step."""
    resnet, transformer = ResnetBlock(8, 16, 32, 4), Transformer(16, 2, 8, 4)
    resnet.slot = 0
    transformer.arrange()
    given, x = StepInputs((torch.randn(16),), ()), torch.randn(1, 3, 4, 5, 8)

    def layers(x: Tensor) -> Tensor:
        y: Tensor = transformer(resnet(x, given), given)
        return y

    expected = layers(x)
    with choices.using(OTHER):
        assert difference(torch.compile(layers, fullgraph=True, backend="eager")(x), expected) <= LIMIT


# --- weights that lie together


def weights_of(attention: Attention) -> list[Tensor]:
    return [attention.to_q.weight, attention.to_k.weight, attention.to_v.weight]


def test_every_self_attention_of_an_arranged_unet_lies_together_and_is_saved_as_before(tmp_path: Path) -> None:
    config = CONFIGS["published"]
    unet = alone(config)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    unet.arrange()
    blocks = [m.block for m in unet.modules() if isinstance(m, Transformer)]
    selves = [b.attn1 for b in blocks] + [b.attn2 for b in blocks if b.over_frames]
    assert all(as_one(weights_of(attention)) is not None for attention in selves)
    save_file({name: tensor.contiguous() for name, tensor in unet.state_dict().items()}, tmp_path / "saved.safetensors")
    saved = load_file(tmp_path / "saved.safetensors")
    assert saved.keys() == before.keys()
    assert all(torch.equal(saved[name], before[name]) for name in before)


def apart_by_paging(attention: Attention) -> None:
    for owner, name, home in homes_of(attention):
        hold(owner, name, home.clone())


def apart_by_dtype(attention: Attention) -> None:
    attention.double().float()


@pytest.mark.parametrize("move", [apart_by_paging, apart_by_dtype])
def test_weights_that_were_moved_one_by_one_take_three_products(move: Callable[[Attention], None]) -> None:
    attention, x = Attention(16, 2, 8), torch.randn(1, 2, 3, 3, 16)
    attention.arrange()
    joined = as_one(weights_of(attention))
    assert joined is not None
    assert torch.equal(joined, torch.cat(weights_of(attention)))
    expected = attention.temporal(x)
    move(attention)
    assert as_one(weights_of(attention)) is None
    with choices.using(Choices(joined_qkv=True)), Calls() as calls:
        assert torch.equal(attention.temporal(x), expected)
    assert calls.products == 3


def test_weights_of_one_buffer_in_another_order_are_not_one() -> None:
    q, k, v = torch.randn(12, 4).chunk(3)
    assert as_one([q, k, v]) is not None
    assert as_one([q, v, k]) is None
    assert as_one([q, k, v.clone()]) is None
    assert as_one([x.t() for x in torch.randn(12, 4).chunk(3)]) is None


# --- taking and giving back


def test_what_was_before_comes_back_with_torchs_own_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)

    def fail() -> None:
        with choices.using(Choices(attention="flash", ff_chunks=4)):
            assert not torch.backends.cudnn.benchmark
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.backends.cudnn.benchmark
    assert sdp_flags(monkeypatch) == (True, True)
    assert choices.current() == DEFAULT


def test_choices_hold_for_every_thread() -> None:
    """A job runs on the worker's thread, and the process chose on another."""
    with choices.using(OTHER), ThreadPoolExecutor(1) as thread:
        assert thread.submit(choices.current).result() == OTHER


class Adopted(Exception):
    """Ends the loading there."""


def test_loading_on_cuda_starts_from_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    def adopt(chosen: Choices) -> None:
        assert chosen == DEFAULT
        raise Adopted

    monkeypatch.setattr(weights, "choose_device", lambda _: torch.device("cuda", 0))
    monkeypatch.setattr(choices, "adopt", adopt)
    with pytest.raises(Adopted):
        Engine.load("demo")
