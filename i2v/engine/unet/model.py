"""Our I2VGen-XL UNet: `begin` computes what is constant over a request, `step` the rest, once per denoising step.

Same parameters, names and results as diffusers' `I2VGenXLUNet` (the tests' oracle), without its repeated work and its
copies. It knows nothing of schedulers, guidance scales or prompts; the sampler calls it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2v.engine.unet import kernels
from i2v.engine.unet.blocks import DownLevel, MidLevel, UNetConfig, UpLevel
from i2v.engine.unet.layers import ImageTemporalEncoder, ResnetBlock, StepInputs, TemporalConvBlock, Transformer, conv2d

TRANSFORMER_IN_HEADS = 8
CONTEXT_POOL = 32  # latents of the image are averaged to 32x32 before they become 8x8 context tokens


@dataclass(frozen=True, slots=True)
class RequestState:
    """What `begin` computed: constant over a request's steps. B is 1, or the context's G when the images differ."""

    image_term: Tensor  # (B, F, H, W, C): the image latents' share of conv_in, and its bias
    shifts: Tensor  # (timesteps, sum of all residual blocks' widths)
    context: tuple[tuple[Tensor, Tensor], ...]  # per cross-attention: keys, values (G, heads, N, D)
    ff_chunks: int = 1
    guidance_passes: int = 1

    @property
    def guidance(self) -> int:
        """G: 2 with guidance, 1 without."""
        return len(self.context[0][0])

    def at(self, index: int) -> "RequestState":
        """The same state with timestep `index` alone, which is then number 0."""
        return replace(self, shifts=self.shifts[index : index + 1])

    def tensors(self) -> tuple[Tensor, ...]:
        return self.image_term, self.shifts, *(part for pair in self.context for part in pair)

    def with_tensors(self, tensors: Sequence[Tensor]) -> "RequestState":
        """The same state around other tensors, in the order of `tensors`."""
        image_term, shifts, *parts = tensors
        return replace(
            self, image_term=image_term, shifts=shifts, context=tuple(zip(parts[::2], parts[1::2], strict=True))
        )

    def halves(self, guided: bool) -> list[slice]:
        """Rows of the context for each pass of a step: all at once, one by one, or the conditional (last) one alone."""
        if not guided:
            return [slice(-1, None)]
        if self.guidance_passes == 1:
            return [slice(None)]
        return [slice(i, i + 1) for i in range(self.guidance)]


@dataclass(slots=True)
class DeepCache:
    """Features kept from one step for the next ones (arXiv 2312.00858): an approximation, for the `turbo` preset.

    A step that reuses them runs only the first `branch` layers on the way down and the last `branch` + 1 on the way
    up; `branch` is 0 to the config's layers_per_block. `deep` is the input of the first of those last layers.
    """

    branch: int = 0
    deep: Tensor | None = None

    def serves(self, guided: bool) -> bool:
        """Whether the next step may reuse what is kept; an unguided step's features do not serve a guided one."""
        return self.deep is not None and (not guided or len(self.deep) == 2)


