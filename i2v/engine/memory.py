"""What a job needs, and which plan fits into the memory that is free: arithmetic on given numbers, in bytes.

Called by `engine.py` before a job. `device_memory.py` reads what a device has.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

import torch

from i2v.errors import DoesNotFit
from i2v.notes import Note
from i2v.request import GenerateRequest

GIB = 2**30
Offload = Literal["none", "model", "group"]

# Kept free beside what is counted: cuDNN and cuBLAS workspaces and what the caching allocator loses between blocks.
MARGIN = 0.10
MARGIN_BYTES = GIB // 2


@dataclass(frozen=True, slots=True)
class Plan:
    """How a job trades time for memory. The result is the same up to rounding.

    `decode_chunk` frames decoded at once; `ff_chunks` pieces of each feed-forward; `guidance_passes` 2 runs the two
    halves of guidance one after the other; `offload` keeps weights in main memory while they are not in use, by whole
    model or by groups of layers.
    """

    decode_chunk: int = 4
    ff_chunks: int = 1
    guidance_passes: Literal[1, 2] = 1
    offload: Offload = "none"

    def note(self, *more: Note) -> Note:
        """The plan for whoever reads a result; `more` is added at its end."""
        where = {"none": Note("resident"), "model": Note("model_offload"), "group": Note("group_offload")}
        passes = {1: Note("one_pass"), 2: Note("two_passes")}
        chunks = Note("feed_forward", {"chunks": self.ff_chunks})
        decoded = Note("decoded_at_once", {"frames": self.decode_chunk})
        return Note("plan", {"parts": (where[self.offload], passes[self.guidance_passes], chunks, decoded, *more)})


LOW_VRAM = Plan(decode_chunk=1, ff_chunks=4, guidance_passes=2, offload="model")


def ladder(plan: Plan) -> Plan | None:
    """The next plan that needs less memory, None below the last: each rung costs more time than the one before."""
    if plan.decode_chunk > 1:
        return replace(plan, decode_chunk=1)
    if plan.ff_chunks < 4:
        return replace(plan, ff_chunks=4)  # with more, attention is the peak
    if plan.guidance_passes == 1:
        return replace(plan, guidance_passes=2)
    if plan.offload == "none":
        return replace(plan, offload="model")
    if plan.offload == "model":
        return replace(plan, offload="group")
    return None


def next_for_denoising(plan: Plan) -> Plan | None:
    """The next rung that lightens sampling; a smaller decode chunk alone does not."""
    lighter = ladder(plan)
    while lighter is not None and replace(lighter, decode_chunk=plan.decode_chunk) == plan:
        lighter = ladder(lighter)
    return lighter


def next_for_decoding(plan: Plan) -> Plan | None:
    """Single frames; the denoised latents are kept, so nothing is sampled again."""
    return replace(plan, decode_chunk=1) if plan.decode_chunk > 1 else ladder(plan)


def rungs(first: Plan) -> Iterator[Plan]:
    """`first` and every plan below it."""
    plan: Plan | None = first
    while plan is not None:
        yield plan
        plan = ladder(plan)


def allowed(plan: Plan, mode: str, offloads: bool) -> bool:
    """Whether a job may run under `plan`: no offload in `resident` mode, nor where weights have nowhere to go."""
    return plan.offload == "none" or (offloads and mode != "resident")


# --- what a job needs


# What one call of `unet.I2VGenXLUNet` holds at its worst moment, counted on meta tensors: multiples of the first width
# per latent pixel and frame. The worst moment is in a transformer at full resolution, in its feed-forward (whose
# intermediate is 8 times as wide as its input, taken in chunks) or, once that is cut, in its attention. Those hold one
# row for each guidance half; the last skips and transformer_in are shared by both.
BLOCK = 4.5
BLOCK_ATTENTION = 9.5
SHARED = 3.0
WIDE = 8.0
STATE = 1.0  # the image's share of conv_in, kept over a request
PASS = 1.0  # what is kept of each further guidance pass
CACHED = 1.0  # deep features that a preset with DeepCache keeps, for each row
ENTRY, ENTRY_INNER, ENTRY_ATTENTION = 1.0, 3.0, 8.0  # transformer_in: of the first width, of its own width
COPIES = 1 / 48  # of the largest block's weights, copied into another layout, at any size


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of a loaded model and its presets that memory depends on. `weights` in bytes by part."""

    weights: Mapping[str, int]
    largest_group: int  # bytes of the UNet's largest block
    all_groups: int  # bytes of all its blocks
    width: int  # channels of the UNet at full latent resolution
    inner: int  # channels inside transformer_in
    vae_width: int  # channels that enter the VAE's last decoder block, at full resolution
    factor: int = 8  # pixels per latent
    unet_bytes: int = 2  # per number
    vae_bytes: int = 2
    caching: frozenset[str] = frozenset()  # presets that keep deep features from step to step


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes on the device in each stage, weights included."""

    encode: int
    denoise: int
    decode: int

    @property
    def peak(self) -> int:
        return max(self.encode, self.denoise, self.decode)


def shape_of(parts: Any) -> Shape:
    """Read the numbers off loaded `ModelParts` (meta tensors do)."""
    unet, vae = parts.unet, parts.vae
    widths, vae_widths = tuple(unet.config.block_out_channels), tuple(vae.config.block_out_channels)
    names = ("unet", "vae", "text_encoder", "image_encoder")
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    return Shape(
        weights={name: _bytes(getattr(parts, name)) for name in names},
        largest_group=max(_bytes(block) for block in blocks),
        all_groups=sum(_bytes(block) for block in blocks),
        width=widths[0],
        inner=8 * int(unet.config.attention_head_dim),
        vae_width=vae_widths[min(1, len(vae_widths) - 1)],
        factor=2 ** (len(vae_widths) - 1),
        unet_bytes=unet.dtype.itemsize,
        vae_bytes=vae.dtype.itemsize,
    )


def _bytes(module: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def denoise_activations(shape: Shape, request: GenerateRequest, plan: Plan) -> int:
    """Bytes that one UNet call holds beside the weights. Linear in width x height x frames; steps do not matter."""
    tokens = _tokens(shape, request)
    guided = request.guidance_scale > 1.0
    rows = 2 if guided and plan.guidance_passes == 1 else 1
    passes = plan.guidance_passes if guided else 1
    block = shape.width * (rows * max(BLOCK + WIDE / plan.ff_chunks, BLOCK_ATTENTION) + SHARED)
    entry = shape.width * ENTRY + shape.inner * max(ENTRY_INNER + WIDE / plan.ff_chunks, ENTRY_ATTENTION)
    cached = CACHED * (2 if guided else 1) if request.preset in shape.caching else 0.0
    kept = shape.width * (STATE + PASS * (passes - 1) + cached)
    return ceil(tokens * shape.unet_bytes * (max(block, entry) + kept) + COPIES * shape.largest_group)


def decode_activations(shape: Shape, request: GenerateRequest, plan: Plan) -> int:
    """Bytes of decoding: for each frame of the chunk three activations as they enter the last block, at full size.

    That is 0.38 GiB a frame at 512x512 with 256 channels in fp16. The finished frames wait as uint8.
    """
    pixels = request.width * request.height
    chunk = min(plan.decode_chunk, request.num_frames)
    return pixels * (chunk * (3 * shape.vae_width * shape.vae_bytes + 24) + 3 * request.num_frames)


def predict(shape: Shape, request: GenerateRequest, plan: Plan) -> Need:
    """What `request` takes on the device under `plan`, in bytes."""
    weights = shape.weights
    encoders = max(weights["text_encoder"], weights["image_encoder"], weights["vae"])
    unet, vae = weights["unet"], weights["vae"]
    if plan.offload == "none":
        encoders = unet = vae = sum(weights.values())
    denoise = unet + denoise_activations(shape, request, plan)
    if plan.offload == "group":
        # what is computed once a request reads all of the UNet, and after that one block after the other is there
        paged = unet - shape.all_groups + 2 * shape.largest_group + denoise_activations(shape, request, plan)
        denoise = max(unet + ceil(3 * STATE * shape.width * shape.unet_bytes * _tokens(shape, request)), paged)
    one_frame = replace(plan, decode_chunk=1)
    return Need(
        encode=encoders + decode_activations(shape, request, one_frame),
        denoise=denoise,
        decode=vae + decode_activations(shape, request, plan),
    )


def _tokens(shape: Shape, request: GenerateRequest) -> int:
    return request.num_frames * (request.width // shape.factor) * (request.height // shape.factor)


# --- what fits


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """A device's memory in bytes: all of it, and what this process may have (free now, or its own already)."""

    total: int
    available: int

    @property
    def usable(self) -> int:
        return max(0, int(self.available * (1 - MARGIN)) - MARGIN_BYTES)


