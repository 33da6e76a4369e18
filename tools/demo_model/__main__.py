"""`python -m tools.demo_model --work DIR --out FOLDER`: make the demo model from nothing.

Four stages: autoencoder, text encoder, the UNet's light maps, the folder. Each is kept in `--work`, and a run that was
stopped goes on where it was, within the autoencoder's training too.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL
from PIL import Image, ImageOps
from rich.console import Console
from torch import Tensor
from transformers import CLIPTextModel

from tools.demo_model import autoencoder, folder, scenes, text, wiring
from tools.demo_model.pictures import Pictures, tensor

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Say = Callable[[str], None]
QUICK_WIDTHS = (8, 8, 16)  # of the autoencoder's levels: the analytic start alone, and hardly anything to train


@dataclass(frozen=True, slots=True)
class Plan:
    """The command's options; `main` says what they mean."""

    work: Path
    out: Path
    minutes: float
    device: str
    bf16: bool
    vae_from: Path | None
    seed: int
    photos: Path | None
    quick: bool


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
        bool, typer.Option("--quick", help="seconds in all: every stage runs on little, and little is learned")
    ] = False,
) -> None:
    """Train the autoencoder and the text encoder, fit the light words, wire the UNet, write the folder."""
    console = Console(stderr=True)
    work.mkdir(parents=True, exist_ok=True)
    plan = Plan(work, out, 0.02 if quick else minutes, device, bf16, vae_from, seed, photos, quick)
    make(plan, lambda line: console.print(line))
    console.print(f"written: {out}")


def make(plan: Plan, say: Say) -> None:
    """All stages. A seed fixes pictures, captions and starting weights; the autoencoder also depends on the time."""
    torch.manual_seed(plan.seed)
    pictures = Pictures.make(4 if plan.quick else 400, plan.seed)
    vae = _autoencoder(plan, pictures, say)
    text_encoder = _text(plan, say)
    pictures.rng.seed(plan.seed + 1)  # the scenes are the same whether the autoencoder was trained now or kept
    lessons = scenes.make(vae, pictures, 2 if plan.quick else 40, say)
    first, lit = torch.stack([s.first for s in lessons]), torch.stack([s.lights for s in lessons])
    unet = wiring.build(wiring.fit_light(first, lit))
    folder.write(plan.out, unet, vae, text_encoder, plan.work / "tokenizer", plan.seed)


def _text(plan: Plan, say: Say) -> CLIPTextModel:
    kept = plan.work / "text_encoder"
    if kept.exists():
        say("text encoder: kept")
        return CLIPTextModel.from_pretrained(kept)
    torch.manual_seed(plan.seed)
    rng = random.Random(plan.seed)  # noqa: S311 - captions, no secrets
    tokenizer = text.make_tokenizer(plan.work / "tokenizer", rng)
    model = text.train(tokenizer, rng, steps=15 if plan.quick else 900, say=say)
    model.save_pretrained(kept)
    return model


def _autoencoder(plan: Plan, pictures: Pictures, say: Say) -> AutoencoderKL:
    kept = plan.work / "vae"
    if kept.exists():
        say("autoencoder: kept")
        vae: AutoencoderKL = AutoencoderKL.from_pretrained(kept)
    else:
        widths, side = (QUICK_WIDTHS, 64) if plan.quick else (autoencoder.WIDTHS, autoencoder.SIDE)
        if plan.photos:
            held_out = _held_out(plan.photos)
        else:
            held_out = torch.stack([pictures.crop(side) for _ in range(4)]) * 2 - 1
        vae = autoencoder.train(
            plan.work,
            pictures,
            held_out,
            minutes=plan.minutes,
            device=plan.device,
            say=say,
            bf16=plan.bf16,
            narrow=AutoencoderKL.from_pretrained(plan.vae_from) if plan.vae_from else None,
            widths=widths,
            side=side,
        )
        vae.save_pretrained(kept)
    return vae.float().eval().to(memory_format=torch.channels_last)


def _held_out(photos: Path) -> Tensor:
    images = [Image.open(file).convert("RGB") for file in sorted(photos.glob("*.jpg"))]
    size = (autoencoder.SIDE, autoencoder.SIDE)
    return torch.stack([tensor(ImageOps.fit(image, size, Image.Resampling.LANCZOS)) for image in images]) * 2 - 1


if __name__ == "__main__":
    app()
