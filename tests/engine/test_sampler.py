"""Guidance, presets and the denoising step, against arithmetic done by hand and cases with a known answer."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from i2v.engine.conditioning import Conditioning
from i2v.engine.device_work import Pacer
from i2v.engine.sampler import PRESETS, Sampling, denoise, guide, schedule
from i2v.engine.solvers import Schedule
from i2v.errors import InvalidOutput, InvalidRequest, JobCancelled
from i2v.notes import Note, say
from i2v.presets import EXACT, SOLVERS, CacheRule
from tests.engine.tiny_folder import SCHEDULER

SHAPE = (1, 4, 2, 6, 6)


def conditioning(rows: int = 1, scale: float = 1.0) -> Conditioning:
    return Conditioning(torch.zeros(rows, 77, 4), torch.zeros(rows, 1, 4), torch.zeros(SHAPE), 16, scale)


@dataclass
class IdealUNet:
    """Predicts v perfectly for data from a normal distribution; keeps what it was asked in `calls`."""

    mean: float = 0.3
    std: float = 0.7
    spoil: float = 0.0
    bars: list[float] = field(default_factory=list)
    calls: list[tuple[bool, bool]] = field(default_factory=list)

    def begin(self, *given: Any, **_options: Any) -> Any:
        bars = Schedule.from_config(SCHEDULER).alphas_bar()
        self.bars = [bars[timestep] for timestep in given[4]]
        return SimpleNamespace(at=lambda index: index)

    def step(self, state: int, latents: torch.Tensor, _: int, *, guided: bool, cache: Any, refresh: bool) -> Any:
        self.calls.append((guided, refresh))
        if cache is not None and refresh:
            cache.deep = torch.zeros(2 if guided else 1, 1)
        alpha, sigma = self.bars[state] ** 0.5, (1 - self.bars[state]) ** 0.5
        clean = self.mean + alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2) * (latents - alpha * self.mean)
        v = alpha * (latents - alpha * clean) / max(sigma, 1e-6) - sigma * clean + self.spoil
        return v.expand(2, *SHAPE[1:]) if guided else v


def solve(unet: IdealUNet, sampling: Sampling, steps: int, noise: torch.Tensor, rows: int = 1) -> torch.Tensor:
    return denoise(unet, *schedule(SCHEDULER, sampling, steps), noise, conditioning(rows, 9.0), sampling)


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("steps", [1, 2, 10, 30, 50, 77])
def test_a_schedule_has_exactly_the_steps_that_were_asked(steps: int) -> None:
    for solver in SOLVERS:
        table, timesteps = schedule(SCHEDULER, Sampling(solver=solver), steps)
        assert len(timesteps) == len(table) == steps
        assert timesteps == sorted(timesteps, reverse=True)


def test_more_steps_than_were_trained_are_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="1001") as caught:
        schedule(SCHEDULER, PRESETS["exact"], 1001)
    assert caught.value.field == "steps"
    with pytest.raises(InvalidRequest, match="fewer are wanted"):
        schedule(SCHEDULER, PRESETS["exact"], 1000)  # leading spacing with offset 1 would begin at timestep 1000


def test_guidance_by_hand() -> None:
    prediction = torch.tensor([[1.0, 2.0], [2.0, 0.0]])
    assert guide(prediction, 3.0).tolist() == [[4.0, -4.0]]
    assert guide(prediction, torch.tensor(1.0)).tolist() == [[2.0, 0.0]]


def test_guidance_rescale_gives_back_the_conditional_spread() -> None:
    prediction = torch.randn(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(2))
    wild = guide(prediction, 9.0)
    assert wild.std() > 3 * prediction[1].std()
    assert torch.allclose(guide(prediction, 9.0, rescale=1.0).std(), prediction[1].std(), rtol=1e-4)
    assert torch.allclose(
        guide(prediction, 9.0, rescale=0.5), 0.5 * wild + 0.5 * guide(prediction, 9.0, 1.0), atol=1e-4
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_single_possible_picture_is_found_exactly(solver: str, noise: torch.Tensor) -> None:
    found = solve(IdealUNet(mean=0.4, std=0.0), Sampling(solver=solver), 10, noise)
    assert torch.allclose(found, torch.full(SHAPE, 0.4), atol=0.02 if solver == "ddim" else 1e-4)


@pytest.mark.parametrize("solver", ["dpm++2m", "unipc"])
def test_a_fast_solver_in_25_steps_is_nearer_to_the_true_path_than_ddim_in_25(solver: str, noise: torch.Tensor) -> None:
    """For normal data the path is known: noise of spread 1 ends at mean + std x noise."""
    wanted = 0.3 + 0.7 * noise
    fast = (solve(IdealUNet(), Sampling(solver=solver), 25, noise) - wanted).norm() / wanted.norm()
    ddim = (solve(IdealUNet(), Sampling(solver="ddim"), 25, noise) - wanted).norm() / wanted.norm()
    assert fast < 0.02
    assert fast < ddim / 2


def test_unguided_steps_of_an_interval_ask_for_one_prediction_only(noise: torch.Tensor) -> None:
    unet = IdealUNet()
    solve(unet, Sampling(solver="ddim", guidance_interval=(0.25, 0.5)), 8, noise, rows=2)
    assert [guided for guided, _ in unet.calls] == [False, False, True, True, False, False, False, False]


def test_the_deep_cache_is_filled_anew_where_guidance_begins(noise: torch.Tensor) -> None:
    """An unguided step's features have one row; the first guided step is whole whatever its number."""
    unet = IdealUNet()
    solve(
        unet, Sampling(solver="unipc", guidance_interval=(0.5, 1.0), deep_cache=CacheRule(interval=3)), 8, noise, rows=2
    )
    assert [guided for guided, _ in unet.calls] == [False] * 4 + [True] * 4
    assert [whole for _, whole in unet.calls] == [True, False, False, True, True, False, True, False]


