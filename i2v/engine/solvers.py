"""How a solver goes from one timestep to the next: every step is linear, and its numbers come from a table.

DDIM, DPM-Solver++(2M) and UniPC differ in ten numbers a step. `solver_table` computes them once, in float64;
`advance` is the one step of them all: tensors in, tensors out, no state in Python. The schedule's arithmetic up to
alpha_bar is in float32 as in the published code, so that a schedule means the same numbers here and there. diffusers'
schedulers are the tests' oracle. Called by `sampler.py`; knows nothing of models and guidance.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from i2v.presets import Solver

# alpha_bar of the last timestep is 0 in a zero-SNR schedule, and the fast solvers work with log(alpha): this stands in
# for the 0 (as in diffusers, for its own rescaled betas) and keeps their first step finite; 0.0002 of the signal
INSTEAD_OF_ZERO = 2.0**-24
MAX_BETA = 0.999  # of squaredcos_cap_v2

HISTORY = 3  # latents that a step hands on: the corrected ones, its estimate, and the estimate before


@dataclass(frozen=True, slots=True)
class Schedule:
    """The content of a `scheduler_config.json`, checked; the defaults are those of diffusers' DDIM.

    `timestep_spacing`, `steps_offset` and `set_alpha_to_one` are DDIM's; the fast solvers take trailing timesteps and
    end at alpha_bar 1, because the leading ones start too late for a zero-SNR model.
    """

    num_train_timesteps: int = 1000
    beta_schedule: str = "linear"
    beta_start: float = 0.0001
    beta_end: float = 0.02
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Raises ValueError for a choice that is unknown or that would make a step nonlinear."""
        for name in ("clip_sample", "thresholding"):
            if config.get(name):
                raise ValueError(f"{name} is on; latents have no fixed range to be kept in, so it is not supported")
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in config.items() if name in known}
        if values.get("trained_betas") is not None:
            values["trained_betas"] = tuple(values["trained_betas"])
            values["num_train_timesteps"] = len(values["trained_betas"])
        schedule = cls(**values)
        for name, choices in (
            ("beta_schedule", ("linear", "scaled_linear", "squaredcos_cap_v2")),
            ("prediction_type", ("epsilon", "sample", "v_prediction")),
            ("timestep_spacing", ("leading", "trailing", "linspace")),
        ):
            if getattr(schedule, name) not in choices:
                raise ValueError(f"{name} is {getattr(schedule, name)!r}; it must be one of {', '.join(choices)}")
        return schedule

    def alphas_bar(self) -> list[float]:
        """alpha_bar of every trained timestep."""
        betas = self._betas()
        if self.rescale_betas_zero_snr:
            betas = to_zero_terminal_snr(betas)
        found: list[float] = torch.cumprod(1.0 - betas, dim=0).double().tolist()
        return found

    def _betas(self) -> Tensor:
        count = self.num_train_timesteps
        if self.trained_betas is not None:
            return torch.tensor(self.trained_betas, dtype=torch.float32)
        if self.beta_schedule == "linear":
            return torch.linspace(self.beta_start, self.beta_end, count)
        if self.beta_schedule == "scaled_linear":
            return torch.linspace(self.beta_start**0.5, self.beta_end**0.5, count) ** 2
        bars = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
        return torch.tensor([min(1 - after / before, MAX_BETA) for before, after in pairwise(bars)])


def to_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar) so that it ends at 0 (arXiv 2305.08891, algorithm 1)."""
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    bars = ((root - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([bars[:1], bars[1:] / bars[:-1]])


def timesteps_of(schedule: Schedule, solver: Solver, steps: int) -> list[int]:
    """Exactly `steps` timesteps from noisy to clean."""
    trained = schedule.num_train_timesteps
    spacing = schedule.timestep_spacing if solver == "ddim" else "trailing"
    if spacing == "trailing":
        return [round(trained - number * trained / steps) - 1 for number in range(steps)]
    if spacing == "linspace":
        even: list[int] = np.linspace(0, trained - 1, steps).round().astype(int).tolist()
        return even[::-1]
    return [number * (trained // steps) + schedule.steps_offset for number in reversed(range(steps))]


@dataclass(frozen=True, slots=True)
class NoiseLevel:
    """How noisy a point is: x = alpha clean + sigma noise."""

    alpha: float
    sigma: float

    @classmethod
    def of(cls, alpha_bar: float) -> Self:
        return cls(math.sqrt(alpha_bar), math.sqrt(1.0 - alpha_bar))

    @property
    def log_snr(self) -> float:
        """log(alpha / sigma), infinite for a clean point."""
        return math.log(self.alpha / self.sigma) if self.sigma else math.inf


CLEAN = NoiseLevel(1.0, 0.0)


@dataclass(frozen=True, slots=True)
class Coefficients:
    """One step's numbers, in the order in which `advance` reads them.

    The estimate of the clean latents is `x` x + `prediction` p. The corrected latents are a sum over the latents, the
    corrected latents of the step before, and the estimates of this step, the one before and the one before that; the
    next latents one over the corrected latents and the estimates of this step and the one before.
    """

    estimate: tuple[float, float]
    correct: tuple[float, float, float, float, float] = (1.0, 0.0, 0.0, 0.0, 0.0)
    advance: tuple[float, float, float] = (0.0, 1.0, 0.0)


def solver_table(schedule: Schedule, solver: Solver, timesteps: Sequence[int]) -> Tensor:
    """The coefficients of every step, (steps, 10), float64 on the CPU."""
    bars = schedule.alphas_bar()
    if solver == "ddim":
        rows = _ddim(schedule, bars, timesteps)
    else:
        levels = [NoiseLevel.of(bars[timestep] or INSTEAD_OF_ZERO) for timestep in timesteps] + [CLEAN]
        find = _dpm_solver if solver == "dpm++2m" else _unipc
        rows = [find(levels, number, schedule.prediction_type) for number in range(len(timesteps))]
    return torch.tensor([(*row.estimate, *row.correct, *row.advance) for row in rows], dtype=torch.float64)


def advance(coefficients: Tensor, x: Tensor, prediction: Tensor, history: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step: the next latents, the estimate of the clean ones, and the history for the next step.

    `coefficients` (10,): a row of the table; `x` and `prediction` of one shape; `history` (3, ...) of it, zeros before
    the first step.
    """
    row = coefficients.unbind()
    corrected_before, estimate_1, estimate_2 = history.unbind()
    estimate = row[0] * x + row[1] * prediction
    corrected = row[2] * x + row[3] * corrected_before + row[4] * estimate + row[5] * estimate_1 + row[6] * estimate_2
    following = row[7] * corrected + row[8] * estimate + row[9] * estimate_1
    return following, estimate, torch.stack([corrected, estimate, estimate_1])


