"""Record what the reference stack gives for a tiny random folder: `tests/engine/golden/pipeline.safetensors`.

Runs in its own environment: `pip install "diffusers==0.33.1" "transformers<5" torch safetensors pillow`, then
`python scripts/make_golden.py`. The tests run today's libraries against the recording. Each case records the latents
(fp32), the frames (uint8), and the seeds of the noise and of the global random state the VAE sample is drawn from.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.engine.tiny_folder import draw_photo, write_tiny_folder  # noqa: E402

CASES = [
    {"width": 64, "height": 64, "num_frames": 1, "guidance_scale": 1.0, "steps": 3},
    {"width": 64, "height": 64, "num_frames": 2, "guidance_scale": 9.0, "steps": 4},
    {"width": 64, "height": 48, "num_frames": 5, "guidance_scale": 7.5, "steps": 5},
    {
        "width": 48,
        "height": 80,
        "num_frames": 8,
        "guidance_scale": 9.0,
        "steps": 4,
        "negative_prompt": "blurry, static",
    },
    {"width": 72, "height": 40, "num_frames": 16, "guidance_scale": 9.0, "steps": 3},
    {"width": 64, "height": 64, "num_frames": 8, "guidance_scale": 1.0, "steps": 7},
    {"width": 32, "height": 32, "num_frames": 4, "guidance_scale": 9.0, "steps": 5, "vae_levels": 3},
]
PROMPT = "the sun at noon, " * 12  # longer than 77 tokens: the cut is recorded too


def record(pipeline, case: dict, number: int) -> dict[str, torch.Tensor]:
    factor = pipeline.vae_scale_factor
    shape = (1, 4, case["num_frames"], case["height"] // factor, case["width"] // factor)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(case["noise_seed"]))
    found = {}
    for kind in ("latent", "np"):
        torch.manual_seed(case["vae_seed"])
        found[kind] = pipeline(
            prompt=case["prompt"],
            image=draw_photo(),
            width=case["width"],
            height=case["height"],
            target_fps=case["motion_fps"],
            num_frames=case["num_frames"],
            num_inference_steps=case["steps"],
            guidance_scale=case["guidance_scale"],
            negative_prompt=case["negative_prompt"],
            latents=noise.clone(),
            output_type=kind,
        ).frames
    frames = torch.from_numpy((np.asarray(found["np"][0]) * 255).round().astype(np.uint8))
    latents = found["latent"].contiguous()
    print(f"case {number}: latents {tuple(latents.shape)} std {latents.std():.3f}, frames {frames.float().mean():.1f}")
    return {f"{number}.latents": latents, f"{number}.frames": frames.contiguous()}


def main() -> None:
    from diffusers import I2VGenXLPipeline, __version__

    torch.set_num_threads(1)
    tensors: dict[str, torch.Tensor] = {}
    cases, digests = [], {}
    for number, given in enumerate(CASES):
        case = {"negative_prompt": "", "motion_fps": 16 - number, "vae_levels": 4, **given}
        case |= {"prompt": PROMPT if number == 3 else f"the cat in scene {number}"}
        case |= {"noise_seed": 100 + number, "vae_seed": 200 + number}
        with tempfile.TemporaryDirectory() as folder:
            path = write_tiny_folder(Path(folder) / "tiny", vae_levels=case["vae_levels"])
            digests[str(case["vae_levels"])] = digest(path)
            pipeline = I2VGenXLPipeline.from_pretrained(path, torch_dtype=torch.float32)
            pipeline.set_progress_bar_config(disable=True)
            tensors |= record(pipeline, case, number)
        cases.append(case)
    golden = ROOT / "tests" / "engine" / "golden"
    save_file(tensors, golden / "pipeline.safetensors", metadata={"format": "pt"})
    described = {"recorded_with": f"diffusers {__version__}", "folders": digests, "cases": cases}
    (golden / "pipeline.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def digest(path: Path) -> str:
    """One hash over the folder's weights: the tests first check that they work on the same folder."""
    found = hashlib.sha256()
    for file in sorted(path.rglob("*.safetensors")):
        found.update(file.read_bytes())
    return found.hexdigest()


if __name__ == "__main__":
    main()
