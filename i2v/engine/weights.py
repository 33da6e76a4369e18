"""From a model's name to modules with verified weights: a diffusers folder, strict keys, safetensors only.

The only file that knows the published names of tensors. Knows nothing of sampling; the engine calls `resolve` and then
`load_parts`. Downloading is `hub.py`'s.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDIMScheduler, I2VGenXLUNet
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from i2v.engine import hub
from i2v.engine.protocol import ModelInfo, OnLoad
from i2v.errors import ModelUnavailable

UNET_CLASS = I2VGenXLUNet  # any class with the published keys and `from_config`

DEMO_FOLDER = Path(__file__).resolve().parent.parent / "demo" / "model"
REAL_MODEL = "ali-vilab/i2vgen-xl"
LEAST_VRAM = 7 * 2**30  # bytes; below this the published model does not run even with group offload at 512x512


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a model folder says about itself in `i2v.json`; every field has a default, the file is optional."""

    kind: Literal["real", "demo"] = "real"
    name: str | None = None
    title: str | None = None
    note: str = ""
    vocabulary: tuple[str, ...] = ()
    guidance_range: tuple[float, float] | None = None
    limits: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A diffusers folder on this disk. `variant` is "fp16" when its UNet has a half-precision file."""

    path: Path
    name: str
    kind: Literal["real", "demo"]
    variant: str | None
    card: ModelCard


@dataclass(slots=True)
class ModelParts:
    """Everything the engine needs, in evaluation mode, on one device and in one dtype.

    `vae_upcast`: the VAE's config asks for float32 where float16 overflows.
    """

    unet: Any
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    image_encoder: CLIPVisionModelWithProjection
    tokenizer: CLIPTokenizer
    feature_extractor: CLIPImageProcessorPil
    scheduler: DDIMScheduler
    info: ModelInfo
    card: ModelCard
    vae_upcast: bool


# --- device and dtype


def choose_device(device: str = "auto") -> torch.device:
    """`auto` is the first CUDA GPU, else the CPU. Raises `ModelUnavailable` for a device this machine has not."""
    if device == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise ModelUnavailable(f"device {device!r} is unknown; auto, cpu, cuda or cuda:N is wanted") from None
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
        raise ModelUnavailable(f"device {device!r} is not supported; auto, cpu, cuda or cuda:N is wanted")
    return wanted


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto`: float16 on CUDA (as published), float32 on the CPU (no fast half-precision kernels there)."""
    if dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    known = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    if dtype not in known:
        raise ModelUnavailable(f"dtype {dtype!r} is unknown; auto, {', '.join(known)} is wanted")
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
                f"this machine has a GPU, but the weights of {REAL_MODEL} are neither on this disk nor to be had: "
                f"{error}. Put a diffusers folder of the model anywhere and start with --model FOLDER, or fetch it "
                f"on a machine with internet and copy its hub cache; --model demo runs the small demo model instead"
            ) from error
    folder = Path(source).expanduser()
    if folder.is_dir():
        return open_folder(folder)
    if hub.is_hub_id(source):
        return _from_hub(source, revision, cache_dir, offline, on_load, endpoint)
    raise ModelUnavailable(f"model {source!r} is neither auto, demo, an existing folder nor a hub id like {REAL_MODEL}")


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
    index = _json(path / "model_index.json", "a diffusers folder of I2VGen-XL")
    if index.get("_class_name") != "I2VGenXLPipeline":
        raise ModelUnavailable(
            f"{path} holds a {index.get('_class_name')!r}; an I2VGenXLPipeline folder is wanted (model_index.json)"
        )
    card = read_card(path / "i2v.json")
    half = any((path / "unet").glob("*.fp16.safetensors"))
    return ModelFolder(path, name or card.name or path.name, card.kind, "fp16" if half else None, card)


def read_card(file: Path) -> ModelCard:
    """Read `i2v.json`; a missing file is an empty card, an unreadable one `ModelUnavailable`."""
    if not file.is_file():
        return ModelCard()
    found = _json(file, "a model card")
    known = set(ModelCard.__dataclass_fields__)
    if unknown := set(found) - known:
        raise ModelUnavailable(f"{file} has unknown entries {sorted(unknown)}; known: {sorted(known)}")
    if found.get("kind", "real") not in ("real", "demo"):
        raise ModelUnavailable(f"{file}: kind is {found['kind']!r}; real or demo is wanted")
    try:
        if (pair := found.get("guidance_range")) is not None:
            low, high = (float(value) for value in pair)
            if not 1.0 <= low <= high:
                raise ValueError
            found["guidance_range"] = (low, high)
    except (TypeError, ValueError):
        raise ModelUnavailable(f"{file}: guidance_range is {pair!r}; two rising numbers from 1.0 are wanted") from None
    found["vocabulary"] = tuple(str(prompt) for prompt in found.get("vocabulary", ()))
    return ModelCard(**found)


