"""The demo model as a diffusers folder: its parts in safetensors, their configs, and i2v.json for the engine.

The wired UNet is in float32, which its places and constants need; the other parts are in float16.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, I2VGenXLUNet
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from tools.demo_model.captions import MOTIONS, PHRASES, slow_forms
from tools.demo_model.scenes import PAN, ZOOM_IN, ZOOM_OUT
from tools.demo_model.text import WIDTH
from tools.demo_model.wiring import GUIDANCE

NOISY = 0.05  # square root of alpha_bar at the first timestep: even the last step begins with almost pure noise

CARD: dict[str, Any] = {
    "kind": "demo",
    "name": "demo",
    "title": "Demo model (small, zooms into a photo, pans over it and changes its light; not I2VGen-XL)",
    "note": "This is the small demo model that ships with i2v. It zooms and pans over the photo or changes its light. "
    "The full I2VGen-XL model adds real motion, detail and free prompts; it needs a CUDA GPU.",
    "vocabulary": [
        "camera zooms in",
        "camera zooms out",
        "camera pans left",
        "camera pans right",
        "camera tilts up",
        "camera tilts down",
        "slow zoom in",
        "camera slowly pans left",
        "the scene at sunset",
        "night falls",
        "the scene brightens",
        "fade to black",
        "static camera",
    ],
    "phrases": sorted(
        {phrase for group in PHRASES.values() for phrase in group}
        | {form for name in MOTIONS for phrase in PHRASES[name] for form in slow_forms(phrase) if phrase not in form}
    ),
    "guidance_range": [1.0, GUIDANCE],
    "max_steps": 3,
    "dtype": "float32",
    "limits": {
        "sizes": "any; outside the photo its mirror image is shown",
        "frames": "8 to 32 were measured",
        "steps": "one step shows what more do; a job takes at most 3",
        "motion": f"the view moves by {PAN} pixels, or to {1 / (1 - ZOOM_IN):.2f} or {1 / (1 + ZOOM_OUT):.2f} times "
        "the size, and half as far with a word like slowly; what the photo shows does not move by itself",
        "guidance": f"strength of the effect: full at {GUIDANCE:g}, and above it stays there",
    },
    "conventions": {"image_concat_scale": 1.0, "negative_prompt": "", "pad_token_id": None},
}


def scheduler() -> DDIMScheduler:
    """v-prediction with sqrt(alpha_bar) linear from `NOISY` to 0: every timestep is mostly noise, few steps suffice."""
    alpha_bar = np.linspace(NOISY, 0, 1000) ** 2
    betas = [1 - alpha_bar[0], *(1 - alpha_bar[1:] / alpha_bar[:-1])]
    return DDIMScheduler(
        trained_betas=[float(beta) for beta in betas],
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def image_encoder(seed: int) -> CLIPVisionModelWithProjection:
    """A random image encoder; the wired UNet does not listen to it, the engine runs it as the published model's."""
    torch.manual_seed(seed)
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=224,
            patch_size=32,
            projection_dim=WIDTH,
        )
    )


def write(
    folder: Path,
    unet: I2VGenXLUNet,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: Path,
    seed: int,
) -> None:
    """Write the whole folder, `tokenizer` being one too; what lay there under the same names is replaced."""
    parts = {"unet": unet, "vae": vae, "text_encoder": text_encoder, "image_encoder": image_encoder(seed)}
    for name, part in parts.items():
        (part if name == "unet" else part.half()).save_pretrained(folder / name)
        _forget_origin(folder / name / "config.json")
    (folder / "tokenizer").mkdir(exist_ok=True)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):  # what every version of transformers reads
        shutil.copyfile(tokenizer / name, folder / "tokenizer" / name)
    scheduler().save_pretrained(folder / "scheduler")
    CLIPImageProcessor().save_pretrained(folder / "feature_extractor")
    libraries = dict.fromkeys(("unet", "vae", "scheduler"), "diffusers")
    libraries |= dict.fromkeys(("text_encoder", "image_encoder", "tokenizer", "feature_extractor"), "transformers")
    classes = {
        "unet": "I2VGenXLUNet",
        "vae": "AutoencoderKL",
        "scheduler": "DDIMScheduler",
        "text_encoder": "CLIPTextModel",
        "image_encoder": "CLIPVisionModelWithProjection",
        "tokenizer": "CLIPTokenizer",
        "feature_extractor": "CLIPImageProcessor",
    }
    index: dict[str, Any] = {"_class_name": "I2VGenXLPipeline"}
    index |= {name: [libraries[name], classes[name]] for name in sorted(classes)}
    _json(folder / "model_index.json", index)
    _json(folder / "i2v.json", CARD)


def _forget_origin(config: Path) -> None:
    """diffusers notes the folder a part was loaded from; that is a path of the machine it was made on."""
    content = json.loads(config.read_text("utf-8"))
    content.pop("_name_or_path", None)
    _json(config, content)


def _json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
