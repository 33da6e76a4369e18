"""From a model folder to modules with verified weights: strict keys and shapes, safetensors only, memory taken once.

The only file that knows the published names of tensors. Knows nothing of sampling; the engine calls `resolve` and then
`load_parts`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDIMScheduler
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

from i2v.engine.interface import ModelInfo, OnLoad
from i2v.engine.source import ModelCard, ModelFolder, choose_device, choose_dtype, device_name, read_json, resolve
from i2v.engine.unet.model import I2VGenXLUNet
from i2v.engine.weight_files import STEMS, check_files, not_whole, weight_files
from i2v.errors import ModelUnavailable
from i2v.notes import Note

__all__ = ["STEMS", "ModelParts", "check_files", "choose_device", "choose_dtype", "load_parts", "resolve"]


@dataclass(slots=True)
class ModelParts:
    """Everything the engine needs, in evaluation mode, on one device and in one dtype.

    The VAE's `force_upcast` is not obeyed: docs/decisions.md says why.
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


NAMES = {
    "text_encoder": Note("text_encoder"),
    "image_encoder": Note("image_encoder"),
    "vae": Note("vae"),
    "unet": Note("unet"),
}


def load_parts(
    folder: ModelFolder, device: torch.device, dtype: torch.dtype, on_load: OnLoad | None = None
) -> ModelParts:
    """Load all parts strictly onto `device` in `dtype`. Raises `ModelUnavailable` naming the file at fault.

    Modules are built without memory for their parameters and given the file's tensors one by one, so a part is in
    memory once.
    """
    modules = _load_modules(folder.path, device, dtype, on_load)
    return ModelParts(
        unet=modules["unet"],
        vae=modules["vae"],
        text_encoder=modules["text_encoder"],
        image_encoder=modules["image_encoder"],
        tokenizer=_pretrained(CLIPTokenizer, folder.path / "tokenizer"),
        feature_extractor=_pretrained(CLIPImageProcessorPil, folder.path / "feature_extractor"),
        scheduler=_pretrained(DDIMScheduler, folder.path / "scheduler"),
        info=_info(folder, device, dtype),
        card=folder.card,
    )


def _load_modules(path: Path, device: torch.device, dtype: torch.dtype, on_load: OnLoad | None) -> dict[str, Any]:
    half = dtype != torch.float32
    builds: dict[str, Callable[[Path], Any]] = {
        "text_encoder": _text_encoder,
        "image_encoder": _image_encoder,
        "vae": _vae,
        "unet": _unet,
    }
    files = {part: weight_files(path / part, stem, half=half) for part, stem in STEMS.items()}
    sizes = {part: sum(file.stat().st_size for file in found) for part, found in files.items()}
    done, total = 0, sum(sizes.values())
    modules: dict[str, Any] = {}
    for part, build in builds.items():
        what = Note("loading", {"part": NAMES[part]})
        report = _reporter(on_load, what, done, sizes[part], total)
        modules[part] = _load(build, path / part, files[part], device, dtype, report)
        done += sizes[part]
        if on_load is not None:  # the files' headers are no tensors, so the parts' own reports end just short
            on_load(what, done / total)
    return modules


def _info(folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> ModelInfo:
    card = folder.card
    return ModelInfo(
        name=folder.name,
        kind=folder.kind,
        title=card.title or folder.name,
        device=device_name(device),
        dtype=str(dtype).removeprefix("torch."),
        note=card.note,
        vocabulary=card.vocabulary,
        guidance_range=card.guidance_range,
        max_steps=card.max_steps,
        phrases=card.phrases,
    )


def _unet(folder: Path) -> Any:
    return I2VGenXLUNet.from_config(read_json(folder / "config.json", "the UNet's config"))


def _vae(folder: Path) -> Any:
    return AutoencoderKL.from_config(read_json(folder / "config.json", "the VAE's config"))


def _text_encoder(folder: Path) -> Any:
    return CLIPTextModel(CLIPTextConfig(**_clip_config(folder, "clip_text_model")))


def _image_encoder(folder: Path) -> Any:
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**_clip_config(folder, "clip_vision_model")))


def _clip_config(folder: Path, model_type: str) -> dict[str, Any]:
    config = read_json(folder / "config.json", f"a {model_type} config")
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
        # For the whole process while it is open, so nothing else may build modules meanwhile. Parameters that libraries
        # draw at once are drawn before they are emptied: the fork keeps the caller's random state.
        with torch.random.fork_rng(devices=()), init_empty_weights(include_buffers=False):
            module: nn.Module = build(folder)
    except ModelUnavailable:
        raise
    except Exception as error:  # each library has its own errors for a wrong value; unknown keys are ignored by all
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
    return module.to(device).requires_grad_(False).eval()  # moves the buffers, which no file holds


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
        raise ModelUnavailable(not_whole(file, error)) from error


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


def _reporter(on_load: OnLoad | None, what: Note, done: int, size: int, total: int) -> Callable[[int], None]:
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
