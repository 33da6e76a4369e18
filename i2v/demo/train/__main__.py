"""`python -m i2v.demo.train --work DIR --out FOLDER`: make the demo model from nothing.

Four stages: text encoder, autoencoder, the UNet's light maps, the folder. Each is kept in `--work`, and a run that was
stopped goes on where it was.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL
from PIL import Image, ImageOps
from rich.console import Console
from torch import Tensor
from transformers import CLIPTextModel

from i2v.demo.train import autoencoder, folder, scenes, text, wiring
from i2v.demo.train.pictures import Pictures, tensor

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Say = Callable[[str], None]


@app.command()
def main(
    work: Annotated[Path, typer.Option(help="where finished stages are kept")],
    out: Annotated[Path, typer.Option(help="the diffusers folder to write")],
    minutes: Annotated[float, typer.Option(help="wall time for the autoencoder")] = 60,
    device: Annotated[str, typer.Option(help="cpu or cuda, for the autoencoder")] = "cpu",
    bf16: Annotated[bool, typer.Option("--bf16", help="multiply in bfloat16: faster where the processor can")] = False,
    vae_from: Annotated[
        Path | None, typer.Option(help="an autoencoder to widen and go on with, instead of the analytic start")
    ] = None,
    seed: Annotated[int, typer.Option(help="of pictures, captions and weights")] = 0,
    photos: Annotated[Path | None, typer.Option(help="folder of JPEGs to watch the autoencoder on, unused")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="a minute in all: every stage runs, little is learned")
    ] = False,
) -> None:
    """Train the text encoder and the autoencoder, fit the light words, wire the UNet, write the folder."""
    console = Console(stderr=True)
    work.mkdir(parents=True, exist_ok=True)
    make(work, out, 0.1 if quick else minutes, device, bf16, vae_from, seed, photos, quick, lambda line: console.print(line))
    console.print(f"written: {out}")


def make(
    work: Path,
    out: Path,
    minutes: float,
    device: str,
    bf16: bool,
    vae_from: Path | None,
    seed: int,
    photos: Path | None,
    quick: bool,
    say: Say,
) -> None:
    """All stages. A seed fixes pictures, captions and starting weights; the autoencoder also depends on the time."""
    torch.manual_seed(seed)
    pictures = Pictures.make(8 if quick else 400, seed)
    vae = _autoencoder(work, pictures, minutes, device, bf16, vae_from, photos, say)
    text_encoder = _text(work, seed, 60 if quick else 700, say)
    lessons = scenes.make(vae, pictures, 6 if quick else 40, say)
    first, lit = torch.stack([s.first for s in lessons]), torch.stack([s.lights for s in lessons])
    unet = wiring.build(wiring.fit_light(first, lit))
    folder.write(out, unet, vae, text_encoder, work / "tokenizer", seed)


def _text(work: Path, seed: int, steps: int, say: Say) -> CLIPTextModel:
    if (work / "text_encoder").exists():
        say("text encoder: kept")
        return CLIPTextModel.from_pretrained(work / "text_encoder")
    rng = random.Random(seed)  # noqa: S311 - captions, no secrets
    model = text.train(text.make_tokenizer(work / "tokenizer", rng), rng, steps=steps, say=say)
    model.save_pretrained(work / "text_encoder")
    return model


def _autoencoder(
    work: Path,
    pictures: Pictures,
    minutes: float,
    device: str,
    bf16: bool,
    vae_from: Path | None,
    photos: Path | None,
    say: Say,
) -> AutoencoderKL:
    if (work / "vae").exists():
        say("autoencoder: kept")
        vae: AutoencoderKL = AutoencoderKL.from_pretrained(work / "vae")
    else:
        held_out = _held_out(photos) if photos else torch.stack([pictures.crop(256) for _ in range(4)]) * 2 - 1
        narrow = AutoencoderKL.from_pretrained(vae_from) if vae_from else None
        vae = autoencoder.train(work, pictures, held_out, minutes=minutes, device=device, say=say, bf16=bf16, narrow=narrow)
        vae.save_pretrained(work / "vae")
    return vae.float().eval().to(memory_format=torch.channels_last)


def _held_out(photos: Path) -> Tensor:
    images = [Image.open(file).convert("RGB") for file in sorted(photos.glob("*.jpg"))]
    return torch.stack([tensor(ImageOps.fit(image, (256, 256), Image.Resampling.LANCZOS)) for image in images]) * 2 - 1


if __name__ == "__main__":
    app()