def choose_plan(
    shape: Shape, request: GenerateRequest, budget: MemoryBudget, mode: str = "auto", *, offloads: bool = True
) -> Plan:
    """The first plan down the ladder that fits. `mode`: auto, resident (no offload) or low-vram (starts low).

    `offloads` False where there is no second memory to offload to (a CPU). Raises `DoesNotFit`, naming the largest job
    that does.
    """
    plan = _first_fitting(shape, request, budget, mode, offloads)
    if plan is not None:
        return plan
    asked = f"{request.width}x{request.height} with {request.num_frames} frames"
    least = predict(shape, request, _plans(mode, offloads)[-1]).peak
    largest = largest_that_fits(shape, request, budget, mode, offloads=offloads)
    needs = (
        f"{asked} needs about {least / GIB:.1f} GiB of the device's memory, and {budget.usable / GIB:.1f} can be had"
    )
    if largest is None:
        raise DoesNotFit(f"{needs}; no job of this shape fits", field="width")
    raise DoesNotFit(
        f"{needs}; the largest that fits is {largest['width']}x{largest['height']} with {largest['num_frames']} frames",
        largest=largest,
        field="num_frames" if largest["width"] == request.width else "width",
    )


def largest_that_fits(
    shape: Shape, request: GenerateRequest, budget: MemoryBudget, mode: str = "auto", *, offloads: bool = True
) -> dict[str, Any] | None:
    """The nearest smaller job: fewer frames of the same size (8 at least), else the same shape of picture, smaller.

    Returns width, height and num_frames, or None when not even 64 pixels a side fit.
    """

    def fits(width: int, height: int, frames: int) -> bool:
        job = request.model_copy(update={"width": width, "height": height, "num_frames": frames})
        return _first_fitting(shape, job, budget, mode, offloads) is not None

    fewest = min(8, request.num_frames)
    for frames in range(request.num_frames, fewest - 1, -1):
        if fits(request.width, request.height, frames):
            return {"width": request.width, "height": request.height, "num_frames": frames}
    for longer in range(max(request.width, request.height) - 64, 63, -64):
        scale = longer / max(request.width, request.height)
        width, height = (max(64, round(side * scale / 8) * 8) for side in (request.width, request.height))
        for frames in sorted({request.num_frames, fewest}, reverse=True):
            if fits(width, height, frames):
                return {"width": width, "height": height, "num_frames": frames}
    return None


def _plans(mode: str, offloads: bool) -> list[Plan]:
    first = LOW_VRAM if mode == "low-vram" else Plan()
    if not offloads:
        first = replace(first, offload="none")
    return [plan for plan in rungs(first) if allowed(plan, mode, offloads)]


def _first_fitting(
    shape: Shape, request: GenerateRequest, budget: MemoryBudget, mode: str, offloads: bool
) -> Plan | None:
    for plan in _plans(mode, offloads):
        if predict(shape, request, plan).peak <= budget.usable:
            return plan
    return None