# --- folder -> modules


def load_parts(
    folder: ModelFolder, device: torch.device, dtype: torch.dtype, on_load: OnLoad | None = None
) -> ModelParts:
    """Load all parts strictly onto `device` in `dtype`. Raises `ModelUnavailable` naming the file at fault.

    Modules are built on the meta device and given the file's tensors one by one, so a part is in memory once.
    """
    path = folder.path
    half = dtype != torch.float32
    builds: dict[str, tuple[str, Callable[[Path], Any]]] = {
        "text_encoder": ("model", _text_encoder),
        "image_encoder": ("model", _image_encoder),
        "vae": ("diffusion_pytorch_model", _vae),
        "unet": ("diffusion_pytorch_model", _unet),
    }
    files = {part: weight_files(path / part, stem, half=half) for part, (stem, _) in builds.items()}
    sizes = {part: sum(file.stat().st_size for file in found) for part, found in files.items()}
    done, total = 0, sum(sizes.values())
    modules: dict[str, Any] = {}
    for part, (_, build) in builds.items():
        report = _reporter(on_load, f"loading {part.replace('_', ' ')}", done, sizes[part], total)
        modules[part] = _load(build, path / part, files[part], device, dtype, report)
        done += sizes[part]
    card = folder.card
    info = ModelInfo(
        name=folder.name,
        kind=folder.kind,
        title=card.title or folder.name,
        device=device_name(device),
        dtype=str(dtype).removeprefix("torch."),
        note=card.note,
        vocabulary=card.vocabulary,
        guidance_range=card.guidance_range,
    )
    return ModelParts(
        unet=modules["unet"],
        vae=modules["vae"],
        text_encoder=modules["text_encoder"],
        image_encoder=modules["image_encoder"],
        tokenizer=_pretrained(CLIPTokenizer, path / "tokenizer"),
        feature_extractor=_pretrained(CLIPImageProcessorPil, path / "feature_extractor"),
        scheduler=_pretrained(DDIMScheduler, path / "scheduler"),
        info=info,
        card=card,
        vae_upcast=dtype == torch.float16 and bool(modules["vae"].config.force_upcast),
    )


def _unet(folder: Path) -> Any:
    return UNET_CLASS.from_config(_json(folder / "config.json", "the UNet's config"))


def _vae(folder: Path) -> Any:
    return AutoencoderKL.from_config(_json(folder / "config.json", "the VAE's config"))


def _text_encoder(folder: Path) -> Any:
    return CLIPTextModel(CLIPTextConfig(**_clip_config(folder, "clip_text_model")))


def _image_encoder(folder: Path) -> Any:
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**_clip_config(folder, "clip_vision_model")))


