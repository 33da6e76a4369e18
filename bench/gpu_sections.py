"""The sections of the GPU suite: each is a function that measures one thing and says every figure as it knows it.

`gpu_suite.py` lists them with their limits and calls them by name. The same code rehearses on a CPU with a toy model.
"""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import out_of_memory
import torch
from engine import ceiling, device_name, measure_rates, upstream_denoise
from gpu_bench import STEP, Bench, Spoiled, apart
from random_models import UNETS, description, unets
from torch import Tensor

from i2v.engine import memory, sampler
from i2v.engine.conditioning import Conditioning
from i2v.engine.faster_steps import Accelerator
from i2v.engine.unet import choices, fused
from i2v.engine.unet.choices import Choices
from i2v.notes import say as in_words

ROOT = Path(__file__).resolve().parent.parent

# What only a card can choose, one at a time; cuDNN's search has a process of its own (`cudnn_search`)
SWITCHES = {
    "cuDNN's attention": Choices(attention="cudnn"),
    "flash attention": Choices(attention="flash"),
    **{f"feed-forward in {count}": Choices(ff_chunks=count) for count in (4, 16, 32)},
    **{f"norm tiles of {count} chunks": Choices(norm_chunks=count) for count in (4, 16)},
    "one product for q, k and v": Choices(joined_qkv=True),
    "residual in the product": Choices(fused_residual=True),
}


@torch.no_grad()
def machine(bench: Bench) -> None:
    """What runs here, and what bounds a step: counted arithmetic against the measured rate of a product."""
    memory_ = None if bench.toy else torch.cuda.mem_get_info(bench.device)
    bench.say("machine", gpu=device_name(bench.device), torch=torch.__version__, free_and_total=memory_)
    if not bench.toy:
        import triton

        capability, cudnn = torch.cuda.get_device_capability(bench.device), torch.backends.cudnn.version()
        bench.say("machine", triton=triton.__version__, cudnn=cudnn, capability=capability)
    rates = measure_rates(bench.device, bench.dtype)
    bench.say("machine", rates=rates)
    bench.say("machine", built_s=bench.seconds(lambda: bench.models))
    bench.say("machine", bounds=ceiling(*bench.models, bench.conditioning(bench.size), rates))


@torch.no_grad()
def kernels(bench: Bench) -> None:
    """Which fused kernels prove themselves, in each dtype; Triton compiles here."""
    for dtype in (torch.float16, torch.float32, torch.bfloat16):
        said = list(map(str, fused.report(torch.device(bench.device), dtype)))
        bench.say("kernels", dtype=str(dtype), verdicts=said)


@torch.no_grad()
def parity(bench: Bench) -> None:
    """How far our UNet and diffusers' are from diffusers' in float64, in each dtype.

    Not from one another: libraries choose other fp32 algorithms for other layouts.
    """
    shape = (2, 5, 6) if bench.toy else (8, 32, 32)

    def both(dtype: torch.dtype) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        own, upstream = (unet.to(dtype) for unet in unets(UNETS[bench.model], bench.device, torch.float32))
        generator, context = torch.Generator().manual_seed(1), own.config.cross_attention_dim

        def random(*size: int) -> Tensor:
            return torch.randn(size, generator=generator).to(bench.device, dtype)

        text, embedding, latents, images = random(2, 77, context), random(2, 1, context), *random(2, 1, 4, *shape)
        fps, at = torch.tensor([16, 16], device=bench.device), torch.tensor(STEP, device=bench.device)
        pair, twice = torch.cat([latents] * 2), torch.cat([images] * 2)
        return (
            lambda: own.step(own.begin(text, embedding, images, 16.0, torch.tensor([STEP])), latents, 0).double(),
            lambda: upstream(pair, at, fps, twice, embedding, text, return_dict=False)[0].double(),
        )

    with torch.backends.cudnn.flags(enabled=False):  # it need not have float64 for each convolution
        exact = both(torch.float64)[1]()
    bench.recover()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        with bench.attempt("parity", dtype=str(dtype)):
            ours, theirs = (run() for run in both(dtype))
            errors = {"ours": apart(ours, exact), "diffusers": apart(theirs, exact), "apart": apart(ours, theirs)}
            bench.say("parity", dtype=str(dtype), **errors)
        bench.recover()


