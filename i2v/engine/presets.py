"""What the presets change in sampling, and the sentence in which a result says so. Numbers and words alone.

`i2v.presets` reads an operator's own from a file; `sampler.py` walks as they say.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from i2v.engine.solvers import SOLVERS, Solver
from i2v.request import Preset


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a preset walks from noise to video.

    `max_steps` caps the request's steps (None: as asked). `guidance_interval` is the part of the steps, as fractions
    from the first to the last, that is guided (arXiv 2404.07724). `guidance_rescale` mixes in the prediction at the
    conditional one's spread (arXiv 2305.08891, section 3.4). `deep_cache` (interval, branch): every interval-th step is
    a whole one, the others reuse its deep features (arXiv 2312.00858); interval 1 is off.
    """

    solver: Solver
    max_steps: int | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    deep_cache: tuple[int, int] = (1, 0)

    def steps(self, asked: int) -> int:
        return asked if self.max_steps is None else min(asked, self.max_steps)

    def guides(self, index: int, steps: int) -> bool:
        """Whether step `index` (from 0) is guided; the interval takes its first end and leaves its last."""
        first, last = self.guidance_interval
        return first <= index / steps < last

    def approximates(self, asked: int, *, guided: bool = True) -> str:
        """What stands in for the reference (DDIM, every step guided and whole), as a sentence's end; empty if nothing.

        `guided` False leaves out what only changes guidance.
        """
        steps = self.steps(asked)
        said = []
        if (self.solver, steps) != ("ddim", asked):
            said.append(f"{SOLVERS[self.solver]} in {steps} steps stands in for DDIM in {asked}")
        marked = [index + 1 for index in range(steps) if self.guides(index, steps)]
        if guided and len(marked) < steps:
            said.append(f"guidance in steps {marked[0]} to {marked[-1]} only" if marked else "no step is guided")
        if guided and self.guidance_rescale:
            said.append(f"guidance rescaled by {self.guidance_rescale:g}")
        interval, branch = self.deep_cache
        if interval > 1:
            said.append(f"one step in {interval} is whole, the others reuse deep features (DeepCache, branch {branch})")
        return "; ".join(said)


EXACT = Sampling("ddim")
PRESETS: Mapping[Preset, Sampling] = {
    "exact": EXACT,
    "fast": Sampling("unipc", max_steps=25),
    # guided in its second half: the other half lost the effect, 22 dB from exact against 59 (docs/performance.md)
    "turbo": Sampling("dpm++2m", max_steps=16, guidance_interval=(0.5, 1.0), deep_cache=(2, 1)),
}
