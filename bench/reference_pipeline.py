"""diffusers 0.33.1's I2VGenXLPipeline on random weights, one run for each line that it is sent.

Runs with the old libraries (transformers 4.57 beside it) for `engine.py` and `gpu_sections.py`. Its first argument is a
diffusers folder: the modules are built from their configs there, tokenizer, image processor and schedule are loaded.
Prints the wall and the process seconds of each run.
"""

import json
import sys
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, I2VGenXLPipeline, I2VGenXLUNet
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)


def main() -> None:
    folder, device, width, height, frames, steps, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    pipeline = build(Path(folder), device, torch.float16 if device.startswith("cuda") else torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    photo = Image.effect_noise((512, 512), 60).convert("RGB")
    for _ in sys.stdin:
        start, used = time.perf_counter(), time.process_time()
        pipeline(
            prompt="sunset",
            image=photo,
            width=int(width),
            height=int(height),
            num_frames=int(frames),
            num_inference_steps=int(steps),
            guidance_scale=9.0,
            generator=torch.manual_seed(1),
        )
        print(time.perf_counter() - start, time.process_time() - used, flush=True)


def build(folder: Path, device: str, dtype: torch.dtype) -> I2VGenXLPipeline:
    def config(part: str) -> dict:
        return json.loads((folder / part / "config.json").read_text())

    def clip(part: str) -> dict:
        others = ("model_type", "architectures", "dtype", "torch_dtype")
        return {key: value for key, value in config(part).items() if key not in others}

    with torch.device(device):
        modules = {
            "unet": I2VGenXLUNet.from_config(config("unet")),
            "vae": AutoencoderKL.from_config(config("vae")),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**clip("text_encoder"))),
            "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(**clip("image_encoder"))),
        }
    return I2VGenXLPipeline(
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        feature_extractor=CLIPImageProcessor.from_pretrained(folder / "feature_extractor"),
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"),
        **{name: module.to(dtype).eval().requires_grad_(False) for name, module in modules.items()},
    )


if __name__ == "__main__":
    main()
