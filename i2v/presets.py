"""What a preset changes in sampling: the three of the package, or those of a file like `configs/presets.yaml`.

Numbers alone, and no torch: `engine.sampler` walks as they say, results and the page say what they approximate.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from i2v.errors import SettingsError, refusals
from i2v.notes import Note
from i2v.request import Preset

Solver = Literal["ddim", "dpm++2m", "unipc"]
SOLVERS: Mapping[Solver, str] = {"ddim": "DDIM", "dpm++2m": "DPM-Solver++(2M)", "unipc": "UniPC"}


Part = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CacheRule(_Strict):
    """Every `interval`-th step is a whole one, the others reuse its deep features and run only the first `branch`
    layers on the way down and the last `branch` + 1 on the way up (arXiv 2312.00858).

    Interval 1 is off; `branch` means nothing then, and is 0.
    """

    interval: int = Field(1, ge=1, le=10)
    branch: int = Field(0, ge=0, le=8)

    @field_validator("branch")
    @classmethod
    def _off(cls, branch: int, others: ValidationInfo) -> int:
        return branch if others.data.get("interval", 1) > 1 else 0


class Sampling(_Strict):
    """How a preset walks from noise to video, and one preset as it stands in the file.

    `max_steps` caps the request's steps (None: as asked). `guidance_interval` is the part of the steps, as fractions
    from the first to the last, that is guided (arXiv 2404.07724). `guidance_rescale` mixes in the prediction at the
    conditional one's spread (arXiv 2305.08891, section 3.4). `deep_cache`: see `CacheRule`.
    """

    solver: Solver
    max_steps: int | None = Field(None, ge=1, le=1000)
    guidance_interval: tuple[Part, Part] = (0.0, 1.0)
    guidance_rescale: Part = 0.0
    deep_cache: CacheRule = CacheRule()

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError(f"guidance_interval is {list(self.guidance_interval)}; its first end comes first")
        return self

    def steps(self, asked: int) -> int:
        return asked if self.max_steps is None else min(asked, self.max_steps)

    def guides(self, index: int, steps: int) -> bool:
        """Whether step `index` (from 0) is guided; the interval takes its first end and leaves its last."""
        first, last = self.guidance_interval
        return first <= index / steps < last

    def approximates(self, asked: int, *, guided: bool = True) -> list[Note]:
        """What stands in for the reference (DDIM, every step guided and whole) in a job of `asked` steps.

        `guided` False leaves out what only changes guidance.
        """
        steps = self.steps(asked)
        said = []
        if (self.solver, steps) != ("ddim", asked):
            said.append(Note("solver", {"solver": SOLVERS[self.solver], "steps": steps, "asked": asked}))
        marked = [index + 1 for index in range(steps) if self.guides(index, steps)]
        if guided and not marked:
            said.append(Note("guidance_nowhere"))
        elif guided and len(marked) < steps:
            said.append(Note("guidance_steps", {"first": marked[0], "last": marked[-1]}))
        if guided:
            said += self._rescaled()
        cache = self.deep_cache
        if cache.interval > 1:
            said.append(Note("deep_cache", {"interval": cache.interval, "branch": cache.branch}))
        return said

    def approximates_in_general(self) -> list[Note]:
        """The same for any number of steps."""
        said = []
        solver, most = SOLVERS[self.solver], self.max_steps
        if most is not None:
            said.append(Note("solver_at_most", {"solver": solver, "most": most}))
        elif self.solver != "ddim":
            said.append(Note("solver_as_asked", {"solver": solver}))
        first, last = (round(100 * end) for end in self.guidance_interval)
        if (first, last) != (0, 100):
            said.append(Note("guidance_part", {"first": first, "last": last}))
        said += self._rescaled()
        interval = self.deep_cache.interval
        return [*said, Note("deep_features", {"interval": interval})] if interval > 1 else said

    def _rescaled(self) -> list[Note]:
        return [Note("guidance_rescaled", {"by": self.guidance_rescale})] if self.guidance_rescale else []


def described(name: Preset, sampling: Sampling) -> Note:
    """What a preset approximates, whatever steps a job has."""
    if name == "exact":
        return Note("preset_described", {"preset": name, "parts": [Note("reference")]})
    parts = sampling.approximates_in_general() or [Note("as_exact")]
    return Note("preset_described", {"preset": name, "parts": parts})


EXACT = Sampling(solver="ddim")
PRESETS: Mapping[Preset, Sampling] = {
    "exact": EXACT,
    "fast": Sampling(solver="unipc", max_steps=25),
    # guided in its second half: the other half lost the effect, 22 dB from exact against 59 (docs/performance.md)
    "turbo": Sampling(
        solver="dpm++2m",
        max_steps=16,
        guidance_interval=(0.5, 1.0),
        deep_cache=CacheRule(interval=2, branch=1),
    ),
}


def read_presets(path: Path | None) -> Mapping[Preset, Sampling]:
    """The presets of the file, or the package's own without one. Raises SettingsError naming what is wrong."""
    if path is None:
        return PRESETS
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"the presets file {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"the presets file {path} is not valid YAML: {error}") from None
    if not isinstance(found, dict | None) or not all(isinstance(entry, dict) for entry in (found or {}).values()):
        raise SettingsError(f"the presets file {path} must hold one block of `name: value` lines a preset")
    if unknown := sorted(set(map(str, found or {})) - set(get_args(Preset))):
        raise SettingsError(f"{path}: there is no preset {unknown[0]!r}; known: {', '.join(get_args(Preset))}")
    read: dict[Preset, Sampling] = {
        name: _read(path, name, PRESETS[name], (found or {}).get(name, {})) for name in get_args(Preset)
    }
    if read["exact"] != EXACT:
        raise SettingsError(f"{path}: exact is the reference and cannot be changed; change fast or turbo")
    return read


def _read(path: Path, name: str, own: Sampling, given: dict[str, Any]) -> Sampling:
    try:
        values = own.model_dump()
        cache = given.get("deep_cache")
        if isinstance(cache, dict):  # a value left out of it keeps the preset's own, like one left out around it
            given = given | {"deep_cache": values["deep_cache"] | cache}
        return Sampling.model_validate(values | given)
    except ValidationError as error:
        said = [f"{name}.{refusal.words(repr)}" for refusal in refusals(error)]
        raise SettingsError(f"the presets file {path} is not valid: {'; '.join(said)}") from None
