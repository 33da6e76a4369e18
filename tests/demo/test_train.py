"""How the demo model is made: its captions, its scenes, the wired UNet, and the whole command in a minute."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("skimage")  # the `train` and `test` extras bring it

from i2v.demo.train import autoencoder, scenes, text, wiring
from i2v.demo.train.__main__ import app
from i2v.demo.train.captions import CLASSES, caption
from i2v.demo.train.pictures import procedural
from i2v.engine import Engine
from i2v.request import GenerateRequest

STILL = {name: (torch.eye(4), torch.zeros(4)) for name in scenes.LIGHTS}


def code(name: str) -> torch.Tensor:
    """What a perfectly trained text encoder says for a class: (77, 64)."""
    tokens = torch.zeros(77, text.WIDTH)
    tokens[:, text.FLAG_AT] = -text.FLAG
    tokens[-text.SETTLED :, text.FLAG_AT] = text.FLAG
    tokens[-text.SETTLED :, CLASSES.index(name)] = text.CODE
    return tokens


@torch.no_grad()
def shown(
    light: dict[str, tuple[torch.Tensor, torch.Tensor]], photo: torch.Tensor, name: str, frames: int
) -> torch.Tensor:
    """The clip (4, F, h, w) that guidance at the wiring's scale shows for latents (4, h, w) and a class."""
    unet = wiring.build(light)
    position = torch.arange(frames) / max(1, frames - 1)
    image = position.view(1, -1, 1, 1).expand(4, -1, *photo.shape[1:]).clone()
    image[:, 0] = photo
    velocity = unet(
        torch.randn(2, 4, frames, *photo.shape[1:]),
        torch.tensor([500, 500]),
        fps=torch.tensor([16, 16]),
        image_latents=image.expand(2, -1, -1, -1, -1),
        image_embeddings=torch.randn(2, 1, text.WIDTH),
        encoder_hidden_states=torch.stack([code("static"), code(name)]),
    ).sample
    without, along = -velocity
    return without + wiring.GUIDANCE * (along - without)


@pytest.fixture
def photo() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 16, 16) + torch.tensor(autoencoder.OFFSET)[:, None, None]


def test_captions_depend_on_the_seed_alone() -> None:
    drawn = [[caption(name, random.Random(seed)) for name in CLASSES] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_drawn_picture_depends_on_the_seed_alone() -> None:
    assert torch.equal(procedural(3, 64), procedural(3, 64))
    assert not torch.equal(procedural(3, 64), procedural(4, 64))


@pytest.mark.parametrize("frames", [2, 4, 16])
def test_without_a_word_every_frame_is_the_photo(photo: torch.Tensor, frames: int) -> None:
    clip = shown(STILL, photo, "static", frames)
    assert (clip - photo[:, None]).pow(2).mean() < 1e-3


@pytest.mark.parametrize(
    ("name", "dims", "shift"),
    [("pan left", 2, 3), ("pan right", 2, -3), ("tilt up", 1, 3), ("tilt down", 1, -3), ("drift", 2, -1)],
)
def test_the_wired_unet_moves_whole_latents_exactly(photo: torch.Tensor, name: str, dims: int, shift: int) -> None:
    last = shown(STILL, photo, name, 2)[:, -1]
    inside = (slice(None), slice(4, -4), slice(4, -4))
    assert (last - photo.roll(shift, dims))[inside].pow(2).mean() < 0.02
    assert (last - photo)[inside].pow(2).mean() > 1


def test_a_pan_repeats_the_edge_where_the_photo_ends(photo: torch.Tensor) -> None:
    last = shown(STILL, photo, "pan right", 2)[:, -1]
    assert (last[:, :, -1] - photo[:, :, -1]).pow(2).mean() < 0.02


@pytest.mark.parametrize("name", scenes.LIGHTS)
def test_light_is_the_affine_map_of_its_own_word_alone(photo: torch.Tensor, name: str) -> None:
    matrix, offset = torch.diag(torch.tensor([0.2, 0.5, 0.7, 1.0])), torch.tensor([1.0, -0.5, 0.2, 0.0])
    last = shown(STILL | {name: (matrix, offset)}, photo, name, 2)[:, -1]
    centre = torch.tensor(autoencoder.OFFSET)[:, None, None]
    wanted = torch.einsum("ij,jhw->ihw", matrix, photo - centre) + offset[:, None, None] + centre
    assert (last - wanted).pow(2).mean() < 0.01
    other = shown(STILL | {name: (matrix, offset)}, photo, "static", 2)[:, -1]
    assert (other - photo).pow(2).mean() < 1e-3


def test_light_maps_are_found_by_least_squares() -> None:
    torch.manual_seed(1)
    first = torch.randn(3, 4, 8, 8) + torch.tensor(autoencoder.OFFSET)[:, None, None]
    centre = torch.tensor(autoencoder.OFFSET)[:, None, None]
    lit = torch.stack([(first - centre) * 0.5 + k + centre for k in range(len(scenes.LIGHTS))], 1)
    for k, (matrix, offset) in enumerate(wiring.fit_light(first, lit).values()):
        torch.testing.assert_close(matrix, torch.eye(4) * 0.5, atol=1e-4, rtol=0)
        torch.testing.assert_close(offset, torch.full((4,), float(k)), atol=1e-4, rtol=0)


def test_standardising_changes_latents_but_no_picture() -> None:
    torch.manual_seed(2)
    vae, x = autoencoder.build(), torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(x).latent_dist.mean).sample
        autoencoder.standardise(vae, x)
        z = vae.encode(x).latent_dist.mean
        after = vae.decode(z).sample
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.tensor(autoencoder.OFFSET), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)


