"""What each preset approximates, in one line of both languages: the package's own, or those of the operator's file."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from i2v.errors import SettingsError
from i2v.loading import let_threads_sleep
from i2v.settings import Settings

if TYPE_CHECKING:
    from i2v.presets import Sampling

Sentence = tuple[str, str]  # English, Chinese


def sentences(settings: Settings) -> Mapping[str, Sentence]:
    """Keys of the table of texts that the operator's presets change; nothing without a file of presets.

    A file that cannot be read changes nothing here: loading the model says so.
    """
    if settings.presets is None:
        return {}
    let_threads_sleep()
    from i2v.presets import read_presets  # brings torch, which the page does without

    try:
        found = read_presets(settings.presets)
    except SettingsError:
        return {}
    return {f"preset_{name}": sentence(name, sampling) for name, sampling in found.items() if name != "exact"}


def sentence(name: str, sampling: "Sampling") -> Sentence:
    """`sampling` in words, made from its values."""
    from i2v.presets import SOLVERS

    english, chinese = [], []
    solver, most = SOLVERS[sampling.solver], sampling.max_steps
    if sampling.solver != "ddim" or most is not None:
        english.append(f"{solver} in {'as many' if most is None else f'at most {most}'} steps stands in for DDIM")
        chinese.append(f"以{'同样步数' if most is None else f'至多 {most} 步'}的 {solver} 代替 DDIM")
    first, last = (round(100 * edge) for edge in sampling.guidance_interval)
    if (first, last) != (0, 100):
        english.append(f"guidance from {first} to {last} % of the way only")
        chinese.append(f"仅在进程的 {first}% 至 {last}% 做引导")
    if sampling.guidance_rescale:
        english.append(f"guidance rescaled by {sampling.guidance_rescale:g}")
        chinese.append(f"引导重新缩放 {sampling.guidance_rescale:g}")
    interval, _ = sampling.deep_cache
    if interval > 1:
        english.append(f"one step in {interval} is whole, the others reuse deep features")
        chinese.append(f"每 {interval} 步完整计算一步，其余复用深层特征")
    return (
        f"{name} — {'; '.join(english) or 'nothing: as exact'}",
        f"{name}：{'；'.join(chinese) or '无近似，与 exact 相同'}",
    )