@torch.no_grad()
def step(bench: Bench) -> None:
    """One guided step: ours, ours without the fused kernels, diffusers', and ours with each switch."""
    given = bench.conditioning(bench.size)
    ours, theirs = bench.our_step(given), bench.their_step(given)
    bench.say("step", what="ours", **bench.timed(ours))
    with bench.attempt("step", what="diffusers"):
        bench.say("step", what="diffusers", **bench.timed(theirs))
    with bench.attempt("step", what="ours, plain kernels"), fused.using(None):
        bench.say("step", what="ours, plain kernels", **bench.timed(ours, 1))
    expected = ours()
    for what, switch in SWITCHES.items():
        with bench.attempt("step", what=what), choices.using(switch):
            run = bench.our_step(given)
            first_s, error = bench.seconds(run), apart(run(), expected)  # the first run holds searches and compilations
            bench.say("step", what=what, first_s=first_s, apart=error, **bench.timed(run, 1))


@torch.no_grad()
def profile(bench: Bench) -> None:
    """Tables of what both steps are made of, beside the figures; the number of kernels and what the largest take."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recording

    given = bench.conditioning(bench.size)
    kind = DeviceType.CPU if bench.toy else DeviceType.CUDA
    time_of = "self_cpu_time_total" if bench.toy else "self_device_time_total"
    activities = [ProfilerActivity.CPU] if bench.toy else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    for what, run in (("ours", bench.our_step(given)), ("diffusers", bench.their_step(given))):
        run()
        bench.wait()
        with recording(activities=activities, record_shapes=True) as profiler:
            run()
            bench.wait()
        averages, shapes = profiler.key_averages(), profiler.key_averages(group_by_input_shape=True)
        sums = [one for one in averages if one.device_type == kind]
        sums.sort(key=lambda one: getattr(one, time_of), reverse=True)
        largest = [[one.key[:80], one.count, round(getattr(one, time_of) / 1e3, 3)] for one in sums[:25]]
        busy_ms = round(sum(getattr(one, time_of) for one in sums) / 1e3, 2)
        bench.say("profile", what=what, kernels=sum(one.count for one in sums), busy_ms=busy_ms, largest=largest)
        tables = [
            averages.table(sort_by=time_of, row_limit=60, max_name_column_width=90),
            shapes.table(sort_by=time_of, row_limit=80, max_name_column_width=60, max_shapes_column_width=110),
        ]
        (bench.suite.folder / f"profile_{what}.txt").write_text("\n".join(tables), encoding="utf-8")


@torch.no_grad()
def graphs(bench: Bench) -> None:
    """The product's own trial of recorded steps, and a job with its verdict."""
    engine, _ = bench.models
    for size in bench.sizes((256, 256), (512, 512)):
        given, form = bench.conditioning(size), Accelerator.of("graph", engine.device)
        for turn in (1, 2):
            form.start()
            taken = bench.seconds(partial(denoise, bench, given, "exact", form))
            used, plainly = ([in_words(note) for note in notes] for notes in form.report())
            gains = [kept.gain for kept in form.kept.values()]
            found = {"used": used, "plainly": plainly, "gains": gains, "held": form.held, "trial_s": form.warm_up}
            bench.say("graphs", size=size, run=turn, s=taken, **found)
            if form.form is not None and form.form.lost() is not None:
                raise Spoiled("a recording broke off; memory is not given back in this process any more")
        form.drop()
        bench.recover()


def denoise(bench: Bench, given: Conditioning, preset: Any, form: Accelerator | None = None) -> Tensor:
    """The loop of a job of 50 steps, as many as the preset takes of them."""
    engine, _ = bench.models
    sampling = sampler.PRESETS[preset]
    walk = sampler.schedule(engine.parts.scheduler.config, sampling, bench.steps)
    return sampler.denoise(engine.parts.unet, *walk, bench.noise(given), given, sampling, accelerator=form)