def _estimate(level: NoiseLevel, prediction_type: str) -> tuple[float, float]:
    """The clean latents from x and the prediction: of the noise, of them, or of v = alpha noise - sigma clean."""
    if prediction_type == "epsilon":
        alpha = level.alpha or INSTEAD_OF_ZERO**0.5
        return 1 / alpha, -level.sigma / alpha
    return (0.0, 1.0) if prediction_type == "sample" else (level.alpha, -level.sigma)


def _ddim(schedule: Schedule, bars: Sequence[float], timesteps: Sequence[int]) -> list[Coefficients]:
    """arXiv 2010.02502, equation 12 with eta 0: the noise in x is kept, at the next point's strength.

    The next point lies a fixed stride below, as in the published code, and is not the next entry of `timesteps`. The
    last step ends at the clean point, whatever the stride: where the number of trailing timesteps does not divide the
    trained ones, the last of them may be a whole stride or more, and the published code then ends at a noisy point.
    """
    last = 1.0 if schedule.set_alpha_to_one else bars[0]
    stride = schedule.num_train_timesteps // len(timesteps)
    rows = []
    for number, timestep in enumerate(timesteps, start=1):
        before = timestep - stride
        ends = before < 0 or number == len(timesteps)
        now, then = NoiseLevel.of(bars[timestep]), NoiseLevel.of(last if ends else bars[before])
        kept = then.sigma / now.sigma if now.sigma else 0.0
        rows.append(
            Coefficients(
                estimate=_estimate(now, schedule.prediction_type),
                advance=(kept, then.alpha - kept * now.alpha, 0.0),
            )
        )
    return rows


def _dpm_solver(levels: Sequence[NoiseLevel], number: int, prediction_type: str) -> Coefficients:
    """arXiv 2211.01095, algorithm 2 (2M, midpoint); the first and the last step are of first order."""
    now, then = levels[number], levels[number + 1]
    h = then.log_snr - now.log_snr
    gain = -then.alpha * math.expm1(-h)
    slope = 0.0  # of the estimate over log_snr, as a multiple of the difference to the estimate before
    if number > 0 and number < len(levels) - 2:
        slope = 0.5 * h / (now.log_snr - levels[number - 1].log_snr)
    return Coefficients(
        estimate=_estimate(now, prediction_type),
        advance=(then.sigma / now.sigma, gain * (1 + slope), -gain * slope),
    )


def _unipc(levels: Sequence[NoiseLevel], number: int, prediction_type: str) -> Coefficients:
    """arXiv 2302.04867, order 2 with B(h) = e^h - 1: each estimate first corrects the latents it was made from."""
    now, then = levels[number], levels[number + 1]
    h = then.log_snr - now.log_snr
    gain = -then.alpha * math.expm1(-h)
    slope = 0.0
    if _unipc_order(levels, number) == 2:
        slope = 0.5 * h / (now.log_snr - levels[number - 1].log_snr)
    return Coefficients(
        estimate=_estimate(now, prediction_type),
        correct=_unipc_corrector(levels, number) if number > 0 else (1.0, 0.0, 0.0, 0.0, 0.0),
        advance=(then.sigma / now.sigma, gain * (1 + slope), -gain * slope),
    )


def _unipc_order(levels: Sequence[NoiseLevel], number: int) -> int:
    return min(2, number + 1, len(levels) - 1 - number)


def _unipc_corrector(levels: Sequence[NoiseLevel], number: int) -> tuple[float, float, float, float, float]:
    """The step from the point before to this one again, now that this one's estimate is known."""
    before, now = levels[number - 1], levels[number]
    h = now.log_snr - before.log_snr
    gain = -now.alpha * math.expm1(-h)
    older, newer = 0.0, 0.5  # weights of the differences to the estimate at the point before
    if _unipc_order(levels, number - 1) == 2:
        ratio = (levels[number - 2].log_snr - before.log_snr) / h
        first = math.expm1(-h) / -h - 1  # h phi_2(h)
        second = first / -h - 0.5
        right = np.array([first, 2 * second]) / math.expm1(-h)
        weights = np.linalg.solve(np.array([[1.0, 1.0], [ratio, 1.0]]), right)
        older, newer = float(weights[0]) / ratio, float(weights[1])
    return 0.0, now.sigma / before.sigma, gain * newer, gain * (1 - newer - older), gain * older
