"""An operator's own presets, from a YAML file like `configs/presets.yaml`, checked and handed on as frozen values.

Called by `i2v.loading` and `i2v doctor`; what the values mean is `i2v.engine.presets`'s.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from i2v.engine.presets import EXACT, PRESETS, Sampling
from i2v.request import Preset
from i2v.settings import SettingsError

Part = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DeepCacheValues(_Strict):
    interval: int = Field(1, ge=1, le=10)
    branch: int = Field(0, ge=0, le=8)


class PresetValues(_Strict):
    """One preset as it stands in the file."""

    solver: Literal["ddim", "dpm++2m", "unipc"]
    max_steps: int | None = Field(None, ge=1, le=1000)
    guidance_interval: tuple[Part, Part] = (0.0, 1.0)
    guidance_rescale: Part = 0.0
    deep_cache: DeepCacheValues = DeepCacheValues()

    @model_validator(mode="after")
    def _ordered(self) -> "PresetValues":
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError(f"guidance_interval is {list(self.guidance_interval)}; its first end comes first")
        return self

    @classmethod
    def of(cls, sampling: Sampling) -> "PresetValues":
        interval, branch = sampling.deep_cache
        return cls(
            solver=sampling.solver,
            max_steps=sampling.max_steps,
            guidance_interval=sampling.guidance_interval,
            guidance_rescale=sampling.guidance_rescale,
            deep_cache=DeepCacheValues(interval=interval, branch=branch),
        )

    def sampling(self) -> Sampling:
        cache = self.deep_cache
        plain = Sampling(self.solver, self.max_steps, self.guidance_interval, self.guidance_rescale)
        return replace(plain, deep_cache=(cache.interval, cache.branch if cache.interval > 1 else 0))


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
        values = PresetValues.of(own).model_dump()
        cache = given.get("deep_cache")
        if isinstance(cache, dict):  # a value left out of it keeps the preset's own, like one left out around it
            given = given | {"deep_cache": values["deep_cache"] | cache}
        return PresetValues.model_validate(values | given).sampling()
    except ValidationError as error:
        said = [
            f"{'.'.join([name, *map(str, problem['loc'])])}: {problem['msg']}; received {problem['input']!r}"
            for problem in error.errors(include_url=False, include_context=False)
        ]
        raise SettingsError(f"the presets file {path} is not valid: {'; '.join(said)}") from None
