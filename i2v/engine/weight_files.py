"""Which files of a model folder hold its weights, and whether they are whole. Reads headers, never tensors.

A file of its own, because `weights.py` imports libraries that take seconds, and the check at the start must be quick.
"""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from i2v.engine.source import ModelFolder, read_json
from i2v.errors import ModelUnavailable

STEMS = {
    "text_encoder": "model",
    "image_encoder": "model",
    "vae": "diffusion_pytorch_model",
    "unet": "diffusion_pytorch_model",
}


def check_files(folder: ModelFolder) -> int:
    """Bytes of the weights that a load would read. Raises `ModelUnavailable` when a file is missing or cut short."""
    half = folder.variant == "fp16"
    total = 0
    for part, stem in STEMS.items():
        for file in weight_files(folder.path / part, stem, half=half):
            try:
                with safe_open(file, framework="pt", device="cpu"):  # compares the header with the file's length
                    total += file.stat().st_size
            except (SafetensorError, OSError) as error:
                raise ModelUnavailable(not_whole(file, error)) from error
    return total


def weight_files(folder: Path, stem: str, *, half: bool) -> list[Path]:
    """The safetensors of one part: the fp16 file first when `half`, else the full one first; shards by their index."""
    names = (f"{stem}.fp16", stem) if half else (stem, f"{stem}.fp16")
    for name in names:
        if (file := folder / f"{name}.safetensors").is_file():
            return [file]
        index = folder / f"{stem}.safetensors.index{name.removeprefix(stem)}.json"
        if index.is_file():
            shards = sorted(set(read_json(index, "an index of shards")["weight_map"].values()))
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing:
                raise ModelUnavailable(f"{folder}: {index.name} names {missing[0]}, which is not there")
            return [folder / shard for shard in shards]
    pickles = sorted(file.name for kind in ("*.bin", "*.ckpt", "*.pt", "*.pth") for file in folder.glob(kind))
    if pickles:
        raise ModelUnavailable(
            f"{folder} holds only pickled weights ({', '.join(pickles)}), which can run code when opened and are never "
            f"read; put {stem}.safetensors there"
        )
    raise ModelUnavailable(f"{folder / (stem + '.safetensors')} is missing")


def not_whole(file: Path, error: Exception) -> str:
    return f"{file} is not a whole safetensors file ({error}); delete it and fetch it again"