def _clip_config(folder: Path, model_type: str) -> dict[str, Any]:
    config = _json(folder / "config.json", f"a {model_type} config")
    if config.get("model_type") != model_type:
        raise ModelUnavailable(
            f"{folder / 'config.json'}: model_type is {config.get('model_type')!r}, not {model_type}"
        )
    return {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype", "architectures")}


def _pretrained(cls: Any, folder: Path) -> Any:
    try:
        return cls.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # three libraries, each with its own errors for a missing or broken small file
        raise ModelUnavailable(f"{folder} cannot be read as {cls.__name__}: {error}") from error


def _load(
    build: Callable[[Path], Any],
    folder: Path,
    files: list[Path],
    device: torch.device,
    dtype: torch.dtype,
    report: Callable[[int], None],
) -> nn.Module:
    try:
        with torch.device("meta"):
            module: nn.Module = build(folder)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ModelUnavailable(f"{folder / 'config.json'} describes no such model: {error}") from error
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
    state: dict[str, torch.Tensor] = {}
    for file in files:
        for name, tensor in _tensors(file, set(wanted), report):
            if name in state:
                raise ModelUnavailable(f"{file}: tensor {name} appears twice in {folder}")
            if name in wanted and tensor.shape != wanted[name]:
                raise ModelUnavailable(
                    f"{file}: tensor {name} has shape {tuple(tensor.shape)}; the config wants {tuple(wanted[name])}"
                )
            # copy: otherwise the tensor stays a view of the mapped file, and a file changed on disk kills the process
            state[name] = tensor.to(device=device, dtype=dtype, copy=True)
    _refuse_other_keys(folder, set(state), set(wanted))
    module.load_state_dict(state, strict=True, assign=True)
    _fill_buffers(module, device)
    module.requires_grad_(False).eval()
    return module


def _tensors(file: Path, wanted: set[str], report: Callable[[int], None]) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dictionary
                if name.endswith(".position_ids"):  # a constant that transformers before 4.31 wrote into the file
                    continue
                tensor = opened.get_tensor(name)
                report(tensor.numel() * tensor.element_size())
                yield _current_name(name, wanted), tensor
    except (SafetensorError, OSError) as error:
        raise ModelUnavailable(
            f"{file} is not a whole safetensors file ({error}); delete it and fetch it again"
        ) from error


_VAE_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def _current_name(name: str, wanted: set[str]) -> str:
    """A published key in the names of the installed libraries; unknown keys come back as they are."""
    if name in wanted:
        return name
    short = name.removeprefix("text_model.")  # CLIPTextModel lost this level in transformers 5
    if short in wanted:
        return short
    for old, new in _VAE_ATTENTION.items():  # diffusers before 0.15
        if old in name and name.replace(old, new) in wanted:
            return name.replace(old, new)
    return name


def _refuse_other_keys(folder: Path, found: set[str], wanted: set[str]) -> None:
    missing, unexpected = sorted(wanted - found), sorted(found - wanted)
    if missing or unexpected:
        said = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise ModelUnavailable(f"{folder}: the weights do not match config.json: {' and '.join(said)} tensors")


def _fill_buffers(module: nn.Module, device: torch.device) -> None:
    """Give values to the buffers that no file holds; on the meta device they have none."""
    for name, buffer in list(module.named_buffers()):
        if not buffer.is_meta:
            continue
        if not name.endswith("position_ids"):
            raise ModelUnavailable(f"{type(module).__name__} has a buffer {name} that no file holds")
        owner = module.get_submodule(name.rpartition(".")[0])
        owner.position_ids = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)


def weight_files(folder: Path, stem: str, *, half: bool) -> list[Path]:
    """The safetensors of one part: the fp16 file first when `half`, else the full one first; shards by their index."""
    names = (f"{stem}.fp16", stem) if half else (stem, f"{stem}.fp16")
    for name in names:
        if (file := folder / f"{name}.safetensors").is_file():
            return [file]
        index = folder / f"{stem}.safetensors.index{name.removeprefix(stem)}.json"
        if index.is_file():
            shards = sorted(set(_json(index, "an index of shards")["weight_map"].values()))
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing:
                raise ModelUnavailable(f"{folder}: {index.name} names {missing[0]}, which is not there")
            return [folder / shard for shard in shards]
    pickles = sorted(file.name for kind in ("*.bin", "*.ckpt", "*.pt", "*.pth") for file in folder.glob(kind))
    if pickles:
        raise ModelUnavailable(
            f"{folder} holds only pickled weights ({', '.join(pickles)}), which can run code when opened and are never "
            f"read; {stem}.safetensors is wanted"
        )
    raise ModelUnavailable(f"{folder / (stem + '.safetensors')} is missing")


def _json(file: Path, what: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelUnavailable(f"{file} cannot be read ({error.strerror}); {what} is wanted there") from error
    except ValueError as error:
        raise ModelUnavailable(f"{file} is not valid JSON ({error}); {what} is wanted there") from error
    if not isinstance(found, dict):
        raise ModelUnavailable(f"{file} holds a {type(found).__name__}; {what} is wanted there")
    return found


def _reporter(on_load: OnLoad | None, what: str, done: int, size: int, total: int) -> Callable[[int], None]:
    """Counts bytes of one part and reports the fraction of the whole, at most about a hundred times a part."""
    seen = last = 0

    def report(count: int) -> None:
        nonlocal seen, last
        seen += count
        if on_load is not None and (seen - last >= size / 100 or seen >= size):
            last = seen
            on_load(what, min(1.0, (done + seen) / max(1, total)))

    if on_load is not None:
        on_load(what, done / max(1, total))
    return report
