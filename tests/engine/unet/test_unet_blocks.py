"""Each layer of our UNet gives, on the input the same layer of diffusers' UNet saw, what that layer gave."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from i2v.engine.unet.layers import StepInputs
from i2v.engine.unet.model import I2VGenXLUNet
from tests.engine.unet.unet_pairs import CONFIGS, difference, inputs, own, upstream

LIMIT = 1e-5
FRAMES, HEIGHT, WIDTH = 5, 7, 6
KINDS = (
    "ResnetBlock2D",
    "TemporalConvLayer",
    "Transformer2DModel",
    "TransformerTemporalModel",
    "Downsample2D",
    "Upsample2D",
)


class Call(NamedTuple):
    """What a layer of diffusers was given and gave: frames as a batch, (B F, C, H, W)."""

    kind: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor


class Recorded(NamedTuple):
    unet: I2VGenXLUNet
    calls: dict[str, Call]


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS.keys())
def recorded(request) -> Recorded:
    reference = upstream(request.param)
    calls: dict[str, Call] = {}

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            first = output if isinstance(output, Tensor) else output[0]
            calls[name] = Call(type(module).__name__, args, kwargs, first)

        return hook

    for name, module in reference.named_modules():
        if type(module).__name__ in KINDS:
            module.register_forward_hook(record(name), with_kwargs=True)
    unet = own(reference)
    with torch.no_grad():
        job = inputs(request.param, FRAMES, HEIGHT, WIDTH)
        job.upstream(reference)
        job.begin(unet)  # arranges the weights
    return Recorded(unet, calls)


def tokens(x: Tensor) -> Tensor:
    """(B F, C, H, W) to (B, F, H, W, C)."""
    return x.unflatten(0, (-1, FRAMES)).permute(0, 1, 3, 4, 2).contiguous()


def run(unet: I2VGenXLUNet, name: str, call: Call) -> Tensor:
    """Our layer of that name on diffusers' input."""
    layer, x = unet.get_submodule(name), tokens(call.args[0])
    match call.kind:
        case "ResnetBlock2D":
            return layer(x, StepInputs({layer.slot: layer.shift(call.args[1][:1])[0]}, ()))
        case "TemporalConvLayer" | "Downsample2D" | "TransformerTemporalModel":
            return layer(x, StepInputs((), ()))
        case "Transformer2DModel":
            block, context = layer.transformer_blocks[0], call.kwargs["encoder_hidden_states"][::FRAMES]
            return layer(x, StepInputs((), {block.slot: block.attn2.keys_values(context)}))
        case _:
            return layer(x, *call.output.shape[2:])


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_of_a_kind_equals_diffusers(recorded, kind):
    calls = {name: call for name, call in recorded.calls.items() if call.kind == kind}
    if kind in ("Downsample2D", "Upsample2D"):
        assert len(calls) == len(recorded.unet.down_blocks) - 1
    else:
        assert calls
    with torch.no_grad():
        for name, call in calls.items():
            assert difference(run(recorded.unet, name, call), tokens(call.output)) <= LIMIT, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_weight_of_any_layer_is_noticed(kind):
    """The comparison above can fail: each parameter of one layer of each kind is changed by a tenth."""
    config = CONFIGS["demo"]
    reference = upstream(config)
    seen: dict[str, Call] = {}
    name, layer = next((n, m) for n, m in reference.named_modules() if type(m).__name__ == kind)

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen["call"] = Call(kind, args, kwargs, output if isinstance(output, Tensor) else output[0])

    layer.register_forward_hook(hook, with_kwargs=True)
    unet = own(reference)
    with torch.no_grad():
        job = inputs(config, FRAMES, HEIGHT, WIDTH)
        job.upstream(reference)
        job.begin(unet)
        for parameter in unet.get_submodule(name).parameters():
            kept = parameter.clone()
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
            assert difference(run(unet, name, seen["call"]), tokens(seen["call"].output)) > LIMIT
            parameter.copy_(kept)
        assert difference(run(unet, name, seen["call"]), tokens(seen["call"].output)) <= LIMIT
