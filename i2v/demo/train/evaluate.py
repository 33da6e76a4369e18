"""`python -m i2v.demo.train.evaluate --photos FOLDER --out FOLDER`: what the demo model does, seen through `Engine`.

Per word and photo: PSNR of frame 0 against the photo, the shift of the last frame (registration), brightness,
warmth and contrast of the last frame over the first. Writes evaluation.json and a contact sheet to look at.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image, ImageOps

from i2v.engine.engine import Engine
from i2v.request import GenerateRequest

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

PROMPTS = {
    "static": "static camera",
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


@dataclass(frozen=True, slots=True)
class Measured:
    """One clip. `shift` is how far the picture's content moved, (down, right) in pixels; ratios are last over first."""

    word: str
    photo: str
    psnr: float
    shift: tuple[float, float]
    brightness: float
    warmth: float
    contrast: float


def measure(word: str, photo: str, source: np.ndarray, frames: np.ndarray) -> Measured:
    """Measure frames (F, H, W, 3) uint8 against the fitted photo `source` (H, W, 3) uint8."""
    first, last = frames[0].astype(np.float64), frames[-1].astype(np.float64)
    error = np.mean((first - source.astype(np.float64)) ** 2)

    def warmth(frame: np.ndarray) -> float:
        return float((frame[..., 0].mean() + 1) / (frame[..., 2].mean() + 1))

    return Measured(
        word=word,
        photo=photo,
        psnr=float(10 * np.log10(255**2 / max(error, 1e-9))),
        shift=moved(first.mean(-1), last.mean(-1)),
        brightness=float(last.mean() / first.mean()),
        warmth=warmth(last) / warmth(first),
        contrast=float(last.std() / first.std()),
    )


def moved(first: np.ndarray, last: np.ndarray, reach: int = 32) -> tuple[float, float]:
    """How far the content of `first` (H, W) has moved in `last`: (down, right) in pixels, along one axis.

    The best normalised correlation over whole pixels. Phase correlation was tried and fails on these soft pictures: the
    autoencoder's grid of 8 pixels stays in place and wins.
    """
    shifts = [(0, 0)] + [(s * way, s * (1 - way)) for way in (0, 1) for s in range(-reach, reach + 1) if s]
    inside = slice(reach, -reach)
    target = last[inside, inside].ravel()

    def match(shift: tuple[int, int]) -> float:
        here = np.roll(first, shift, (0, 1))[inside, inside].ravel()
        return float(np.dot(here - here.mean(), target - target.mean()) / (here.std() * target.std() + 1e-9))

    down, right = max(shifts, key=match)
    return float(down), float(right)


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
    size: Annotated[int, typer.Option(help="pixels of a side")] = 256,
    frames: Annotated[int, typer.Option(help="frames of a clip")] = 16,
    steps: Annotated[int, typer.Option(help="denoising steps")] = 20,
    guidance: Annotated[float, typer.Option(help="guidance scale")] = 7.5,
    seeds: Annotated[int, typer.Option(help="clips for each photo and word")] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 2,
) -> None:
    """Measure every word on every photo and print the medians."""
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    engine = Engine.load(source=model, device="cpu")
    files = sorted(photos.glob("*.jpg"))
    found: list[Measured] = []
    rows: list[list[np.ndarray]] = []
    for word, prompt in PROMPTS.items():
        row: list[np.ndarray] = []
        for file in files:
            image = ImageOps.fit(Image.open(file).convert("RGB"), (size, size), Image.Resampling.LANCZOS)
            source = np.asarray(image)
            for seed in range(seeds):
                request = GenerateRequest(
                    prompt=prompt,
                    width=size,
                    height=size,
                    num_frames=frames,
                    steps=steps,
                    guidance_scale=guidance,
                    seed=seed,
                )
                clip = engine.generate(request, image).frames
                found.append(measure(word, file.stem, source, clip))
                if seed == 0:
                    row += [source, clip[0], clip[len(clip) // 2], clip[-1]]
        rows.append(row)
        typer.echo(line(word, [m for m in found if m.word == word]))
    settings = {"size": size, "frames": frames, "steps": steps, "guidance": guidance, "seeds": seeds}
    content = {"settings": settings, "clips": [asdict(m) for m in found]}
    (out / "evaluation.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    sheet(rows).save(out / "contact_sheet.jpg", quality=88)


def line(word: str, clips: list[Measured]) -> str:
    """One line of the table: medians over the clips, and the worst PSNR."""
    down, right = median(m.shift[0] for m in clips), median(m.shift[1] for m in clips)
    return (
        f"{word:10s} psnr {median(m.psnr for m in clips):.1f} (worst {min(m.psnr for m in clips):.1f})"
        f"  moved down {down:+.1f} right {right:+.1f}  brightness {median(m.brightness for m in clips):.2f}"
        f"  warmth {median(m.warmth for m in clips):.2f}  contrast {median(m.contrast for m in clips):.2f}"
    )


if __name__ == "__main__":
    app()
