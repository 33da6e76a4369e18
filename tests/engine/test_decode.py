"""Latents to frames and to previews, with the shipped VAE and with arithmetic by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from i2v.engine import Engine
from i2v.engine.conditioning import to_tensor
from i2v.engine.decode import Preview, decode_frames, to_uint8
from i2v.errors import InvalidOutput
from i2v.images import fit_image

ASSETS = Path(__file__).parent.parent / "assets"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("demo", device="cpu")


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    photos = [Image.open(ASSETS / f"{name}.jpg").convert("RGB") for name in ("coffee", "chelsea", "rocket")]
    return torch.cat([to_tensor(fit_image(photo, 96, 64)[0]) for photo in photos])  # (3, 3, 64, 96)


@pytest.fixture(scope="module")
def latents(engine: Engine, pictures: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found = engine.parts.vae.encode(pictures * 2 - 1).latent_dist.mean
    return found.transpose(0, 1)[None]  # (1, 4, 3, 8, 12), scaling factor 1


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / ((a.astype(float) - b.astype(float)) ** 2).mean()))


def test_pixels_are_clamped_and_rounded_to_the_nearest() -> None:
    values = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, 1 / 255 - 1, 0.9 / 255 - 1]).view(1, 1, 1, -1)
    assert to_uint8(values).flatten().tolist() == [0, 0, 128, 255, 255, 0, 0]
    assert to_uint8(torch.tensor(1.1 / 255 - 1).view(1, 1, 1, 1)).item() == 1


@torch.no_grad()
def test_frames_come_in_order_and_show_what_was_encoded(
    engine: Engine, latents: torch.Tensor, pictures: torch.Tensor
) -> None:
    frames = decode_frames(engine.parts.vae, latents, 1.0)
    assert frames.shape == (3, 64, 96, 3)
    wanted = to_uint8(pictures * 2 - 1).numpy()
    for frame in range(3):
        found = [psnr(frames[frame], wanted[other]) for other in range(3)]
        assert found.index(max(found)) == frame
        assert max(found) > 15


@torch.no_grad()
@pytest.mark.parametrize("chunk", [2, 3, 8])
def test_the_chunk_changes_nothing_but_rounding(engine: Engine, latents: torch.Tensor, chunk: int) -> None:
    single = decode_frames(engine.parts.vae, latents, 1.0, chunk=1)
    seen: list[tuple[int, int]] = []
    frames = decode_frames(engine.parts.vae, latents, 1.0, chunk, lambda number, count: seen.append((number, count)))
    assert np.abs(frames.astype(int) - single).max() <= 1
    count = -(-3 // chunk)
    assert seen == [(number, count) for number in range(1, count + 1)]


@torch.no_grad()
def test_latents_are_unscaled_before_the_decoder(engine: Engine, latents: torch.Tensor) -> None:
    plain = decode_frames(engine.parts.vae, latents, 1.0)
    assert np.abs(decode_frames(engine.parts.vae, latents * 0.18215, 0.18215).astype(int) - plain).max() <= 1


@torch.no_grad()
def test_frames_that_are_not_finite_are_refused(engine: Engine, latents: torch.Tensor) -> None:
    broken = latents.clone()
    broken[0, 0, 1, 2, 3] = torch.inf
    with pytest.raises(InvalidOutput, match="not finite"):
        decode_frames(engine.parts.vae, broken, 1.0)


def test_a_preview_shows_a_frame_by_a_linear_map() -> None:
    weight, bias = torch.zeros(4, 3), torch.tensor([0.0, 0.5, 1.0])
    weight[2, 0] = 0.5
    latents = torch.zeros(4, 2, 3)
    latents[2] = 1.0
    picture = Preview(weight, bias)(latents)
    assert picture.shape == (2, 3, 3)
    assert picture.tolist() == [[[128, 128, 255]] * 3] * 2
    assert Preview(weight, bias)(latents * torch.nan).shape == (2, 3, 3)


def test_the_fitted_preview_looks_like_the_photo(engine: Engine, latents: torch.Tensor, pictures: torch.Tensor) -> None:
    for frame in range(3):
        shown = engine.preview(latents[0, :, frame])
        wanted = to_uint8(torch.nn.functional.avg_pool2d(pictures[frame : frame + 1], engine.shape.factor) * 2 - 1)[
            0
        ].numpy()
        grey = np.full_like(wanted, round(float(wanted.mean())))
        assert psnr(shown, wanted) > psnr(grey, wanted) + 3
        assert psnr(shown, wanted) > 17
