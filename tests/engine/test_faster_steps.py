"""Which form a step runs in: the trial, the bookkeeping of recorded steps, and compiled steps against plain ones.

No GPU is needed: `Recorder` stands in for CUDA graphs. It has their ways: what it records reads and writes the same
memory at every replay, and its results are overwritten by the next one.
"""

import copy
import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from i2v.engine import Engine, device_memory, faster_steps, memory, sampler, step_forms
from i2v.engine.conditioning import Conditioning
from i2v.engine.faster_steps import KEPT, Accelerator
from i2v.engine.memory import Plan
from i2v.engine.sampler import denoise, schedule
from i2v.engine.step_forms import CUDA_GRAPH, Compiled, Graph, Tensors, choose_form
from i2v.engine.unet.model import I2VGenXLUNet, RequestState
from i2v.notes import Note, say
from i2v.presets import PRESETS, CacheRule, Sampling
from i2v.request import GenerateRequest
from i2v.ui.texts import TABLE
from tests.conftest import ROOT
from tests.engine.tiny_folder import SCHEDULER, draw_photo, write_tiny_folder

pytestmark = pytest.mark.slow

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
# whole and reusing steps, guided and not: every kind of step there is
ALL_KINDS = Sampling(solver="unipc", guidance_interval=(0.5, 1.0), deep_cache=CacheRule(interval=2))


@dataclass
class Recording:
    run: Callable[[], Tensors]
    outputs: Tensors
    recorder: "Recorder"
    held: int

    def replay(self) -> None:
        self.recorder.replays += 1
        if self.recorder.idle:
            return
        for own, new in zip(self.outputs, self.run(), strict=True):
            own.copy_(new + self.recorder.error)


@dataclass
class Recorder:
    """Captures that replay on fixed memory; `error` is added to what they give, `fails` is raised instead.

    An `idle` one replays nothing; each says that it holds `held` bytes. With `breaks` a failure is the recording's own.
    """

    error: float = 0.0
    idle: bool = False
    held: int = 1000
    fails: BaseException | None = None
    breaks: bool = False
    captures: int = 0
    replays: int = 0
    resets: int = 0

    def __call__(self, run: Callable[[], Tensors]) -> Recording:
        self.captures += 1
        if self.fails is not None:
            raise self.fails
        return Recording(run, tuple(output.clone() for output in run()), self, self.held)

    def reset(self) -> None:
        self.resets += 1

    def lost(self) -> int | None:
        return self.held if self.breaks and self.fails is not None else None


@dataclass
class Clock:
    """Looks come ever faster one after the other, or ever slower: plain steps are timed first."""

    faster: bool = True
    looks: int = 0
    now: float = 0.0

    def __call__(self) -> float:
        self.looks += 1
        self.now += 100.0 / self.looks if self.faster else 1.0 * self.looks
        return self.now