@torch.no_grad()
def jobs(bench: Bench) -> None:
    """The standard job, once each: the loops of the presets and of diffusers, then all of ours as it is served."""
    engine, upstream = bench.models
    given = bench.conditioning(bench.size)
    for preset in ("exact", "fast", "turbo"):
        bench.say("jobs", what=f"ours {preset}, loop", s=bench.seconds(partial(denoise, bench, given, preset)))
    theirs = partial(upstream_denoise, upstream, engine.parts.scheduler.config, bench.noise(given), given, bench.steps)
    bench.say("jobs", what="diffusers, loop", s=bench.seconds(theirs))
    served = replace(engine, steps=Accelerator.of("auto", engine.device))
    for turn in (1, 2):
        done = served.generate(bench.request(*bench.size, bench.frames, bench.steps), bench.photo)
        said = {"plan": done.plan and in_words(done.plan), "notes": [in_words(note) for note in done.notes]}
        bench.say("jobs", what="ours whole", run=turn, stages=done.stage_seconds, **said)
    served.steps.drop()
    bench.recover()


def peaks(bench: Bench) -> None:
    """The memory model's peak against the measured one, in MiB, without what is held beside the engine."""
    engine, _ = bench.models
    small, large = (256, 256, 8), ((512, 512, 16), (768, 768, 16), (1280, 704, 16), (1280, 704, 32))
    for job in ((64, 64, 2),) if bench.toy else (small, *large):
        bench.recover()
        with bench.attempt("peaks", job=job):
            request = bench.request(*job, steps=2)
            predicted = memory.predict(engine.shape, request, engine.choose_plan(request)).peak >> 20
            others = max(0, out_of_memory.allocated(bench.device) - sum(engine.shape.weights.values())) >> 20
            done = engine.generate(request, bench.photo)
            found = {"predicted": predicted, "measured": round(done.peak_memory_mb) - others, "others": others}
            reserved = None if bench.toy else torch.cuda.max_memory_reserved(bench.device) >> 20
            bench.say("peaks", job=job, **found, reserved=reserved, stages=done.stage_seconds)
    bench.recover()


@torch.no_grad()
def sizes(bench: Bench) -> None:
    """One step at other sizes."""
    for size in bench.sizes((256, 256), (768, 768), (1280, 704)):
        given = bench.conditioning(size)
        for what, made in (("ours", bench.our_step), ("diffusers", bench.their_step)):
            with bench.attempt("sizes", size=size, what=what):
                bench.say("sizes", size=size, what=what, **bench.timed(made(given), 1))
        bench.recover()


def recovery(bench: Bench) -> None:
    """Running out of memory costs one job and no memory: a capped job, what it leaves behind, the next job."""
    engine, _ = bench.models
    small, large, middle = (256, 256, 8), (1280, 704, 32), (1024, 1024, 16)
    if bench.toy:
        small, large, middle = (64, 64, 2), (64, 64, 4), (64, 64, 3)
    next_job = bench.request(*small, steps=2)
    engine.generate(next_job, bench.photo)  # workspaces are there from now on
    bench.recover()
    before = out_of_memory.allocated(bench.device)
    resident = replace(engine, memory_mode="resident")
    ended = out_of_memory.run_out(resident, bench.request(*large, steps=2), bench.photo, not bench.toy)
    bench.say("recovery", resident=ended)
    bench.recover()
    bench.say("recovery", left_behind=out_of_memory.allocated(bench.device) - before)
    bench.say("recovery", next_job_frames=len(engine.generate(next_job, bench.photo).frames))
    ended = out_of_memory.run_out(engine, bench.request(*middle, steps=2), bench.photo, not bench.toy, times=1)
    bench.say("recovery", product=ended)


