"""Every solver's table against diffusers' schedulers over whole trajectories, and against arithmetic done by hand."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from i2v.engine.solvers import HISTORY, Schedule, advance, solver_table, timesteps_of
from i2v.engine.source import DEMO_FOLDER
from i2v.presets import SOLVERS, Solver
from tests.engine.tiny_folder import SCHEDULER

DEMO_SCHEDULER = json.loads((DEMO_FOLDER / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
MIX = torch.randn(24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) / 5


def model(x: Tensor, timestep: int) -> Tensor:
    """A smooth nonlinear prediction of unit size: errors neither die out nor explode."""
    return torch.tanh(x.double() @ MIX) * (1 + timestep / 1000)


def noise(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)


def walk(config: dict[str, Any], solver: Solver, steps: int, dtype: torch.dtype = torch.float64) -> Tensor:
    schedule = Schedule.from_config(config)
    timesteps = timesteps_of(schedule, solver, steps)
    table = solver_table(schedule, solver, timesteps).to(dtype)
    x = noise(dtype)
    history = x.new_zeros(HISTORY, *x.shape)
    for row, timestep in zip(table, timesteps, strict=True):
        x, _, history = advance(row, x, model(x, timestep).to(dtype), history)
    return x


def oracle(config: dict[str, Any], solver: Solver, steps: int) -> Any:
    if solver == "ddim":
        scheduler = DDIMScheduler.from_config(config)
    elif solver == "dpm++2m":
        scheduler = DPMSolverMultistepScheduler.from_config(config, solver_type="midpoint", timestep_spacing="trailing")
    else:
        scheduler = UniPCMultistepScheduler.from_config(config, solver_type="bh2", timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    return scheduler


def walked_by(scheduler: Any) -> Tensor:
    x = noise()
    for timestep in scheduler.timesteps:
        x = scheduler.step(model(x, int(timestep)), timestep, x).prev_sample.double()
    return x


def difference(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("zero_snr", [True, False], ids=["zero SNR", "as it is"])
@pytest.mark.parametrize("betas", ["squaredcos_cap_v2", "scaled_linear", "linear"])
def test_a_trajectory_equals_that_of_diffusers(
    solver: Solver, prediction_type: str, zero_snr: bool, betas: str
) -> None:
    config = SCHEDULER | {
        "prediction_type": prediction_type,
        "rescale_betas_zero_snr": zero_snr,
        "beta_schedule": betas,
    }
    for steps in (1, 2, 3, 7, 16, 25, 50):
        scheduler = oracle(config, solver, steps)
        assert scheduler.timesteps.tolist() == timesteps_of(Schedule.from_config(config), solver, steps)
        # an unrescaled cosine schedule starts at log SNR -10: diffusers' float32 keeps four digits of it, ours all
        start = solver != "ddim" and betas == "squaredcos_cap_v2" and not zero_snr
        bound = 1e-5 if not start else 1e-3 if prediction_type == "v_prediction" else 1e-4
        assert difference(walk(config, solver, steps), walked_by(scheduler)) < bound, steps


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("config", [SCHEDULER, DEMO_SCHEDULER], ids=["published", "demo"])
def test_float32_loses_nothing_and_a_start_without_signal_is_finite(config: dict, solver: Solver) -> None:
    """alpha_bar is 0 at timestep 999, where an unguarded solver takes the logarithm of 0."""
    assert timesteps_of(Schedule.from_config(config), "unipc", 20)[0] == 999
    for steps in (1, 2, 16, 25, 50):
        assert difference(walk(config, solver, steps, torch.float32), walk(config, solver, steps)) < 1e-5, steps


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("at_one", [True, False])
def test_ddim_follows_the_spacing_and_the_end_that_the_config_asks_for(spacing: str, at_one: bool) -> None:
    config = SCHEDULER | {"timestep_spacing": spacing, "set_alpha_to_one": at_one, "steps_offset": 0}
    for steps in (1, 3, 30):
        scheduler = oracle(config, "ddim", steps)
        assert scheduler.timesteps.tolist() == timesteps_of(Schedule.from_config(config), "ddim", steps)
        assert difference(walk(config, "ddim", steps), walked_by(scheduler)) < 1e-5


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_model_that_knows_the_clean_latents_gives_them_in_any_number_of_steps(solver: Solver, spacing: str) -> None:
    """The demo model's schedule is nearly all noise: what ends one trained point too early is a picture of noise."""
    schedule = Schedule.from_config(DEMO_SCHEDULER | {"timestep_spacing": spacing})
    bars, clean = schedule.alphas_bar(), noise() * 0.5
    for steps in range(1, 101):
        timesteps = timesteps_of(schedule, solver, steps)
        x, history = noise() + 1, noise().new_zeros(HISTORY, *noise().shape)
        for row, timestep in zip(solver_table(schedule, solver, timesteps), timesteps, strict=True):
            alpha, sigma = bars[timestep] ** 0.5, (1 - bars[timestep]) ** 0.5
            v = alpha * (x - alpha * clean) / sigma - sigma * clean
            x, _, history = advance(row, x, v, history)
        assert difference(x, clean) < 1e-2, steps


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_ddim_equals_the_formula_by_hand(steps: int) -> None:
    """arXiv 2010.02502, equation 12, in NumPy; betas by hand too (arXiv 2305.08891, algorithm 1)."""
    bar = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    root = np.sqrt(np.cumprod(1 - np.minimum(1 - bar[1:] / bar[:-1], 0.999)))
    bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    x = noise().numpy()
    for timestep in range(1 + (steps - 1) * (1000 // steps), 0, -(1000 // steps)):
        now, before = bar[timestep], bar[timestep - 1000 // steps] if timestep >= 1000 // steps else 1.0
        v = model(torch.from_numpy(x), timestep).numpy()
        clean, eps = now**0.5 * x - (1 - now) ** 0.5 * v, now**0.5 * v + (1 - now) ** 0.5 * x
        x = before**0.5 * clean + (1 - before) ** 0.5 * eps
    assert difference(walk(SCHEDULER, "ddim", steps), torch.from_numpy(x)) < 1e-4


def test_exactly_as_many_trailing_timesteps_as_asked_from_the_last_to_the_first() -> None:
    """diffusers takes a float range, which at some counts has one timestep more."""
    for steps in range(1, 1001):
        found = timesteps_of(Schedule.from_config(SCHEDULER), "unipc", steps)
        assert len(set(found)) == steps
        assert found[0] == 999
        assert found == sorted(found, reverse=True)
        assert found[-1] >= 0


def test_a_step_is_pure() -> None:
    schedule = Schedule.from_config(SCHEDULER)
    row = solver_table(schedule, "unipc", timesteps_of(schedule, "unipc", 9))[4]
    given = (row, noise(), noise() + 1, torch.stack([noise()] * HISTORY))
    kept = [tensor.clone() for tensor in given]
    first, second = advance(*given), advance(*given)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clip_sample": True}, "clip_sample is on"),
        ({"thresholding": True}, "thresholding is on"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'"),
        ({"prediction_type": "flow"}, "prediction_type is 'flow'"),
        ({"timestep_spacing": "karras"}, "timestep_spacing is 'karras'"),
    ],
)
def test_a_schedule_that_is_not_supported_is_named(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Schedule.from_config(SCHEDULER | change)


# --- a flow whose end is known


def mixture_quantile(probability: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """The inverse distribution function of alpha data + sigma noise, data from MODES, by bisection."""
    low, high = np.full_like(probability, -8.0), np.full_like(probability, 8.0)
    for _ in range(80):
        middle = (low + high) / 2
        below = cumulative(middle, alpha, sigma) < probability
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


MODES = ((0.35, -1.2, 0.25), (0.4, 0.3, 0.4), (0.25, 1.6, 0.2))  # weight, mean, spread


def cumulative(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    total = np.zeros_like(x)
    for weight, mean, std in MODES:
        width = np.sqrt((alpha * std) ** 2 + sigma**2)
        total += weight * 0.5 * (1 + torch.erf(torch.from_numpy((x - alpha * mean) / width / 2**0.5)).numpy())
    return total


def ideal_clean(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[data | x] for the mixture: what a perfect model predicts."""
    top = bottom = torch.zeros_like(x)
    for weight, mean, std in MODES:
        width = (alpha * std) ** 2 + sigma**2
        density = weight * torch.exp(-((x - alpha * mean) ** 2) / (2 * width)) / width**0.5
        bottom = bottom + density
        top = top + density * (mean + alpha * std**2 / width * (x - alpha * mean))
    return top / bottom


def error_on_the_known_flow(solver: Solver, steps: int) -> float:
    """Root mean square distance from the end of the probability flow.

    In one dimension the flow keeps every point's quantile, so the end is the data's quantile of the start's: exact.
    """
    schedule = Schedule.from_config(SCHEDULER | {"timestep_spacing": "trailing", "steps_offset": 0})
    bars = schedule.alphas_bar()
    share = (np.arange(200) + 0.5) / 200
    x = torch.from_numpy(mixture_quantile(share, 0.0, 1.0))
    history = x.new_zeros(HISTORY, *x.shape)
    timesteps = timesteps_of(schedule, solver, steps)
    for row, timestep in zip(solver_table(schedule, solver, timesteps), timesteps, strict=True):
        alpha, sigma = bars[timestep] ** 0.5, (1 - bars[timestep]) ** 0.5
        clean = ideal_clean(x, alpha, sigma)
        v = alpha * (x - alpha * clean) / sigma - sigma * clean
        x, _, history = advance(row, x, v, history)
    return float((x - torch.from_numpy(mixture_quantile(share, 1.0, 0.0))).pow(2).mean().sqrt())


def test_second_order_solvers_converge_faster_than_ddim_on_a_flow_whose_end_is_known() -> None:
    """docs/performance.md has the whole table. 20 and 50 divide 1000: elsewhere DDIM's published stride is rounded."""
    orders = {
        solver: np.log(error_on_the_known_flow(solver, 20) / error_on_the_known_flow(solver, 50)) / np.log(2.5)
        for solver in SOLVERS
    }
    assert 0.7 < orders["ddim"] < 1.3
    assert orders["dpm++2m"] > 1.8
    assert orders["unipc"] > 1.8
