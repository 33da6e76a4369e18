"""How fast the engine denoises, against diffusers' UNet on the same weights in the same run; run by hand.

Prints what bounds the work first (counted arithmetic and bytes, measured matmul and copy rate), then the contest in
alternating rounds, medians and peak memory; the last line is one JSON object. On a shared CPU trust the ratios only.
What a GPU has to answer is in `gpu_sections.py`, which uses the pieces of this file.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from PIL import Image
from random_models import engine as random_engine
from random_models import folder as random_folder
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from i2v.engine import sampler
from i2v.engine.conditioning import Conditioning
from i2v.engine.engine import Engine, vae_factor
from i2v.request import GenerateRequest

from accounting import Accountant, FusedAttention  # isort: skip  (random_models puts its folder on the path)

HERE = Path(__file__).resolve().parent
GUIDANCE = 9.0


def main() -> None:
    options = read_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    dtype = getattr(torch, options.dtype or ("float16" if options.device.startswith("cuda") else "float32"))
    result: dict[str, Any] = {"device": device_name(options.device), "dtype": str(dtype), "model": options.model}
    result["rates"] = measure_rates(options.device, dtype)
    print(f"{result['device']}, {dtype}: {result['rates']}", flush=True)
    if not options.pipeline_only:
        engine, upstream = random_engine(options.model, options.device, dtype)
        result["jobs"] = []
        for size in options.size:
            result["jobs"].append(contest(engine, upstream, size, options, result["rates"]))
            print(json.dumps(result), flush=True)  # what is known so far, for a run that is cut short
    if options.reference_python:
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.reference_folder or str(random_folder(options.model, Path(temporary) / options.model))
            result["pipeline"] = whole_pipeline(folder, options)
    print(json.dumps(result))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--model", choices=["toy", "reduced", "published"], default="reduced")
    parser.add_argument("--size", nargs="+", default=["256x256"], help="WIDTHxHEIGHT, several for several contests")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50, help="of exact; fast takes a half of them, turbo a third")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--pipeline-only", action="store_true", help="with --reference-python: leave out the contest")
    parser.add_argument("--reference-python", help="a Python that has diffusers 0.33.1: times its whole pipeline too")
    parser.add_argument("--reference-folder", help="the diffusers folder for that; default: the random model's")
    return parser.parse_args()


# --- what bounds the work


def measure_rates(device: str, dtype: torch.dtype) -> dict[str, float]:
    """TFLOP/s of a large matmul and GB/s of a large copy (read and written), the best of five."""
    n = 8192 if device.startswith("cuda") else 1536
    a = torch.randn(n, n, device=device, dtype=dtype)
    big = torch.empty(2**28 if device.startswith("cuda") else 2**26, device=device, dtype=torch.uint8)
    other = torch.empty_like(big)
    matmul = min(timed(lambda: a @ a, device) for _ in range(5))
    copy = min(timed(lambda: other.copy_(big), device) for _ in range(5))
    return {"matmul_tflops": round(2 * n**3 / matmul / 1e12, 4), "copy_gb_s": round(2 * big.nbytes / copy / 1e9, 1)}


def counted(unet: Any, run: Callable[[Any], object]) -> tuple[float, float]:
    """TFLOP and peak activation GiB of `run(unet)` on the meta device."""
    flops, accountant = FlopCounterMode(display=False), Accountant(unet)
    with torch.no_grad(), FusedAttention(), accountant:
        run(unet)
    with torch.no_grad(), flops:
        run(unet)
    return flops.get_total_flops() / 1e12, accountant.peak / 2**30


def ceiling(engine: Engine, upstream: Any, given: Conditioning, rates: dict[str, float]) -> dict[str, float]:
    """Counted arithmetic and peaks of one guided step, and the time that the measured matmul rate allows it."""
    with torch.device("meta"):
        own = type(engine.parts.unet)(engine.parts.unet.config).to(engine.parts.unet.dtype)
        other = type(upstream).from_config(upstream.config).to(upstream.dtype)
    like = {"device": "meta", "dtype": own.dtype}
    images = torch.empty(given.image_latents.shape, **like)
    text, embedding = (torch.empty(x.shape, **like) for x in (given.text, given.image_embedding))

    def step(unet: Any) -> object:
        return unet.step(state, images, 0)

    def call(unet: Any) -> object:
        both = images.expand(2, -1, -1, -1, -1)
        time_, fps = torch.empty((), device="meta"), torch.empty(2, device="meta")
        return unet(both, time_, fps, both, embedding, text)

    with FusedAttention():
        state = own.begin(text, embedding, images, 16.0, torch.arange(2, device="meta"))
    ours, theirs = counted(own, step), counted(other, call)
    return {
        "step_tflop": round(ours[0], 4),
        "upstream_step_tflop": round(theirs[0], 4),
        "step_floor_s": round(ours[0] / rates["matmul_tflops"], 4),
        "peak_gib": round(ours[1], 4),
        "upstream_peak_gib": round(theirs[1], 4),
    }


# --- the contest


def contest(engine: Engine, upstream: Any, size: str, options: argparse.Namespace, rates: dict[str, float]) -> dict:
    """Denoise one random job with every contestant, in alternating rounds."""
    width, height = (int(side) for side in size.split("x"))
    given = random_conditioning(engine, width, height, options.frames)
    bounds = ceiling(engine, upstream, given, rates)
    print(f"{size}, {options.frames} frames, {options.steps} steps: {bounds}", flush=True)
    runs = contestants(engine, upstream, given, options)
    warm = {name: timed(run, options.device) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    peaks: dict[str, float | None] = {}
    for _ in range(options.repeats):
        for name, run in runs.items():
            taken, peaks[name] = timed_with_peak(run, options.device)
            seconds[name].append(taken)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    for name, median in medians.items():
        speed = medians.get("upstream eager", float("nan")) / median
        peak = "" if peaks[name] is None else f", peak beside the weights {peaks[name]:.2f} GiB"
        print(f"  {name:26} {median:8.3f} s  {speed:5.2f}x  (first run {warm[name]:.2f} s{peak})", flush=True)
    return {"size": size, "frames": options.frames, "steps": options.steps, "bounds": bounds, "medians": medians,
            "seconds": seconds, "warm_up": warm, "peak_gib": peaks}  # fmt: skip


def contestants(
    engine: Engine, upstream: Any, given: Conditioning, options: argparse.Namespace
) -> dict[str, Callable[[], object]]:
    """What takes part, by name."""
    noise = torch.randn(given.image_latents.shape, generator=torch.Generator().manual_seed(1)).to(options.device)
    config = engine.parts.scheduler.config
    share = options.steps / 50

    def ours(preset: str) -> Callable[[], object]:
        sampling = sampler.PRESETS[preset]  # type: ignore[index]
        if sampling.max_steps is not None:
            sampling = sampling.model_copy(update={"max_steps": max(2, round(sampling.max_steps * share))})
        walk = sampler.schedule(config, sampling, options.steps)
        return lambda: sampler.denoise(engine.parts.unet, *walk, noise, given, sampling)

    return {
        "upstream eager": lambda: upstream_denoise(upstream, config, noise, given, options.steps),
        **{f"ours {preset}": ours(preset) for preset in ("exact", "fast", "turbo")},
    }


@torch.no_grad()
def upstream_denoise(unet: Any, config: Any, noise: Tensor, given: Conditioning, steps: int) -> Tensor:
    """The denoising loop of diffusers' I2VGenXLPipeline: latents in the model's dtype, all inputs twice, DDIM."""
    scheduler = DDIMScheduler.from_config(dict(config))
    scheduler.set_timesteps(steps, device=noise.device)
    dtype = given.text.dtype
    latents, images = noise.to(dtype), torch.cat([given.image_latents.to(dtype)] * 2)
    fps = torch.tensor([given.motion_fps] * 2, device=noise.device)
    for timestep in scheduler.timesteps:
        pair = torch.cat([latents] * 2)
        prediction = unet(pair, timestep, fps, images, given.image_embedding, given.text, return_dict=False)[0]
        negative, positive = prediction.chunk(2)
        latents = scheduler.step(negative + GUIDANCE * (positive - negative), timestep, latents).prev_sample
    return latents


def random_conditioning(engine: Engine, width: int, height: int, frames: int) -> Conditioning:
    """What encoding gives, at random: speed does not depend on it."""
    unet, factor = engine.parts.unet, vae_factor(engine.parts.vae)
    generator = torch.Generator().manual_seed(0)
    context = unet.config.cross_attention_dim

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(engine.device, unet.dtype)

    return Conditioning(
        text=random(2, 77, context),
        image_embedding=random(2, 1, context),
        image_latents=random(1, 4, frames, height // factor, width // factor).float(),
        motion_fps=16,
        guidance_scale=GUIDANCE,
    )


# --- the whole pipeline, against the reference environment


def whole_pipeline(folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """Our `Engine.generate` and the reference pipeline on one folder, alternating, each in its own process."""
    width, height = (int(side) for side in options.size[0].split("x"))
    threads = options.threads or torch.get_num_threads()
    command = [options.reference_python, str(HERE / "reference_pipeline.py"), folder, options.device]
    command += [str(x) for x in (width, height, options.frames, options.steps, threads)]
    engine = Engine.load(folder, device=options.device, conventions="upstream")
    request = GenerateRequest(
        prompt="sunset", width=width, height=height, num_frames=options.frames, steps=options.steps, seed=1
    )
    photo = Image.effect_noise((512, 512), 60).convert("RGB")
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reference:
        assert reference.stdin is not None
        assert reference.stdout is not None
        for _ in range(options.repeats + 1):
            used = time.process_time()
            wall = timed(lambda: engine.generate(request, photo), options.device)
            ours.append((wall, time.process_time() - used))
            print("run", file=reference.stdin, flush=True)
            wall, used = map(float, reference.stdout.readline().split())
            theirs.append((wall, used))
        reference.stdin.close()
    result: dict[str, Any] = {"folder": Path(folder).name}
    for number, kind in enumerate(("wall", "process")):  # process time is what a busy CPU leaves comparable
        mine, other = ([round(run[number], 2) for run in runs[1:]] for runs in (ours, theirs))
        ratio = statistics.median(other) / statistics.median(mine)
        print(f"whole pipeline, {kind} time: reference {other} s, ours exact {mine} s: {ratio:.2f}x", flush=True)
        result[kind] = {"reference_s": other, "exact_s": mine, "ratio": ratio}
    return result


# --- timing


def timed(run: Callable[[], object], device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def timed_with_peak(run: Callable[[], object], device: str) -> tuple[float, float | None]:
    """Seconds, and on a GPU the peak GiB beside what was allocated before."""
    if not device.startswith("cuda"):
        return timed(run, device), None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    seconds = timed(run, device)
    return seconds, (torch.cuda.max_memory_allocated(device) - before) / 2**30


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def device_name(device: str) -> str:
    return (
        torch.cuda.get_device_name(device) if device.startswith("cuda") else f"cpu, {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    sys.exit(main())
