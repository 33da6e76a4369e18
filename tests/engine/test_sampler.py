"""Schedules, guidance and solvers, against arithmetic done by hand and against cases with a known answer."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_folder import SCHEDULER

from i2v.engine.conditioning import Conditioning
from i2v.engine.sampler import PRESETS, Sampling, advance, denoise_step, guide, make_scheduler, schedule
from i2v.engine.source import DEMO_FOLDER
from i2v.errors import InvalidRequest

SHAPE = (1, 4, 2, 6, 6)
DEMO_SCHEDULER = json.loads((DEMO_FOLDER / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))


def conditioning(rows: int = 1, scale: float = 1.0) -> Conditioning:
    return Conditioning(torch.zeros(rows, 77, 4), torch.zeros(rows, 1, 4), torch.zeros(SHAPE), 16, scale)


def alphas_bar(config: dict) -> np.ndarray:
    """The schedule by hand: squared cosine betas, then rescaled to zero terminal SNR (arXiv 2305.08891)."""
    if config.get("trained_betas") is not None:
        return np.cumprod(1 - np.array(config["trained_betas"], np.float32), dtype=np.float32)
    bar = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    root = np.sqrt(np.cumprod(1 - betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root**2


def solve(config: dict, sampling: Sampling, steps: int, noise: torch.Tensor, std: float, mean: float) -> torch.Tensor:
    """Sample with the ideal v-prediction for data drawn from a normal distribution of this mean and spread."""
    scheduler, timesteps = schedule(config, sampling, steps)
    bar = alphas_bar(config)

    def ideal(latents: torch.Tensor, index: int, _guided: bool) -> torch.Tensor:
        alpha, sigma = bar[timesteps[index]] ** 0.5, (1 - bar[timesteps[index]]) ** 0.5
        clean = mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (latents - alpha * mean)
        noise = (latents - alpha * clean) / max(sigma, 1e-6)
        return alpha * noise - sigma * clean

    latents = noise
    for index in range(len(timesteps)):
        latents, _ = denoise_step(ideal, scheduler, timesteps, index, latents, conditioning(), sampling)
    return latents


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("steps", [1, 2, 10, 30, 50, 77])
def test_a_schedule_has_exactly_the_steps_that_were_asked(steps: int) -> None:
    for sampling in (PRESETS["exact"], Sampling("dpm++2m")):
        _, timesteps = schedule(SCHEDULER, sampling, steps)
        assert len(timesteps) == steps
        assert timesteps == sorted(timesteps, reverse=True)


def test_more_steps_than_were_trained_are_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="1001") as caught:
        schedule(SCHEDULER, PRESETS["exact"], 1001)
    assert caught.value.field == "steps"
    with pytest.raises(InvalidRequest, match="fewer are wanted"):
        schedule(SCHEDULER, PRESETS["exact"], 1000)  # leading spacing with offset 1 would begin at timestep 1000


@pytest.mark.parametrize("steps", [5, 50])
def test_ddim_equals_the_formula_by_hand(steps: int, noise: torch.Tensor) -> None:
    scheduler, timesteps = schedule(SCHEDULER, PRESETS["exact"], steps)
    bar = alphas_bar(SCHEDULER)
    prediction = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    for index in (0, len(timesteps) // 2, len(timesteps) - 1):
        now, before = timesteps[index], timesteps[index] - 1000 // steps
        alpha, sigma = bar[now] ** 0.5, (1 - bar[now]) ** 0.5
        clean = alpha * noise.numpy() - sigma * prediction.numpy()
        epsilon = alpha * prediction.numpy() + sigma * noise.numpy()
        bar_before = bar[before] if before >= 0 else 1.0
        wanted = bar_before**0.5 * clean + (1 - bar_before) ** 0.5 * epsilon
        latents, estimate = advance(scheduler, prediction, now, noise)
        np.testing.assert_allclose(latents.numpy(), wanted, atol=1e-4)
        np.testing.assert_allclose(estimate.numpy(), clean, atol=1e-4)


def test_guidance_by_hand() -> None:
    prediction = torch.tensor([[1.0, 2.0], [2.0, 0.0]])
    assert guide(prediction, 3.0).tolist() == [[4.0, -4.0]]
    assert guide(prediction, 1.0).tolist() == [[2.0, 0.0]]


def test_guidance_rescale_gives_back_the_conditional_spread() -> None:
    prediction = torch.randn(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(2))
    wild = guide(prediction, 9.0)
    assert wild.std() > 3 * prediction[1].std()
    assert torch.allclose(guide(prediction, 9.0, rescale=1.0).std(), prediction[1].std(), rtol=1e-4)
    assert torch.allclose(
        guide(prediction, 9.0, rescale=0.5), 0.5 * wild + 0.5 * guide(prediction, 9.0, 1.0), atol=1e-4
    )


@pytest.mark.parametrize("config", [SCHEDULER, DEMO_SCHEDULER], ids=["published", "demo"])
@pytest.mark.parametrize("steps", [1, 2, 10, 25])
def test_the_fast_solver_starts_at_the_last_timestep_and_stays_finite(
    config: dict, steps: int, noise: torch.Tensor
) -> None:
    """With zero terminal SNR log(alpha) is minus infinity at t=999; unguarded, the first step gives NaN."""
    sampling = Sampling("dpm++2m")
    _, timesteps = schedule(config, sampling, steps)
    assert timesteps[0] == 999
    assert torch.isfinite(solve(config, sampling, steps, noise, std=0.7, mean=0.3)).all()


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m"])
def test_a_single_possible_picture_is_found_exactly(solver: str, noise: torch.Tensor) -> None:
    found = solve(SCHEDULER, Sampling(solver), 10, noise, std=0.0, mean=0.4)
    assert torch.allclose(found, torch.full(SHAPE, 0.4), atol=0.02 if solver == "ddim" else 1e-4)


def test_the_fast_solver_in_25_steps_is_nearer_to_the_true_path_than_ddim_in_25(noise: torch.Tensor) -> None:
    """For normal data the path is known: noise of spread 1 ends at mean + std x noise."""
    wanted = 0.3 + 0.7 * noise
    fast = (solve(SCHEDULER, Sampling("dpm++2m"), 25, noise, std=0.7, mean=0.3) - wanted).norm() / wanted.norm()
    ddim = (solve(SCHEDULER, Sampling("ddim"), 25, noise, std=0.7, mean=0.3) - wanted).norm() / wanted.norm()
    assert fast < 0.02
    assert fast < ddim / 2


def test_unguided_steps_of_an_interval_ask_for_one_prediction_only(noise: torch.Tensor) -> None:
    sampling = Sampling("ddim", guidance_interval=(0.25, 0.5))
    scheduler, timesteps = schedule(SCHEDULER, sampling, 8)
    asked: list[bool] = []

    def predict(latents: torch.Tensor, _index: int, guided: bool) -> torch.Tensor:
        asked.append(guided)
        return torch.zeros(2 if guided else 1, *SHAPE[1:])

    for index in range(8):
        denoise_step(predict, scheduler, timesteps, index, noise, conditioning(2, 9.0), sampling)
    assert asked == [False, False, True, True, False, False, False, False]


def test_the_exact_preset_guides_every_step_and_approximates_nothing() -> None:
    exact = PRESETS["exact"]
    assert exact == Sampling("ddim")
    assert all(exact.guides(index, 50) for index in range(50))
    assert exact.steps(77) == 77
    assert exact.approximates == ""


@pytest.mark.parametrize("preset", ["fast", "turbo"])
def test_other_presets_cap_the_steps_and_never_add_any(preset: str) -> None:
    steps: Callable[[int], int] = PRESETS[preset].steps
    assert steps(100) == PRESETS[preset].max_steps
    assert steps(3) == 3


def test_each_job_has_its_own_scheduler() -> None:
    assert make_scheduler(SCHEDULER, "ddim") is not make_scheduler(SCHEDULER, "ddim")