def accelerator(recorder: Recorder, *, faster: bool = True) -> Accelerator:
    return Accelerator(Graph(recorder), "in a test", Clock(faster), timed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.load(folder, device="cpu", conventions="upstream")


def least_unet(levels: str) -> I2VGenXLUNet:
    """The least UNet that has every kind of step; its one level is of `levels`, the middle attends in any case."""
    torch.manual_seed(0)
    made = I2VGenXLUNet.from_config(
        {
            "block_out_channels": (16,),
            "down_block_types": (levels.format("Down"),),
            "up_block_types": (levels.format("Up"),),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "cross_attention_dim": 32,
            "attention_head_dim": 8,
        }
    )
    for parameter in made.requires_grad_(False).parameters():
        if not parameter.any():
            parameter.normal_(0, 0.05)
    return made


@pytest.fixture(scope="module")
def unet() -> I2VGenXLUNet:
    return least_unet("CrossAttn{}Block3D")


def given(seed: int, rows: int = 2, frames: int = 2) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return Conditioning(random(rows, 77, 32), random(rows, 1, 32), random(1, 4, frames, 8, 8), 16, 7.0)


def noise(frames: int = 2) -> Tensor:
    return torch.randn(1, 4, frames, 8, 8, generator=torch.Generator().manual_seed(5))


def sample(
    unet: Any,
    steps: int,
    conditioning: Conditioning,
    steps_in: Accelerator | None = None,
    sampling: Sampling = ALL_KINDS,
) -> Tensor:
    frames = conditioning.image_latents.shape[2]
    table = schedule(SCHEDULER, sampling, steps)
    return denoise(unet, *table, noise(frames), conditioning, sampling, accelerator=steps_in)


# --- recorded steps


def test_recorded_steps_give_the_plain_steps_latents_for_every_kind_of_step(unet: I2VGenXLUNet) -> None:
    recorder = Recorder()
    steps = accelerator(recorder)
    plain = sample(unet, 8, given(1))
    assert torch.equal(sample(unet, 8, given(1), steps), plain)
    assert recorder.captures == 4  # guided or not, whole or not
    assert torch.equal(sample(unet, 8, given(1), steps), plain)
    assert recorder.captures == 4


def test_another_request_of_the_same_shape_replays_with_its_own_tensors(unet: I2VGenXLUNet) -> None:
    recorder = Recorder()
    steps = accelerator(recorder)
    sample(unet, 8, given(1), steps)
    for seed, count in ((2, 8), (3, 5), (1, 12)):  # the number of steps is no part of a recording
        assert torch.equal(sample(unet, count, given(seed), steps), sample(unet, count, given(seed)))
    assert recorder.captures == 4


def test_another_shape_is_recorded_apart(unet: I2VGenXLUNet) -> None:
    recorder, exact = Recorder(), PRESETS["exact"]
    steps = accelerator(recorder)
    for frames, rows in ((2, 2), (3, 2), (2, 1), (2, 2)):
        conditioning = given(1, rows, frames)
        assert torch.equal(sample(unet, 4, conditioning, steps, exact), sample(unet, 4, conditioning, None, exact))
    assert recorder.captures == 3


def test_a_result_is_not_overwritten_by_the_next_replay(unet: I2VGenXLUNet) -> None:
    """Previews look at estimates when they please."""
    kept: list[tuple[Tensor, Tensor]] = []
    table = schedule(SCHEDULER, PRESETS["exact"], 6)
    denoise(
        unet,
        *table,
        noise(),
        given(1),
        PRESETS["exact"],
        on_step=lambda step, steps, estimate: kept.append((estimate, estimate.clone())),
        accelerator=accelerator(Recorder()),
    )
    assert len(kept) == 6
    assert all(torch.equal(estimate, then) for estimate, then in kept)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_a_step_reads_no_number_back_and_makes_no_tensor_from_the_host(engine: Engine, rescale: float) -> None:
    """Either would break a recording on a GPU. This model has levels to go down and up, too."""

    class NothingFromTheHost(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            forbidden = ("_local_scalar_dense", "lift_fresh", "nonzero", "is_nonzero", "equal.default", "rand")
            if any(name in str(func) for name in forbidden):
                raise AssertionError(f"{func} in a step")
            return func(*args, **(kwargs or {}))

    class Watched(Recorder):
        def __call__(self, run: Callable[[], Tensors]) -> Recording:
            with NothingFromTheHost():
                run()
            return super().__call__(run)

    recorder = Watched()
    steps = accelerator(recorder)
    sampling = ALL_KINDS.model_copy(update={"deep_cache": CacheRule(interval=2, branch=1), "guidance_rescale": rescale})
    sample(engine.parts.unet, 12, given(1), steps, sampling)
    assert steps.report() == ((Note("steps_as", {"form": CUDA_GRAPH}),), ())
    assert recorder.captures == 4
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NothingFromTheHost():
        torch.ones(1).item()


# --- the trial


def test_a_form_that_disagrees_is_not_used_and_the_reason_is_told(unet: I2VGenXLUNet) -> None:
    recorder = Recorder(error=0.01)
    steps = accelerator(recorder)
    wanted = sample(unet, 12, given(1))
    assert torch.equal(sample(unet, 12, given(1), steps), wanted)
    assert recorder.replays == recorder.captures == 4  # one look each, at the other numbers
    used, reasons = steps.report()
    assert used == ()
    assert len(reasons) == 4
    assert all(say(reason).startswith("Steps ran plainly: a CUDA graph differed by") for reason in reasons)
    steps.start()
    sample(unet, 12, given(1), steps)
    assert recorder.captures == 4  # not tried again
    assert len(steps.report()[1]) == 4  # and told again


def test_a_recording_that_does_nothing_is_found_out(unet: I2VGenXLUNet) -> None:
    """What it was recorded from leaves the right results behind, so the same numbers alone would not show it."""
    steps = accelerator(Recorder(idle=True))
    wanted = sample(unet, 4, given(1), None, PRESETS["exact"])
    assert torch.equal(sample(unet, 4, given(1), steps, PRESETS["exact"]), wanted)
    assert not steps.kept
    assert "a CUDA graph differed by" in say(steps.report()[1][0])


def test_a_refused_form_is_gone_before_its_memory_is_asked_back(
    unet: I2VGenXLUNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[bool] = []
    recordings: list[weakref.ref[Any]] = []

    class Watched(Recorder):
        def __call__(self, run: Callable[[], Tensors]) -> Recording:
            recording = super().__call__(run)
            recordings.append(weakref.ref(recording))
            return recording

    recorder = Watched(error=0.01)
    monkeypatch.setattr(
        device_memory, "recover", lambda device: alive.append(any(one() is not None for one in recordings))
    )
    sample(unet, 3, given(1), accelerator(recorder), PRESETS["exact"])
    assert len(recordings) == 1
    assert alive == [False]
    assert recorder.resets > 0  # nothing is kept: the recordings' common memory may go


@dataclass
class Card:
    """A device with a queue, and a clock. Seconds that the host takes to queue a plain step, that the device takes for
    one, and that it takes for a recorded one, which is queued at once.
    """

    queue: float
    busy: float
    replay: float
    recorder: Recorder = field(default_factory=Recorder)
    now: float = 0.0
    free_at: float = 0.0
    steps: int = 0
    replays: int = 0
    waits: int = 0

    def step(self, *given: Any) -> tuple[Any, ...]:
        start, self.steps = self.now, self.steps + 1
        if self.recorder.replays > self.replays:
            self.replays = self.recorder.replays
            self.free_at = max(self.free_at, start) + self.replay
        else:
            self.now += self.queue
            self.free_at = max(max(self.free_at, start) + self.busy, self.now)
        return Times.step(*given)

    def wait(self, device: torch.device) -> None:
        self.waits += 1
        self.now = max(self.now, self.free_at)

    def capture(self, run: Callable[[], Tensors]) -> Recording:
        for _ in range(step_forms.WARM_UP):
            run()
        return self.recorder(run)

    def job(self, steps: int, monkeypatch: pytest.MonkeyPatch, *, thrifty: bool = True) -> Accelerator:
        """Run a job of so many steps of one kind, the host at most a step ahead."""
        monkeypatch.setattr(faster_steps, "wait", self.wait)
        accelerator = Accelerator(Graph(self), "in a test", lambda: self.now, thrifty)  # type: ignore[arg-type]
        state, done = RequestState(torch.full((3,), 3.0), torch.zeros(1, 1), ()), 0.0
        for left in reversed(range(steps)):
            accelerator.run(self.step, Times(), "kind", (state, torch.ones(3), torch.zeros(1), None), left)
            self.now, done = max(self.now, done), self.free_at
        self.wait(CPU)
        return accelerator

    __call__ = capture

    def reset(self) -> None:
        self.recorder.reset()

    def lost(self) -> int | None:
        return None


def test_a_gain_within_the_clocks_noise_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for plain, kept in ((1.02, 0), (1.04, 1)):
        steps = Card(queue=plain, busy=0.5, replay=1.0).job(50, monkeypatch)
        assert len(steps.kept) == kept, steps.report()
    assert steps.report() == ((Note("steps_as", {"form": CUDA_GRAPH}),), ())


def test_nothing_is_recorded_where_the_device_is_busy_while_the_host_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(queue=2.0, busy=10.0, replay=9.0)
    steps = card.job(50, monkeypatch)
    assert (card.recorder.captures, card.steps) == (0, 50)  # not one step more than the job has
    assert [note.code for note in steps.report()[1]] == ["plain_device_bound"]
    assert "20 % of a step is queueing" in say(steps.report()[1][0])
    named = Card(queue=2.0, busy=10.0, replay=9.0)  # whoever names the form gets its trial
    assert named.job(50, monkeypatch, thrifty=False).kept
    assert named.recorder.captures == 1


def test_a_short_job_is_spared_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """It took twelve steps, also of a job that has four."""
    card = Card(queue=10.0, busy=2.0, replay=2.0)
    steps = card.job(4, monkeypatch)
    assert (card.recorder.captures, card.steps, card.now) == (0, 4, 40.0)
    assert card.waits == 1  # at the end alone: no step is timed for a trial that does not come
    assert [note.code for note in steps.report()[1]] == ["plain_too_few"]


@pytest.mark.parametrize(("replay", "lost"), [(5.0, 0.0), (2.0, 0.0), (8.0, 2.0), (11.0, 3.5)])
def test_a_trial_never_takes_more_than_a_form_twice_as_fast_wins_back(
    replay: float, lost: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of steps. One that turns out slower than that costs a few plain steps (`lost`) at most."""
    recorded = 0
    for count in range(1, 61):
        card = Card(queue=10.0, busy=min(replay, 2.0), replay=replay)
        card.job(count, monkeypatch)
        recorded += card.recorder.captures
        assert card.recorder.captures or card.waits == 1  # a job without a trial is not held up by its beginning
        assert card.now <= 10.0 * (count + lost)
    assert recorded > 45


def test_a_form_that_is_not_faster_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Card(queue=10.0, busy=2.0, replay=10.0).job(50, monkeypatch)
    assert "was not faster (1.00 times)" in say(steps.report()[1][0])
    assert not steps.kept


def test_time_spent_on_trials_counts_apart(unet: I2VGenXLUNet) -> None:
    steps = accelerator(Recorder())
    sample(unet, 4, given(1), steps, PRESETS["exact"])
    assert steps.warm_up > 0
    steps.start()
    sample(unet, 4, given(1), steps, PRESETS["exact"])
    assert steps.warm_up == 0


def test_a_step_that_gives_nan_decides_nothing(unet: I2VGenXLUNet) -> None:
    recorder = Recorder()
    steps = accelerator(recorder)
    broken = replace(given(1), image_latents=given(1).image_latents * float("nan"))
    with pytest.raises(Exception, match="not finite"):
        sample(unet, 3, broken, steps, PRESETS["exact"])
    assert recorder.captures == 0
    sample(unet, 3, given(1), steps, PRESETS["exact"])
    assert recorder.captures == 1


# --- trouble


def test_without_memory_for_a_recording_all_are_given_back_and_the_job_goes_on(unet: I2VGenXLUNet) -> None:
    recorder = Recorder()
    steps = accelerator(recorder)
    sample(unet, 3, given(1), steps, PRESETS["exact"])
    assert steps.held > 1000
    recorder.fails = torch.OutOfMemoryError("CUDA out of memory")
    three = given(1, frames=3)
    wanted = sample(unet, 3, three, None, PRESETS["exact"])
    assert torch.equal(sample(unet, 3, three, steps, PRESETS["exact"]), wanted)
    assert (len(steps.kept), steps.held) == (0, 0)
    assert recorder.resets > 0
    assert "there was no memory for it" in say(steps.report()[1][0])
    recorder.fails = None
    steps.start()  # another job may find memory
    assert torch.equal(sample(unet, 3, three, steps, PRESETS["exact"]), wanted)
    assert len(steps.kept) == 1


def test_a_recording_that_fails_is_only_a_reason_and_a_lost_gpu_is_not(unet: I2VGenXLUNet) -> None:
    recorder = Recorder(fails=RuntimeError("operation not permitted when stream is capturing"))
    steps = accelerator(recorder)
    sample(unet, 3, given(1), steps, PRESETS["exact"])
    assert "RuntimeError: operation not permitted when stream is capturing" in say(steps.report()[1][0])
    lost = Recorder(fails=torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(torch.AcceleratorError):
        sample(unet, 3, given(1), accelerator(lost), PRESETS["exact"])


def test_an_input_that_was_written_to_since_is_copied_again() -> None:
    steps = accelerator(Recorder())
    state, latents = RequestState(torch.full((3,), 3.0), torch.zeros(1, 1), ()), torch.ones(3)
    inputs = (state, latents, torch.zeros(1), None)
    for factor in (1.0, 2.0, 2.0, 2.0):
        assert steps.run(Times.step, Times(), "kind", inputs, left=9)[0].tolist() == [3.0 * factor] * 3
        latents.fill_(2.0)
    assert steps.kept


def test_no_tensor_of_a_request_outlives_it(unet: I2VGenXLUNet) -> None:
    steps = accelerator(Recorder())
    seen: list[weakref.ref[Tensor]] = []

    class Watched(Accelerator):
        def run(self, step: Any, unet: Any, kind: Any, inputs: tuple[Any, ...], left: int) -> Any:
            state, *rest = inputs
            seen.extend(weakref.ref(x) for x in (*state.tensors(), *rest) if x is not None)
            return super().run(step, unet, kind, inputs, left)

    steps = Watched(Graph(Recorder()), "in a test", Clock(), timed=1)
    sample(unet, 8, given(1), steps)
    assert len(steps.kept) == 4
    assert len(seen) > 100
    gc.collect()
    assert [one for one in seen if one() is not None] == []


def test_weights_at_other_addresses_drop_what_was_recorded(unet: I2VGenXLUNet) -> None:
    unet, recorder = copy.deepcopy(unet), Recorder()
    steps = accelerator(recorder)
    sample(unet, 3, given(1), steps, PRESETS["exact"])
    unet.conv_in.weight.data = unet.conv_in.weight.data * 2
    assert torch.equal(
        sample(unet, 3, given(1), steps, PRESETS["exact"]), sample(unet, 3, given(1), None, PRESETS["exact"])
    )
    assert recorder.captures == 2


@dataclass
class Times:
    """A step that needs no model: latents times what the state holds."""

    def parameters(self) -> Iterator[Tensor]:
        return iter(())

    @staticmethod
    def step(_unet: Any, _kind: Any, state: RequestState, latents: Tensor, *_rest: Any) -> tuple[Any, ...]:
        return latents * state.image_term, latents + 1, latents, None


def one_step(steps: Accelerator, width: int) -> Tensor:
    state = RequestState(torch.full((width,), 3.0), torch.zeros(1, 1), ())
    for _ in range(2):  # the second is timed and decides
        results = steps.run(Times.step, Times(), "kind", (state, torch.ones(width), torch.zeros(1), None), left=9)
    return results[0]


def test_a_bounded_number_is_kept_and_the_one_used_longest_ago_goes_first() -> None:
    recorder = Recorder()
    steps = accelerator(recorder)
    for width in range(1, KEPT + 1):
        one_step(steps, width)
    one_step(steps, 1)  # used again
    one_step(steps, KEPT + 1)
    assert len(steps.kept) == KEPT
    assert recorder.captures == KEPT + 1
    assert one_step(steps, 1).tolist() == [3.0]
    assert recorder.captures == KEPT + 1
    one_step(steps, 2)  # it had gone
    assert recorder.captures == KEPT + 2


# --- through the engine

JOB = GenerateRequest(prompt="the sun", width=64, height=64, num_frames=2, steps=4, guidance_scale=5.0, seed=7)


def test_a_result_says_how_its_steps_ran_and_what_warming_up_took(engine: Engine) -> None:
    fast = replace(engine, steps=accelerator(Recorder()))
    first, second, plain = (one.generate(JOB, draw_photo()) for one in (fast, fast, engine))
    assert torch.equal(first.latents, plain.latents)
    assert torch.equal(second.latents, plain.latents)
    assert first.plan == second.plan == Plan().note(Note("steps_as", {"form": CUDA_GRAPH}))
    assert plain.plan == Plan().note()
    assert say(first.plan) == f"{say(plain.plan)}, steps as a CUDA graph"
    assert first.stage_seconds["warm_up"] > 0
    assert {f"took_{stage}" for stage in first.stage_seconds} <= set(TABLE)  # the page has words for each
    assert "warm_up" not in second.stage_seconds | plain.stage_seconds


def test_no_form_is_used_while_weights_are_offloaded_or_memory_is_short(engine: Engine) -> None:
    recorder = Recorder()
    fast = replace(engine, steps=accelerator(recorder))
    assert fast.keeps_steps_plain(JOB, Plan()) is None
    fast.generate(JOB, draw_photo())
    assert fast.steps.held > 0
    assert fast.keeps_steps_plain(JOB, Plan(offload="model")) == Note("plain_offloaded")
    assert fast.steps.held == 0
    fast.generate(JOB, draw_photo())
    used = fast.memory_need(JOB).needed
    tight = replace(fast, max_vram_gb=(used / 0.9 + 2**29) / 2**30 + 1e-4)
    reason = tight.keeps_steps_plain(JOB, Plan())
    assert reason is not None
    assert "do not fit beside the job" in say(reason)
    fast.steps.start(reason)
    assert fast.steps.report() == ((), (reason,))


def on_a_card_with(engine: Engine, spare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many bytes can be had beside what JOB is predicted to need."""
    need = memory.predict(memory.shape_of(engine.parts), JOB, Plan()).peak
    available = int((need + spare + memory.MARGIN_BYTES) / (1 - memory.MARGIN)) + 1000
    monkeypatch.setattr(device_memory, "read", lambda device, max_vram_gb: memory.MemoryBudget(available, available))


def test_on_a_tight_card_the_second_job_replays_what_the_first_recorded(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = memory.denoise_activations(memory.shape_of(engine.parts), JOB, Plan())
    recorder = Recorder(held=own)
    fast = replace(engine, steps=accelerator(recorder))
    on_a_card_with(engine, own * 5 // 2, monkeypatch)  # one recording and its inputs, here as large; not two
    wanted = Plan().note(Note("steps_as", {"form": CUDA_GRAPH}))
    assert [fast.generate(JOB, draw_photo()).plan for _ in range(3)] == [wanted] * 3
    assert recorder.captures == 1


def test_a_compiled_step_is_not_refused_for_memory_that_only_a_recording_keeps(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_card_with(engine, 0, monkeypatch)
    compiled = replace(engine, steps=Accelerator(Compiled(), "in a test"))
    assert compiled.keeps_steps_plain(JOB, Plan()) is None
    assert replace(engine, steps=accelerator(Recorder())).keeps_steps_plain(JOB, Plan()) is not None


def test_a_job_that_runs_out_beside_recordings_is_tried_again_without_them(engine: Engine) -> None:
    fast = replace(engine, steps=accelerator(Recorder()))
    wanted = fast.generate(JOB, draw_photo())
    tried: list[tuple[int, int]] = []
    captures = fast.steps.form.capture.captures  # type: ignore[union-attr]

    original = sampler.denoise

    def denoise(*args: Any, **kwargs: Any) -> Tensor:
        tried.append(args[6:8])
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*args, **kwargs)

    with mock.patch.object(sampler, "denoise", denoise):
        result = fast.generate(JOB, draw_photo())
    assert tried == [(1, 1), (1, 1)]  # the same plan
    assert fast.steps.form.capture.captures == captures  # type: ignore[union-attr]
    assert result.plan == Plan().note()
    assert "Steps ran plainly: the job ran out of memory." in map(say, result.notes)
    assert any(say(note).startswith("Ran out of memory once") for note in result.notes)
    assert torch.equal(result.latents, wanted.latents)
    assert fast.generate(JOB, draw_photo()).plan == wanted.plan  # another job may record again


def test_running_out_of_memory_and_closing_drop_every_form(folder: Path) -> None:
    engine = replace(Engine.load(folder, device="cpu"), steps=accelerator(Recorder()))
    engine.generate(JOB, draw_photo())
    assert engine.steps.kept
    tried: list[Plan] = []

    def fails_once(plan: Plan) -> str:
        tried.append(plan)
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert not engine.steps.kept
        return "done"

    assert engine.recovering(fails_once, Plan(), lambda plan: plan, JOB)[0] == "done"
    engine.generate(JOB, draw_photo())
    assert engine.steps.kept
    assert engine.texts.kept
    engine.close()
    assert not engine.steps.kept
    assert not engine.texts.kept


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> mock.MagicMock:
    """Stands in for `torch.cuda`: what it is asked for, in which order. Nothing is broken or lost before or after."""
    cuda = mock.MagicMock()
    cuda.graph.return_value.__exit__.return_value = False
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(step_forms.CudaCapture, "broken", {})
    monkeypatch.setattr(device_memory, "_lost", {})
    return cuda


def test_a_capture_is_made_on_its_device_and_stream_and_leaves_the_callers_stream_when_it_fails(
    cuda: mock.MagicMock,
) -> None:
    asked = []
    cuda.memory_reserved.side_effect = [100, 160]
    cuda.empty_cache.side_effect = lambda: asked.append("emptied")
    cuda.graph.return_value.__enter__.side_effect = lambda: asked.append("captured")
    capture = step_forms.CudaCapture(CUDA)
    assert capture(lambda: ()).held == 60
    cuda.device.assert_called_once_with(CUDA)
    assert asked == ["emptied", "captured"]
    side, pool = cuda.Stream.return_value, cuda.graph_pool_handle.return_value
    wanted = {"pool": pool, "stream": side, "capture_error_mode": "thread_local"}
    assert cuda.graph.call_args.kwargs == wanted
    cuda.memory_reserved.side_effect = [0, 0]
    cuda.graph.return_value.__exit__.side_effect = RuntimeError("operation failed during capture")
    cuda.set_stream.reset_mock()
    with pytest.raises(RuntimeError, match="during capture"):
        capture(lambda: ())
    cuda.set_stream.assert_called_once_with(cuda.current_stream.return_value)
    assert cuda.Stream.call_count == 1


def test_after_a_recording_that_broke_off_its_pool_is_kept_and_counts_as_lost(cuda: mock.MagicMock) -> None:
    """PyTorch can give nothing of it back, so a job that counted on it would run out of memory."""
    capture = step_forms.CudaCapture(CUDA)
    cuda.memory_reserved.side_effect = [100, 160]
    capture(lambda: ())
    cuda.memory_reserved.side_effect = [200, 500]
    cuda.graph.return_value.__exit__.side_effect = RuntimeError("operation failed during capture")
    with pytest.raises(RuntimeError, match="during capture"):
        capture(lambda: ())
    assert capture.lost() == 60 + 300
    assert step_forms.CudaCapture(CUDA).lost() == 60 + 300  # another engine of the process
    assert step_forms.CudaCapture(torch.device("cuda:1")).lost() is None
    assert step_forms.CudaCapture.broken[CUDA][0] is cuda.graph_pool_handle.return_value


def test_what_is_lost_does_not_count_as_free(cuda: mock.MagicMock) -> None:
    cuda.mem_get_info.return_value = (1000, 5000)
    cuda.memory_reserved.return_value = 500
    assert device_memory.read(CUDA).available == 1500
    device_memory.lose(CUDA, 360)
    assert device_memory.read(CUDA).available == 1500 - 360
    assert device_memory.read(torch.device("cuda:1")).available == 1500


def test_a_warm_up_that_fails_breaks_nothing(cuda: mock.MagicMock) -> None:
    capture = step_forms.CudaCapture(CUDA)
    with pytest.raises(ZeroDivisionError):
        capture(lambda: 1 // 0)  # type: ignore[arg-type,return-value]
    assert capture.lost() is None


def test_after_a_recording_that_broke_off_all_steps_are_plain(
    unet: I2VGenXLUNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: dict[torch.device, int] = {}
    monkeypatch.setattr(device_memory, "_lost", lost)
    recorder, exact = Recorder(breaks=True), PRESETS["exact"]
    steps = accelerator(recorder)
    sample(unet, 4, given(1), steps, exact)
    assert steps.kept
    recorder.fails = RuntimeError("operation failed during capture")
    three = given(1, frames=3)
    wanted = sample(unet, 4, three, None, exact)
    assert torch.equal(sample(unet, 4, three, steps, exact), wanted)
    told = ((), (Note("plain_capture_failed"),))
    assert (steps.kept, recorder.captures, steps.report()) == ({}, 2, told)
    assert lost == {CPU: recorder.held}
    steps.start()
    assert torch.equal(sample(unet, 4, three, steps, exact), wanted)
    assert (recorder.captures, steps.report()) == (2, told)


@pytest.mark.parametrize(
    ("wanted", "device", "form"),
    [
        ("auto", CPU, None),
        ("auto", CUDA, Graph),
        ("off", CUDA, None),
        ("graph", CUDA, Graph),
        ("graph", CPU, None),
        ("compile", CPU, Compiled),
        ("compile", CUDA, Compiled),
    ],
)
def test_the_form_follows_setting_and_device_with_a_reason(wanted: str, device: torch.device, form: Any) -> None:
    found, reason = choose_form(wanted, device)
    assert type(found) is (form or type(None))
    assert reason
    with pytest.raises(ValueError, match="accelerate is 'fast'"):
        choose_form("fast", device)


def test_neither_inductor_nor_triton_kernels_are_loaded_unless_asked_for(folder: Path) -> None:
    """(diffusers imports triton itself, where it is installed.)"""
    code = f"""
import sys, torch
from i2v.engine import Engine
from i2v.request import GenerateRequest
from PIL import Image
engine = Engine.load({str(folder)!r}, device="cpu")
engine.generate(GenerateRequest(prompt="x", width=64, height=64, num_frames=2, steps=2, seed=1),
                Image.radial_gradient("L").convert("RGB"))
print([name for name in ("torch._inductor.compile_fx", "i2v.engine.unet.triton_kernels") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


# --- compiled steps (Inductor's C++ back end)


def test_a_compiled_step_equals_the_plain_one_and_a_broken_weight_shows() -> None:
    """The guided steps, whole (the only kind that the exact preset has) and with kept features: a C++ compiler takes
    half a minute for each kind. Recorded steps are compared in all four.
    """
    unet = least_unet("{}Block3D")
    steps = Accelerator(Compiled(), "in a test", Clock(), timed=1)
    guided = ALL_KINDS.model_copy(update={"guidance_interval": (0.0, 1.0)})
    plain = sample(unet, 4, given(1), None, guided)
    compiled = sample(unet, 4, given(1), steps, guided)
    assert len(steps.kept) == 2, steps.report()
    assert faster_steps.largest_difference([compiled], [plain]) < 1e-5
    unet.conv_out.weight += 0.01
    broken = sample(unet, 4, given(1), steps, guided)
    assert faster_steps.largest_difference([broken], [plain]) > 1e-3
    steps.drop()
    assert not steps.kept