@torch.no_grad()
def decoding(bench: Bench) -> None:
    """Four frames through the VAE's decoder, channels last as the product has it, and as PyTorch makes it."""
    engine, _ = bench.models
    vae, (width, height) = engine.parts.vae, bench.size
    factor, layouts = engine.shape.factor, {"channels last": torch.channels_last, "plain": torch.contiguous_format}
    for what, layout in layouts.items():
        vae.to(memory_format=layout)
        latents = torch.randn(4, 4, height // factor, width // factor).to(
            bench.device, bench.dtype, memory_format=layout
        )
        bench.say("decoding", what=what, **bench.timed(partial(vae.decode, latents), 1))
    vae.to(memory_format=torch.channels_last)


# --- each in a process of its own


@torch.no_grad()
def cudnn_search(bench: Bench) -> None:
    """A step of each side where cuDNN has timed its algorithms: PyTorch keeps what it found or guessed for a shape, so
    this comes before any other convolution of its process.
    """
    with choices.using(Choices(cudnn_benchmark=True)):
        given = bench.conditioning(bench.size)
        for what, made in (("ours", bench.our_step), ("diffusers", bench.their_step)):
            with bench.attempt("cudnn_search", what=what):
                run = made(given)
                bench.say("cudnn_search", what=what, first_s=bench.seconds(run), **bench.timed(run, 1))


class Outcomes:
    """A plugin of pytest that says what became of each test."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.count = bench, Counter[str]()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.count[report.outcome] += 1
            text = report.longreprtext[-800:] if report.failed else ""
            found = {"outcome": report.outcome, "s": round(report.duration, 2)} | ({"text": text} if text else {})
            self.bench.say("gpu_tests", test=report.nodeid.rpartition("::")[2], **found)


def gpu_tests(bench: Bench) -> None:
    """The tests that need a GPU, without the project's settings and plugins."""
    import pytest

    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    bare = ["-c", os.devnull, "--rootdir", str(ROOT), "--noconftest", "-p", "no:cacheprovider", "-q"]
    outcomes = Outcomes(bench)
    with redirect_stdout(sys.stderr):
        status = pytest.main([*bare, "-m", "gpu", str(ROOT / "tests" / "engine" / "test_gpu.py")], [outcomes])
    bench.say("gpu_tests", tests=dict(outcomes.count))
    if status != 0:
        raise RuntimeError(f"pytest ended with {status!r}")


def upstream_compiled(bench: Bench) -> None:
    """diffusers' UNet through torch.compile: seconds to compile, then milliseconds a step."""
    compiled(bench, "upstream_compiled", bench.their_step(bench.conditioning(bench.size)), fullgraph=False)


def ours_compiled(bench: Bench) -> None:
    """Our step through torch.compile, as the product asks for it."""
    compiled(bench, "ours_compiled", bench.our_step(bench.conditioning(bench.size)), fullgraph=True)


@torch.no_grad()
def compiled(bench: Bench, section: str, step: Callable[[], Tensor], fullgraph: bool) -> None:
    backend = "aot_eager" if bench.toy else "inductor"  # a rehearsal traces, and makes no C++ in minutes
    faster = torch.compile(step, backend=backend, fullgraph=fullgraph, disable=not bench.suite.compiles)
    bench.say(section, compile_s=bench.seconds(faster))
    bench.say(section, **bench.timed(faster))


def old_pipeline(bench: Bench) -> None:
    """diffusers 0.33.1's whole pipeline at the standard job, if its libraries are here."""
    if bench.suite.reference is None:
        bench.say("old_pipeline", skipped="no folder with the old libraries was given")
        return
    path = os.pathsep.join([bench.suite.reference, *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as temporary:
        folder = description(bench.model, Path(temporary) / "model")
        given = [bench.device, *bench.size, bench.frames, bench.steps, torch.get_num_threads()]
        command = [sys.executable, str(ROOT / "bench" / "reference_pipeline.py"), str(folder), *map(str, given)]
        environment = os.environ | {"PYTHONPATH": path}
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as pipeline:
            assert pipeline.stdin is not None
            assert pipeline.stdout is not None
            for turn in (1, 2):
                print("run", file=pipeline.stdin, flush=True)
                said = pipeline.stdout.readline().split()
                if not said:
                    raise RuntimeError("the old pipeline ended; the log says why")
                bench.say("old_pipeline", run=turn, s=float(said[0]))
            pipeline.stdin.close()
