"""A whole I2VGen-XL folder of a few hundred thousand random weights, the same bytes on every run and library version.

Written by name, not by module: each tensor's values come from a generator seeded with its published key, so that the
recording script (older libraries) and the tests (today's) work on equal folders. Nothing is left at its zero
initialisation: a path that starts as a no-op would let a wrong implementation pass.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, I2VGenXLUNet
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

WIDTH = 32  # of text, image embedding and cross-attention

UNET = {
    "_class_name": "I2VGenXLUNet",
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 32,
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
    "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 8,
    "num_attention_heads": None,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "sample_size": 64,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.18125,
    "force_upcast": True,
}
TEXT = {
    "model_type": "clip_text_model",
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "vocab_size": 514 + 6,
    "max_position_embeddings": 77,
    "projection_dim": WIDTH,
    "bos_token_id": 512 + 6,
    "eos_token_id": 513 + 6,
    "pad_token_id": 513 + 6,
    "layer_norm_eps": 1e-5,
}
VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "image_size": 224,
    "patch_size": 56,
    "num_channels": 3,
    "projection_dim": WIDTH,
    "layer_norm_eps": 1e-5,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "clip_sample": False,
}
MERGES = ["t h", "th e</w>", "a t</w>", "s u", "su n", "i n"]


def write_tiny_folder(path: Path, seed: int = 0, vae_levels: int = 4) -> Path:
    """Write the folder and return its path. `vae_levels` 3, 4, 5 make a VAE of factor 4, 8, 16."""
    vae = VAE | {
        "block_out_channels": [8, 8, 16, 16, 16][:vae_levels],
        "down_block_types": ["DownEncoderBlock2D"] * vae_levels,
        "up_block_types": ["UpDecoderBlock2D"] * vae_levels,
    }
    _write_part(path / "unet", UNET, I2VGenXLUNet.from_config(UNET), "diffusion_pytorch_model", seed)
    _write_part(path / "vae", vae, AutoencoderKL.from_config(vae), "diffusion_pytorch_model", seed)
    text = CLIPTextModel(CLIPTextConfig(**{k: v for k, v in TEXT.items() if k != "model_type"}))
    vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**{k: v for k, v in VISION.items() if k != "model_type"}))
    _write_part(path / "text_encoder", TEXT | {"architectures": ["CLIPTextModel"]}, text, "model", seed, "text_model.")
    architectures = {"architectures": ["CLIPVisionModelWithProjection"]}
    _write_part(path / "image_encoder", VISION | architectures, vision, "model", seed)
    _write_json(path / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_tokenizer(path / "tokenizer")
    _write_json(
        path / "feature_extractor" / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "crop_size": {"height": 224, "width": 224},
            "size": {"shortest_edge": 224},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "resample": 3,
            "rescale_factor": 1 / 255,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    )
    _write_json(
        path / "model_index.json",
        {
            "_class_name": "I2VGenXLPipeline",
            "_diffusers_version": "0.33.1",
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "I2VGenXLUNet"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )
    return path


def draw_photo(width: int = 101, height: int = 77) -> Image.Image:
    """A drawn picture of an odd size with structure in every colour, from arithmetic alone."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    channels = [
        127 + 100 * np.sin(x / 7 + y / 19),
        127 + 100 * np.cos(x / 23 - y / 5),
        40 + 160 * (((x // 16) + (y // 12)) % 2),
    ]
    return Image.fromarray(np.stack(channels, -1).round().clip(0, 255).astype(np.uint8), "RGB")


def _write_part(folder: Path, config: dict, module: nn.Module, stem: str, seed: int, prefix: str = "") -> None:
    """`prefix` is the level that older libraries have in their keys and newer ones dropped."""
    tensors = {}
    for name, tensor in module.state_dict().items():
        if name.endswith("position_ids"):
            continue
        published = name if name.startswith(prefix) else prefix + name
        tensors[published] = _values(published, tensor.shape, seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / f"{stem}.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", config)


def _values(name: str, shape: torch.Size, seed: int) -> torch.Tensor:
    """Weights near their usual spread, so that every path matters; norms near 1, biases near 0."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
    values = torch.randn(shape, generator=generator)
    if len(shape) < 2:
        return values * 0.1 + (1.0 if name.endswith("weight") and "norm" in name else 0.0)
    if "embedding" in name and name.endswith("embedding.weight") and "patch" not in name:
        return values * 0.5
    return values / math.sqrt(math.prod(shape[1:]))


def _write_tokenizer(folder: Path) -> None:
    """Byte-level BPE with six merges: the alphabet, the alphabet at a word's end, the merges, two special tokens."""
    alphabet = list(_bytes_to_unicode())
    merged = ["".join(merge.split()) for merge in MERGES]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *merged, "<|startoftext|>", "<|endoftext|>"]
    _write_json(folder / "vocab.json", {token: index for index, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special["pad_token"] = "<|endoftext|>"  # as the published folder pads
    _write_json(folder / "special_tokens_map.json", special)
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "errors": "replace", "do_lower_case": True}
    _write_json(folder / "tokenizer_config.json", config | special)


def _bytes_to_unicode() -> list[str]:
    """GPT-2's 256 printable letters for the 256 bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(byte) for byte in printable]
    return letters + [chr(256 + number) for number in range(256 - len(printable))]


def _write_json(file: Path, content: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
