"""From what was asked for (auto, demo, a folder, a hub id) to a model folder on this disk, a device and a dtype.

Reads a folder's small JSON files; `weights.py` reads the weights, and `hub.py` downloads.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from i2v.engine import hub
from i2v.engine.interface import OnLoad
from i2v.errors import ModelUnavailable

DEMO_FOLDER = Path(__file__).resolve().parent.parent / "demo" / "model"
REAL_MODEL = "ali-vilab/i2vgen-xl"
LEAST_VRAM = 7 * 2**30  # bytes; the weights are 4.7 GiB and are put there whole, and a card of 8 GB reports 7.6 GiB


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a model folder says about itself in `i2v.json`; every field has a default, the file is optional."""

    kind: Literal["real", "demo"] = "real"
    name: str | None = None
    title: str | None = None
    note: str = ""
    vocabulary: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()
    guidance_range: tuple[float, float] | None = None
    max_steps: int | None = None  # more change nothing; a job takes at most so many
    dtype: Literal["float32"] | None = None  # the only one that its numbers survive
    limits: dict[str, str] = field(default_factory=dict)
    conventions: dict[str, Any] = field(default_factory=dict)  # how it was trained; see `conventions.for_model`


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A diffusers folder on this disk. `variant` is "fp16" when its UNet has a half-precision file."""

    path: Path
    name: str
    kind: Literal["real", "demo"]
    variant: str | None
    card: ModelCard


# --- device and dtype


def choose_device(device: str = "auto") -> torch.device:
    """`auto` is the first CUDA GPU, else the CPU. Raises `ModelUnavailable` for one that is not there."""
    if device == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise ModelUnavailable(f"device {device!r} is unknown; it must be auto, cpu, cuda or cuda:N") from None
    if wanted.type == "cuda":
        index = wanted.index or 0
        if not torch.cuda.is_available():
            raise ModelUnavailable(f"device {device!r} was asked for, and this machine has no usable CUDA GPU")
        if index >= torch.cuda.device_count():
            raise ModelUnavailable(
                f"device {device!r} was asked for; this machine has {torch.cuda.device_count()} GPUs"
            )
        return torch.device("cuda", index)
    if wanted.type != "cpu":
        raise ModelUnavailable(f"device {device!r} is not supported; it must be auto, cpu, cuda or cuda:N")
    return wanted


def choose_dtype(dtype: str, device: torch.device, card: ModelCard | None = None) -> torch.dtype:
    """`auto`: float16 on CUDA (as published), float32 on the CPU (no fast half-precision kernels there).

    A model whose card names a dtype has that one, and refuses another.
    """
    only = None if card is None else card.dtype
    if dtype == "auto":
        dtype = only or ("float16" if device.type == "cuda" else "float32")
    elif only is not None and dtype != only:
        raise ModelUnavailable(f"dtype {dtype!r} was asked for; this model works in {only} alone: ask for auto")
    known = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    if dtype not in known:
        raise ModelUnavailable(f"dtype {dtype!r} is unknown; it must be one of auto, {', '.join(known)}")
    return known[dtype]


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


# --- source -> folder


def resolve(
    source: str = "auto",
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    offline: bool = False,
    on_load: OnLoad | None = None,
    device: str = "auto",
    gpu_bytes: int | None = None,
    endpoint: str | None = None,
) -> ModelFolder:
    """Turn `auto`, `demo`, a folder or a hub id into a folder on this disk, downloading when needed.

    `gpu_bytes` is the GPU's memory (None: read from the device; 0: no GPU). Raises `ModelUnavailable`.
    """
    if source == "demo":
        return open_folder(DEMO_FOLDER)
    if source == "auto":
        if gpu_bytes is None:
            gpu_bytes = _gpu_bytes(device)
        if gpu_bytes < LEAST_VRAM:
            return open_folder(DEMO_FOLDER)
        try:
            return _from_hub(REAL_MODEL, revision, cache_dir, offline, on_load, endpoint)
        except ModelUnavailable as error:
            raise ModelUnavailable(
                f"this machine has a GPU, but the weights of {REAL_MODEL} are not on this disk and cannot be fetched: "
                f"{error}. Put a diffusers folder of the model anywhere and start with --model FOLDER, or fetch it "
                f"on a machine with internet and copy its hub cache; --model demo runs the small demo model instead"
            ) from error
    folder = Path(source).expanduser()
    if folder.is_dir():
        return open_folder(folder)
    if hub.is_hub_id(source):
        return _from_hub(source, revision, cache_dir, offline, on_load, endpoint)
    raise ModelUnavailable(f"model {source!r} is neither auto, demo, an existing folder nor a hub id like {REAL_MODEL}")


def hub_source(source: str) -> str | None:
    """The hub id that `source` may be fetched from, or None when it is a folder or the demo model."""
    if source == "auto":
        return REAL_MODEL
    return source if hub.is_hub_id(source) and not Path(source).expanduser().is_dir() else None


def _from_hub(
    source: str,
    revision: str | None,
    cache_dir: Path | None,
    offline: bool,
    on_load: OnLoad | None,
    endpoint: str | None,
) -> ModelFolder:
    path = hub.download(
        source, revision=revision, cache_dir=cache_dir, offline=offline, on_load=on_load, endpoint=endpoint
    )
    return open_folder(path, name=source)


def _gpu_bytes(device: str) -> int:
    chosen = choose_device(device)
    return int(torch.cuda.get_device_properties(chosen).total_memory) if chosen.type == "cuda" else 0


def open_folder(path: Path, name: str | None = None) -> ModelFolder:
    """Check that `path` is an I2VGen-XL diffusers folder and read its card; no weights are read."""
    index = read_json(path / "model_index.json", "a diffusers folder of I2VGen-XL")
    if index.get("_class_name") != "I2VGenXLPipeline":
        raise ModelUnavailable(
            f"{path} holds a {index.get('_class_name')!r}; it must be an I2VGenXLPipeline folder (model_index.json)"
        )
    card = read_card(path / "i2v.json")
    half = any((path / "unet").glob("*.fp16.safetensors"))
    return ModelFolder(path, name or card.name or path.name, card.kind, "fp16" if half else None, card)


def read_card(file: Path) -> ModelCard:
    """Read `i2v.json`; a missing file is an empty card, an unreadable one `ModelUnavailable`."""
    if not file.is_file():
        return ModelCard()
    found = read_json(file, "a model card")
    known = set(ModelCard.__dataclass_fields__)
    if unknown := set(found) - known:
        raise ModelUnavailable(f"{file} has unknown entries {sorted(unknown)}; known: {sorted(known)}")
    if found.get("kind", "real") not in ("real", "demo"):
        raise ModelUnavailable(f"{file}: kind is {found['kind']!r}; it must be real or demo")
    try:
        if (pair := found.get("guidance_range")) is not None:
            low, high = (float(value) for value in pair)
            if not 1.0 <= low <= high:
                raise ValueError
            found["guidance_range"] = (low, high)
    except (TypeError, ValueError):
        raise ModelUnavailable(f"{file}: guidance_range is {pair!r}; it must be two rising numbers from 1.0") from None
    most = found.get("max_steps")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise ModelUnavailable(f"{file}: max_steps is {most!r}; it must be a whole number from 1")
    if found.get("dtype") not in (None, "float32"):
        raise ModelUnavailable(f"{file}: dtype is {found['dtype']!r}; it must be float32, or left out")
    for name in ("vocabulary", "phrases"):
        found[name] = tuple(str(prompt) for prompt in found.get(name, ()))
    return ModelCard(**found)


def read_json(file: Path, what: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelUnavailable(f"{file} cannot be read ({error.strerror}); it should be {what}") from error
    except ValueError as error:
        raise ModelUnavailable(f"{file} is not valid JSON ({error}); it should be {what}") from error
    if not isinstance(found, dict):
        raise ModelUnavailable(f"{file} holds a {type(found).__name__}; it should be {what}")
    return found
