"""From settings to a loaded engine and the mutex of its device: the one way for the server and for local runs.

Torch is imported here, when an engine is loaded, and nowhere earlier.
"""

import os

from i2v.engine.fake import FakeEngine, failing
from i2v.engine.interface import EngineProtocol, ModelInfo, OnLoad
from i2v.mutex import GpuMutex, lock_file_for
from i2v.notes import Note
from i2v.settings import Settings


def load_engine(settings: Settings, on_load: OnLoad) -> EngineProtocol:
    """The engine that `settings.model` names. Raises `ModelUnavailable`, and `SettingsError` for a bad presets file."""
    if settings.model == "fake":
        return FakeEngine(step_s=settings.fake.step_s, fault=failing(settings.fake.fail, settings.fake.fail_step))
    on_load(Note("importing"), None)
    let_threads_sleep()
    from i2v.engine import source

    if source.hub_source(settings.model) is None:
        source.resolve(settings.model)  # a folder that is not there is refused before the libraries are loaded
    from i2v.engine.engine import Engine
    from i2v.presets import read_presets

    return Engine.load(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        conventions=settings.conventions,
        revision=settings.revision,
        cache_dir=settings.cache_dir,
        offline=settings.offline,
        memory=settings.memory,
        max_vram_gb=settings.max_vram_gb,
        image_concat_scale=settings.image_concat_scale,
        accelerate=settings.accelerate,
        presets=read_presets(settings.presets),
        on_load=on_load,
    )


def introduce(info: ModelInfo) -> str:
    """What is loaded and where, and what it is not, in one line."""
    return f"{info.title} on {info.device} ({info.dtype}). {info.note}".rstrip()


def mutex_for(settings: Settings) -> GpuMutex:
    """The mutex shared with other processes on the same device.

    The fake engine shares with nobody; nor does a CPU where no server has ever used the outputs folder.
    """
    if settings.model == "fake":
        return GpuMutex()
    from i2v.engine.source import choose_device

    device = choose_device(settings.device)
    if device.type == "cpu" and not settings.outputs.is_dir():
        return GpuMutex()
    return GpuMutex(lock_file_for(device, settings.outputs))


def let_threads_sleep() -> None:
    """OpenMP threads that wait give up their core instead of spinning; the library reads this when torch is imported.

    On two cores that other programs use as well, five steps of the demo model took 62 s with spinning threads and
    18 s with sleeping ones. A value that is already set is kept.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
