"""`python -m tools.demo_model.evaluate --photos FOLDER --out FOLDER`: what the demo model does, seen through `Engine`.

Per word and photo: PSNR of frame 0 against the photo, what became of it in the last frame, and whether the floors that
the model is held to are met. Writes evaluation.json and a contact sheet to look at, after every word.
"""

import json
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image, ImageOps

from i2v.engine.engine import Engine
from i2v.request import GenerateRequest
from tools.demo_model.captions import MOTIONS, SLOWLY
from tools.demo_model.measurement import Measured, measure
from tools.demo_model.scenes import MOVES

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

PROMPTS = {
    "static": "static camera",
    "zoom in": "camera zooms in",
    "zoom out": "camera zooms out",
    "pan left": "camera pans left",
    "pan right": "camera pans right",
    "tilt up": "camera tilts up",
    "tilt down": "camera tilts down",
    "sunset": "the scene at sunset",
    "night": "night falls",
    "brighten": "the scene brightens",
    "fade": "fade to black",
    "drift": "a robot waves",
}
PROMPTS |= {name + SLOWLY: f"{PROMPTS[name]} slowly" for name in MOTIONS}


def floors(clips: list[Measured]) -> dict[str, dict[str, Any]]:
    """What the model is held to on photos that it was not trained on: value, wanted value, passed or not."""
    first = [clip.psnr for clip in clips]
    static = [clip for clip in clips if clip.word == "static"]
    following = [clip.follows for clip in clips if clip.word not in ("static", "drift")]
    contrast = [clip.contrast for clip in clips if clip.word in MOVES]
    moved = _moved(clips)
    found = {"frame 0, worst, dB": (min(first), 26.0), "frame 0, median, dB": (median(first), 29.0)}
    if moved:
        found["last frame of a pan or tilt, median, dB"] = (median(moved), 27.0)
    if following:
        found["clips that do what the word says, share"] = (sum(following) / len(following), 0.9)
    if static:
        found["static clips within a pixel, share"] = (sum(clip.follows for clip in static) / len(static), 1.0)
    if contrast:
        found["contrast of the last frame when moving, worst"] = (min(contrast), 0.7)
    return {
        name: {"value": round(value, 3), "wanted": wanted, "passed": value >= wanted}
        for name, (value, wanted) in found.items()
    }


def sheet(rows: list[list[np.ndarray]], side: int = 96) -> Image.Image:
    """Rows of pictures (H, W, 3) as one image, each `side` pixels wide."""
    canvas = Image.new("RGB", (side * max(map(len, rows)), side * len(rows)))
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            canvas.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS), (x * side, y * side))
    return canvas


@app.command()
def main(
    photos: Annotated[Path, typer.Option(help="folder of JPEGs that were not trained on")],
    out: Annotated[Path, typer.Option(help="where evaluation.json and contact_sheet.jpg go")],
    model: Annotated[str, typer.Option(help="diffusers folder, or demo")] = "demo",
    width: Annotated[int, typer.Option(help="pixels")] = 256,
    height: Annotated[int, typer.Option(help="pixels")] = 256,
    frames: Annotated[int, typer.Option(help="frames of a clip")] = 16,
    steps: Annotated[int, typer.Option(help="denoising steps")] = 3,
    guidance: Annotated[float, typer.Option(help="guidance scale")] = 7.5,
    seeds: Annotated[int, typer.Option(help="clips for each photo and word")] = 3,
    first_seed: Annotated[int, typer.Option(help="the first of the seeds")] = 0,
    words: Annotated[str, typer.Option(help="words to measure, with commas between; all of them if empty")] = "",
    threads: Annotated[int, typer.Option(help="CPU threads")] = 2,
) -> None:
    """Measure words on photos, print the medians, and say which floors are met."""
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    engine = Engine.load(source=model, device="cpu")
    chosen = [word.strip() for word in words.split(",")] if words else list(PROMPTS)
    settings = {"width": width, "height": height, "frames": frames, "steps": steps, "guidance": guidance}
    found: list[Measured] = []
    rows: list[list[np.ndarray]] = []
    begun = time.monotonic()
    for word in chosen:
        row: list[np.ndarray] = []
        for file in sorted(photos.glob("*.jpg")):
            image = ImageOps.fit(Image.open(file).convert("RGB"), (width, height), Image.Resampling.LANCZOS)
            source = np.asarray(image)
            for seed in range(first_seed, first_seed + seeds):
                request = GenerateRequest(
                    prompt=PROMPTS[word],
                    width=width,
                    height=height,
                    num_frames=frames,
                    steps=steps,
                    guidance_scale=guidance,
                    seed=seed,
                )
                clip = engine.generate(request, image).frames
                found.append(measure(word, file.stem, seed, source, clip))
                if seed == first_seed:
                    row += [source, clip[0], clip[len(clip) // 2], clip[-1]]
        rows.append(row)
        typer.echo(line(word, [m for m in found if m.word == word]))
        spent = {"seeds": seeds, "seconds": round(time.monotonic() - begun)}
        content = {"settings": settings | spent, "floors": floors(found), "clips": [asdict(m) for m in found]}
        (out / "evaluation.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        sheet(rows).save(out / "contact_sheet.jpg", quality=88)
    for name, floor in floors(found).items():
        typer.echo(f"{'passed' if floor['passed'] else 'FAILED'}: {name}: {floor['value']} (wanted {floor['wanted']})")


def line(word: str, clips: list[Measured]) -> str:
    """One line of the table: medians over the clips, and the worst PSNR."""
    down, right = median(m.shift[0] for m in clips), median(m.shift[1] for m in clips)
    found = (
        f"{word:16s} psnr {median(m.psnr for m in clips):.1f} (worst {min(m.psnr for m in clips):.1f})"
        f"  follows {sum(m.follows for m in clips)} of {len(clips)}"
        f"  moved down {down:+.0f} right {right:+.0f} size {median(m.scale for m in clips):.2f}"
        f"  brightness {median(m.brightness for m in clips):.2f}"
        f"  warmth {median(m.warmth for m in clips):.2f}  contrast {median(m.contrast for m in clips):.2f}"
        f" (worst {min(m.contrast for m in clips):.2f})"
    )
    if moved := _moved(clips):
        found += f"  last frame {median(moved):.1f} dB (worst {min(moved):.1f})"
    return found


def _moved(clips: list[Measured]) -> list[float]:
    return [clip.moved for clip in clips if clip.moved is not None]


if __name__ == "__main__":
    app()
