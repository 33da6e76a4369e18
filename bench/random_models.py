"""Models with random weights for the benchmarks: speed and memory do not depend on what the weights say.

`toy` runs in a second, `reduced` is the published layout at a fifth of its width, `published` is full size, CLIP and
VAE included. Everything else of an engine comes from the demo folder that ships.
"""

import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "engine"))  # others have a `tests`, too

import torch
from diffusers import AutoencoderKL
from diffusers import I2VGenXLUNet as UpstreamUNet
from full_size import TEXT, VAE, VISION
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from i2v.engine.engine import Engine
from i2v.engine.source import DEMO_FOLDER
from i2v.engine.unet.model import I2VGenXLUNet

UNETS: dict[str, dict[str, Any]] = {
    "toy": {
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 8,
        "cross_attention_dim": 32,
    },
    "reduced": {"block_out_channels": (64, 128, 256, 256), "attention_head_dim": 32},
    "published": {},
}


@torch.no_grad()
def unets(config: dict[str, Any], device: str, dtype: torch.dtype) -> tuple[I2VGenXLUNet, UpstreamUNet]:
    """Our UNet and diffusers' with the same random weights; layers that start at zero are filled."""
    torch.manual_seed(0)
    with torch.device(device):
        own = I2VGenXLUNet.from_config(config).to(dtype).requires_grad_(False)
    for parameter in own.parameters():
        if not parameter.any():
            parameter.normal_(0, 0.02)
    with torch.device("meta"):
        upstream = UpstreamUNet(**config)
    upstream.load_state_dict(own.state_dict(), assign=True)
    return own, upstream.eval().requires_grad_(False)


@torch.no_grad()
def engine(model: str, device: str, dtype: torch.dtype) -> tuple[Engine, UpstreamUNet]:
    """An engine around random weights, and diffusers' UNet with the same ones."""
    name = str(dtype).removeprefix("torch.")
    demo = Engine.load("demo", device=device, conventions="upstream")
    width = 1024 if model == "published" else demo.parts.text_encoder.config.hidden_size
    own, upstream = unets(UNETS[model] | {"cross_attention_dim": width}, device, dtype)
    info = replace(demo.info, dtype=name, guidance_range=None, max_steps=None)
    kept = {key: getattr(demo.parts, key).to(dtype) for key in ("vae", "text_encoder", "image_encoder")}
    parts = replace(demo.parts, unet=own, info=info, **kept)
    if model == "published":
        with torch.device(device):
            text = CLIPTextModel(CLIPTextConfig(**{k: v for k, v in TEXT.items() if k != "model_type"}))
            vision = CLIPVisionConfig(**{k: v for k, v in VISION.items() if k != "model_type"})
            image = CLIPVisionModelWithProjection(vision)
            vae = AutoencoderKL.from_config(VAE)
        modules = {"text_encoder": text, "image_encoder": image, "vae": vae}
        modules = {key: module.to(dtype).eval().requires_grad_(False) for key, module in modules.items()}
        parts = replace(parts, **modules)
    return Engine.of(parts, torch.device(device), demo.conventions), upstream


def folder(model: str, path: Path) -> Path:
    """The demo folder with the UNet of `toy` or `reduced` in it, for other processes to load."""
    shutil.copytree(DEMO_FOLDER, path, ignore=shutil.ignore_patterns("unet", "i2v.json"))
    context = json.loads((DEMO_FOLDER / "unet" / "config.json").read_text())["cross_attention_dim"]
    own, _ = unets(UNETS[model] | {"cross_attention_dim": context}, "cpu", torch.float32)
    write_config(path, "unet", asdict(own.config))
    state = {name: tensor.contiguous() for name, tensor in own.state_dict().items()}
    save_file(state, path / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return path


def description(model: str, path: Path) -> Path:
    """The demo folder without weights, with the configs of `toy` or `published`, for others to build at random."""
    shutil.copytree(DEMO_FOLDER, path, ignore=shutil.ignore_patterns("*.safetensors", "i2v.json"))
    config = json.loads((DEMO_FOLDER / "unet" / "config.json").read_text())
    if model == "toy":
        write_config(path, "unet", UNETS["toy"] | {"cross_attention_dim": config["cross_attention_dim"]})
    else:
        for part, content in {"unet": {}, "vae": VAE, "text_encoder": TEXT, "image_encoder": VISION}.items():
            write_config(path, part, content)
    return path


def write_config(path: Path, part: str, content: dict[str, Any]) -> None:
    (path / part).mkdir(exist_ok=True)
    (path / part / "config.json").write_text(json.dumps(content), encoding="utf-8")