def test_a_scene_is_shifted_by_whole_pixels_in_both_axes() -> None:
    """A stand-in for the autoencoder that averages 8x8 pixels, so that the expected latents are known."""

    class Average:
        def encode(self, x: torch.Tensor) -> "Average":
            self.mean = torch.nn.functional.avg_pool2d(torch.cat([x, x[:, :1]], 1), 8)
            self.latent_dist = self
            return self

    side = scenes.SIZE + 2 * scenes.MARGIN + 8
    picture = torch.rand(3, side, side)
    scene = scenes.encode(Average(), picture)  # type: ignore[arg-type]
    for name, (right, down) in scenes.MOVES.items():
        way = scenes.DRIFT if name == "drift" else scenes.PAN
        for share in (0.25, 0.5, 1.0):
            pixels = round(share * way / 2) * 2
            top, left = scenes.MARGIN + down * pixels, scenes.MARGIN + right * pixels
            part = picture[None, :, top : top + scenes.SIZE, left : left + scenes.SIZE] * 2 - 1
            wanted = torch.nn.functional.avg_pool2d(part, 8)[0]
            torch.testing.assert_close(scene.frame(name, share)[:3], wanted, atol=2e-3, rtol=0)


def test_the_whole_command_makes_a_folder_that_the_engine_runs(tmp_path: Path) -> None:
    arguments = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "model"), "--quick"]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    engine = Engine.load(str(tmp_path / "model"), device="cpu")
    assert engine.info.guidance_range == (1.0, 12.0)
    assert "camera pans left" in engine.info.vocabulary
    image = Image.fromarray((procedural(5, 64).permute(1, 2, 0).numpy() * 255).astype(np.uint8))
    request = GenerateRequest(prompt="static camera", width=64, height=64, num_frames=4, steps=2, seed=1)
    frames = engine.generate(request, image).frames
    assert frames.shape == (4, 64, 64, 3)
    assert np.corrcoef(frames[0].ravel(), np.asarray(image).ravel())[0, 1] > 0.7

    again = CliRunner().invoke(app, arguments)  # stages that are done are kept
    assert again.exit_code == 0
    assert "text encoder: kept" in again.output
    assert "autoencoder: kept" in again.output