@dataclass
class Device:
    """Writes down what is queued, done and reported; its work is done when somebody waits for it."""

    log: list[str] = field(default_factory=list)
    queued: int = 0

    def step(self) -> None:
        self.queued += 1
        self.log.append(f"queued {self.queued}")

    def mark(self) -> Any:
        number = self.queued
        return SimpleNamespace(query=lambda: False, synchronize=lambda: self.log.append(f"done {number}"))


def run_on(device: Device, steps: int, on_step: Any, noise: torch.Tensor) -> torch.Tensor:
    class Queueing(IdealUNet):
        def step(self, *given: Any, **options: Any) -> Any:
            device.step()
            return super().step(*given, **options)

    table = schedule(SCHEDULER, EXACT, steps)
    return denoise(Queueing(), *table, noise, conditioning(), EXACT, on_step=on_step, pace=Pacer(device.mark))


def test_the_host_is_one_step_ahead_of_the_device_and_a_step_is_reported_when_it_is_done(noise: torch.Tensor) -> None:
    """A recorded step is queued in no time: all of a job's steps were, and its progress jumped to the end."""
    device = Device()
    run_on(device, 4, lambda step, steps, _: device.log.append(f"reported {step} of {steps}"), noise)
    assert device.log == [
        "queued 1",
        *("queued 2", "done 1", "reported 1 of 4"),
        *("queued 3", "done 2", "reported 2 of 4"),
        *("queued 4", "done 3", "reported 3 of 4"),
        *("done 4", "reported 4 of 4"),
    ]


def test_a_cancel_takes_effect_within_two_steps(noise: torch.Tensor) -> None:
    device = Device()

    def cancel_at_third(step: int, steps: int, middle: torch.Tensor) -> None:
        if step == 3:
            raise JobCancelled("by its owner")

    with pytest.raises(JobCancelled):
        run_on(device, 50, cancel_at_third, noise)
    assert device.log[-2:] == ["queued 4", "done 3"]


def test_without_a_queue_a_step_is_reported_before_the_next_begins(noise: torch.Tensor) -> None:
    unet, seen = IdealUNet(), []
    table = schedule(SCHEDULER, EXACT, 3)
    denoise(unet, *table, noise, conditioning(), EXACT, on_step=lambda step, *_: seen.append((step, len(unet.calls))))
    assert seen == [(1, 1), (2, 2), (3, 3)]


def test_a_steps_report_shows_the_middle_frame_of_what_it_estimates(noise: torch.Tensor) -> None:
    shown: list[torch.Tensor] = []
    table = schedule(SCHEDULER, EXACT, 30)
    latents = denoise(
        IdealUNet(), *table, noise, conditioning(), EXACT, on_step=lambda step, steps, middle: shown.append(middle)
    )
    assert {tuple(middle.shape) for middle in shown} == {(4, *SHAPE[3:])}
    assert torch.allclose(shown[-1], latents[0, :, SHAPE[2] // 2], atol=0.05)
    assert not torch.allclose(shown[0], shown[-1], atol=0.05)


def test_latents_that_are_not_finite_are_refused(noise: torch.Tensor) -> None:
    with pytest.raises(InvalidOutput, match="not finite"):
        solve(IdealUNet(spoil=float("inf")), EXACT, 3, noise)


def test_the_exact_preset_guides_every_step_and_approximates_nothing() -> None:
    exact = PRESETS["exact"]
    assert exact == EXACT == Sampling(solver="ddim")
    assert all(exact.guides(index, 50) for index in range(50))
    assert exact.steps(77) == 77
    assert exact.approximates(77) == exact.approximates_in_general() == []


@pytest.mark.parametrize("preset", ["fast", "turbo"])
def test_other_presets_cap_the_steps_and_never_add_any(preset: str) -> None:
    sampling = PRESETS[preset]  # type: ignore[index]
    assert sampling.steps(100) == sampling.max_steps
    assert sampling.steps(3) == 3


def test_a_preset_says_all_that_it_approximates_and_no_more() -> None:
    turbo = PRESETS["turbo"].model_copy(update={"solver": "dpm++2m", "max_steps": 16})
    said = [say(note) for note in turbo.approximates(50)]
    assert "; ".join(said) == (
        "DPM-Solver++(2M) in 16 steps stands in for DDIM in 50; guidance in steps 9 to 16 only; "
        "one step in 2 is whole, the others reuse deep features (DeepCache, branch 1)"
    )
    unguided = turbo.approximates(50, guided=False)
    assert [note.code for note in unguided] == ["solver", "deep_cache"]
    assert Sampling(solver="ddim", guidance_rescale=0.7).approximates(50) == [Note("guidance_rescaled", {"by": 0.7})]
    assert turbo.model_copy(update={"guidance_interval": (0.0, 0.0)}).approximates(50)[1] == Note("guidance_nowhere")
    assert Sampling(solver="ddim", max_steps=20).approximates(20) == []
    (fewer,) = Sampling(solver="ddim", max_steps=20).approximates(50)
    assert say(fewer) == "DDIM in 20 steps stands in for DDIM in 50"