class I2VGenXLUNet(nn.Module):
    """The denoiser. Build (without memory, on the meta device), load strictly, `begin` once, `step` many times."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, groups, n = config.block_out_channels, config.norm_num_groups, config.in_channels
        first, context = widths[0], config.cross_attention_dim
        time = 4 * first

        self.conv_in = nn.Conv2d(2 * n, first, 3, padding=1)
        self.transformer_in = Transformer(first, TRANSFORMER_IN_HEADS, config.attention_head_dim, groups)

        self.image_latents_proj_in = nn.Sequential(
            nn.Conv2d(4, 4 * n, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(4 * n, 4 * n, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(4 * n, n, 3, padding=1),
        )
        self.image_latents_temporal_encoder = ImageTemporalEncoder(n)
        self.image_latents_context_embedding = nn.Sequential(
            nn.Conv2d(4, 8 * n, 3, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d((CONTEXT_POOL, CONTEXT_POOL)),
            nn.Conv2d(8 * n, 16 * n, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(16 * n, context, 3, stride=2, padding=1),
        )
        self.time_embedding = nn.ModuleDict({"linear_1": nn.Linear(first, time), "linear_2": nn.Linear(time, time)})
        self.context_embedding = nn.Sequential(nn.Linear(context, time), nn.SiLU(), nn.Linear(time, context * n))
        self.fps_embedding = nn.Sequential(nn.Linear(first, time), nn.SiLU(), nn.Linear(time, time))

        down = [DownLevel(config, level) for level in range(len(widths))]
        up = [UpLevel(config, level) for level in reversed(range(len(widths)))]
        self.down_blocks, self.mid_block, self.up_blocks = nn.ModuleList(down), MidLevel(config), nn.ModuleList(up)

        self.conv_norm_out = nn.GroupNorm(groups, first)
        self.conv_out = nn.Conv2d(first, config.out_channels, 3, padding=1)

        self._wire(down, up)
        self._arranged = False
        self.register_load_state_dict_post_hook(lambda module, _: module.forget_arrangement())
        self.eval()

    def _wire(self, down: list[DownLevel], up: list[UpLevel]) -> None:
        """List the layers in the order they run, and number what looks up something of the step.

        Each layer down leaves a skip; each layer up takes one, and where a level begins the upsampler of the level
        below comes first.
        """
        self._down = [layer for level in down for layer in level.layers()]
        self._middle = [part for layer in self.mid_block.layers() for part in layer]
        upsamplers = [None, *(level.upsampler for level in up)]
        self._up = [
            (None if i else upsampler, layer)
            for level, upsampler in zip(up, upsamplers, strict=False)
            for i, layer in enumerate(level.layers())
        ]

        self._resnets = [m for m in self.modules() if isinstance(m, ResnetBlock)]
        self._crosses = [m.block for m in self.modules() if isinstance(m, Transformer) and not m.over_frames]
        for slot, block in enumerate(self._resnets):
            block.slot = slot
        for slot, cross in enumerate(self._crosses):
            cross.slot = slot

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build from the content of a diffusers `unet/config.json`."""
        return cls(UNetConfig.from_dict(config))

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.conv_in.weight.device

    def forget_arrangement(self) -> None:
        """After new weights: `begin` arranges them, when the loader's own references are gone (no double memory)."""
        self._arranged = False

    def arrange(self) -> None:
        """Once after loading: lay convolution kernels out channels last, one at a time; find layers that do nothing."""
        if self._arranged:
            return
        self._arranged = True
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
            elif isinstance(module, nn.Conv3d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
            elif isinstance(module, ResnetBlock | TemporalConvBlock | Transformer):
                module.arrange()

    @torch.no_grad()
    def begin(
        self,
        text: Tensor,
        image_embeddings: Tensor,
        image_latents: Tensor,
        fps: float,
        timesteps: Tensor,
        *,
        image_concat_scale: float = 1.0,
        ff_chunks: int = 1,
        guidance_passes: int = 1,
    ) -> RequestState:
        """Everything that is constant over a request. G is 2 with guidance (negative first), 1 without.

        `text` (G, N, cross_attention_dim): the prompts' token features. `image_embeddings` (G, cross_attention_dim) or
        (G, 1, ...): CLIP's, zeros for the negative half. `image_latents` (B, 4, F, h, w), B = 1 when both halves share
        them. `timesteps` (T,): all of the request; `step` names one by its index. `image_concat_scale` multiplies the
        image branch before conv_in (the model's authors add it twice). `ff_chunks` and `guidance_passes` (1 or 2) trade
        time for memory without changing the result.
        """
        self.arrange()
        given = (text, image_embeddings, image_latents)
        text, image_embeddings, image_latents = (x.to(self.device, self.dtype) for x in given)
        rows = self._context(text, image_embeddings, image_latents[:, :, 0])
        return RequestState(
            image_term=self._image_term(image_latents, image_concat_scale),
            shifts=self._shifts(timesteps, fps),
            context=tuple(block.attn2.keys_values(rows) for block in self._crosses),
            ff_chunks=ff_chunks,
            guidance_passes=guidance_passes,
        )

    def _context(self, text: Tensor, image_embeddings: Tensor, first_frame: Tensor) -> Tensor:
        """What cross-attention sees: text, 64 tokens of the image's latents, in_channels tokens of its embedding."""
        pooled = self.image_latents_context_embedding(first_frame).flatten(2).transpose(1, 2)  # (B, 64, context)
        image = self.context_embedding(image_embeddings.flatten(1)).view(len(text), -1, text.shape[-1])
        return torch.cat([text, pooled.expand(len(text), -1, -1), image], dim=1)  # (G, N + 64 + 4, context)

    def _image_term(self, image_latents: Tensor, scale: float) -> Tensor:
        """The image branch (B, 4, F, h, w) through its share of conv_in, which is linear: `step` only adds this."""
        frames = image_latents.transpose(1, 2)  # (B, F, 4, h, w)
        x = self.image_latents_proj_in(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        x = self.image_latents_temporal_encoder(x.permute(0, 1, 3, 4, 2).contiguous()) * scale
        return conv2d(x, self.conv_in.weight[:, self.config.in_channels :], self.conv_in.bias)

    def _shifts(self, timesteps: Tensor, fps: float) -> Tensor:
        """Time and fps embeddings through every residual block's projection: (T, sum of widths)."""
        time = sinusoid(timesteps.to(self.device), self.conv_in.out_channels).to(self.dtype)
        rate = sinusoid(torch.tensor([fps], device=self.device), self.conv_in.out_channels).to(self.dtype)
        time = self.time_embedding["linear_2"](F.silu(self.time_embedding["linear_1"](time)))
        embedding = time + self.fps_embedding(rate)
        return torch.cat([block.shift(embedding) for block in self._resnets], dim=1)

    @torch.no_grad()
    def step(
        self,
        state: RequestState,
        latents: Tensor,
        index: int | Tensor,
        *,
        guided: bool = True,
        cache: DeepCache | None = None,
        refresh: bool = True,
    ) -> Tensor:
        """The prediction (G, 4, F, h, w) for latents (1, 4, F, h, w) at the request's timestep number `index`.

        Until the first cross-attention both guidance halves are the same and are computed once; there the context's
        rows widen the batch from 1 to G. Latents of batch G are taken too and give the same (the plain path). `guided`
        False runs the conditional half only (G = 1). With a `cache`, a `refresh` step fills it and any other reuses it;
        features of a guided step also serve an unguided one, never the other way round (ValueError).
        """
        if cache is not None and not refresh and not cache.serves(guided and state.guidance > 1):
            raise ValueError("the cache holds nothing that serves this step; it must refresh it")
        x = latents.to(self.dtype).permute(0, 2, 3, 4, 1).contiguous()  # (B, F, h, w, 4)
        shifts = state.shifts[index].split([block.conv2.out_channels for block in self._resnets])
        predictions, kept = [], []
        for half in state.halves(guided):
            inputs = StepInputs(shifts, tuple((k[half], v[half]) for k, v in state.context), state.ff_chunks)
            known = None if cache is None or cache.deep is None or refresh else cache.deep[half]
            prediction, deep = self._predict(rows_of(x, half), rows_of(state.image_term, half), inputs, cache, known)
            predictions.append(prediction)
            kept += [] if deep is None else [deep]
        if cache is not None and refresh:
            cache.deep = torch.cat(kept)
        return torch.cat(predictions).permute(0, 4, 1, 2, 3)

    def _predict(
        self, latents: Tensor, image_term: Tensor, inputs: StepInputs, cache: DeepCache | None, known: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Latents (B, F, h, w, 4) to the prediction (G, F, h, w, 4), and with a `cache` the deep features for it.

        With `known` deep features only the layers around them run.
        """
        down, middle, up = self._down, self._middle, self._up
        takes_deep = -1 if cache is None else len(up) - 1 - cache.branch  # the layer up that begins with deep features
        if cache is not None and known is not None:
            down, middle, up, takes_deep = down[: cache.branch], [], up[takes_deep:], 0

        x = conv2d(latents, self.conv_in.weight[:, : self.config.in_channels], None).add_(image_term)
        x = self.transformer_in(x, inputs)
        skips = [x]
        for layer in down:
            for part in layer:
                x = part(x, inputs)
            skips.append(x)
        for part in middle:
            x = part(x, inputs)
        x = x if known is None else known
        deep = None
        for number, (upsampler, layer) in enumerate(up):
            if number == takes_deep:
                deep = x
            if upsampler is not None:
                x = upsampler(x, *skips[-1].shape[2:4])
            x = torch.cat([x, skips.pop().expand(len(x), -1, -1, -1, -1)], dim=-1)  # shared skips have one row
            for part in layer:
                x = part(x, inputs)
        x = kernels.group_norm(x, self.conv_norm_out, over_frames=False)
        return conv2d(x, self.conv_out.weight, self.conv_out.bias), deep

    def forward(
        self,
        sample: Tensor,
        timestep: float | Tensor,
        fps: float | Tensor,
        image_latents: Tensor,
        image_embeddings: Tensor,
        encoder_hidden_states: Tensor,
    ) -> Tensor:
        """One call with diffusers' arguments, nothing kept: (B, 4, F, h, w). One timestep and one fps for all rows."""
        times, rates = torch.as_tensor(timestep).reshape(-1), torch.as_tensor(fps).reshape(-1)
        if bool((times != times[0]).any()) or bool((rates != rates[0]).any()):
            raise ValueError("the whole batch must have one timestep and one fps")
        state = self.begin(encoder_hidden_states, image_embeddings, image_latents, float(rates[0]), times[:1])
        return self.step(state, sample, 0)


def rows_of(x: Tensor, half: slice) -> Tensor:
    """The rows of `half`, or the one row that all halves share."""
    return x if len(x) == 1 else x[half]


def sinusoid(values: Tensor, width: int) -> Tensor:
    """cos and sin of `values` (T,) at width/2 frequencies from 1 down to 1/10000: (T, width), fp32, cosines first."""
    frequencies = torch.exp(torch.arange(width // 2, device=values.device) * (-math.log(10_000) / (width // 2)))
    angles = values.float()[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))
