"""The reference side of bench/engine.py: diffusers 0.33.1's I2VGenXLPipeline, one run for each line it is sent.

Runs in the reference environment; prints the wall and the process seconds of each run.
"""

import sys
import time

import torch
from diffusers import I2VGenXLPipeline
from PIL import Image


def main() -> None:
    folder, device, width, height, frames, steps, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    pipeline = I2VGenXLPipeline.from_pretrained(folder, torch_dtype=dtype).to(device)
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


if __name__ == "__main__":
    main()
