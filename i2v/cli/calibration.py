"""Which `image_concat_scale` a model's weights want: a short video at each, and its first frame against the photo.

Knows nothing of terminals and imports no torch; called by `i2v doctor --calibrate`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from i2v.engine.interface import OnStep
from i2v.errors import InvalidOutput
from i2v.images import fit_image
from i2v.request import GenerateRequest

if TYPE_CHECKING:
    from i2v.engine.engine import Engine

SCALES = (1.0, 2.0)  # as diffusers adds the image branch, and as the authors do
CLEAR_DB = 1.0  # closer together than this the photo decides nothing

# A crop of scikit-image's coffee.png: photo by Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0
EXAMPLE = Path(__file__).resolve().parent.parent / "demo" / "example.jpg"


@dataclass(frozen=True, slots=True)
class Trial:
    """One video. `psnr` of its frame 0 against the fitted photo, in dB; 0 when the result check refused the video."""

    scale: float
    psnr: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """All trials, and the scale in use when they began."""

    trials: tuple[Trial, ...]
    used: float

    @property
    def best(self) -> Trial:
        """The trial whose first frame is closest to the photo."""
        return max(self.trials, key=lambda trial: trial.psnr)

    @property
    def clear(self) -> bool:
        """Whether the best trial stands out from every other one."""
        others = [trial.psnr for trial in self.trials if trial is not self.best]
        return all(self.best.psnr - psnr >= CLEAR_DB for psnr in others)

    @property
    def right(self) -> bool:
        """Whether the scale in use is clearly the best one."""
        return self.clear and self.best.scale == self.used

    def lines(self) -> list[str]:
        """The report: one line a trial, then what to do."""
        found = [f"image_concat_scale {trial.scale:g}: frame 0 is at {trial.psnr:.1f} dB" for trial in self.trials]
        best = self.best.scale
        if not self.clear:
            advice = f"less than {CLEAR_DB:g} dB apart: this photo does not decide; try another one with --image"
        elif self.right:
            advice = f"{best:g} is right for this model, and it is what is used; nothing to change"
        else:
            advice = (
                f"{best:g} is right for this model, and {self.used:g} is used; put `image_concat_scale: {best}` into "
                f"the settings file, or set I2V_IMAGE_CONCAT_SCALE={best}, or start with --image-concat-scale {best}"
            )
        return [*found, advice]


def short_request(kind: str) -> GenerateRequest:
    """A video just long enough: the published model at a usual size, any other model small."""
    size, frames, steps = (512, 16, 25) if kind == "real" else (256, 4, 10)
    return GenerateRequest(prompt="static camera", width=size, height=size, num_frames=frames, steps=steps, seed=1)


def calibrate(
    engine: "Engine",
    photo: Image.Image,
    request: GenerateRequest,
    *,
    on_trial: Callable[[float], None] | None = None,
    on_step: OnStep | None = None,
) -> Calibration:
    """Generate `request` from `photo` at each of `SCALES`, with equal noise. Raises what `engine.generate` raises.

    `on_trial` is told each scale before its video is begun. The engine given is left as it was.
    """
    wanted = np.asarray(fit_image(photo, request.width, request.height, request.fit)[0])
    request = request.with_seed()
    trials = []
    for scale in SCALES:
        if on_trial is not None:
            on_trial(scale)
        try:
            frames = engine.at_image_concat_scale(scale).generate(request, photo, on_step=on_step).frames
            trials.append(Trial(scale, psnr(frames[0], wanted)))
        except InvalidOutput:
            trials.append(Trial(scale, 0.0))
    return Calibration(tuple(trials), engine.conventions.image_concat_scale)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal to noise of two uint8 pictures in dB; 99 when they are equal."""
    error = float(((one.astype(np.float64) - other) ** 2).mean())
    return min(99.0, 10 * float(np.log10(255**2 / error))) if error else 99.0
