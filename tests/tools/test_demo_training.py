"""How the demo model is made: its captions, its scenes, the wired UNet, and the whole command at its smallest."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer
from typer.testing import CliRunner

pytest.importorskip("skimage")  # the `train` and `test` extras bring it

from i2v.engine import Engine, source
from i2v.engine.interface import ModelInfo
from i2v.engine.source import DEMO_FOLDER
from i2v.request import GenerateRequest
from tools.demo_model import autoencoder, evaluate, measurement, scenes, stream, text, wiring
from tools.demo_model.__main__ import app
from tools.demo_model.captions import CLASSES, MOTIONS, PHRASES, SLOWLY, caption, slow_forms
from tools.demo_model.pictures import Pictures, procedural

pytestmark = pytest.mark.slow

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
    assert (clip - photo[:, None]).pow(2).mean() < 1e-4


def seen(photo: torch.Tensor, move: scenes.Move, share: float = 1.0) -> torch.Tensor:
    """The latents (4, h, w) that the view shows after a share of `move`, by linear interpolation.

    Outside is the picture's mirror image about its outermost latents.
    """

    def places(count: int, pixels: int) -> torch.Tensor:
        x = torch.arange(count) - (count - 1) / 2
        x = x + share * (pixels / autoencoder.LATENT - move.zoom * x) + (count - 1) / 2
        x = torch.where(x < 0, -x, x)
        return torch.where(x > count - 1, 2 * (count - 1) - x, x) * 2 / (count - 1) - 1

    x, y = places(photo.shape[2], move.right), places(photo.shape[1], move.down)
    grid = torch.stack(torch.broadcast_tensors(x, y[:, None]), -1)
    return F.grid_sample(photo[None], grid[None], align_corners=True)[0]


def noise(height: int, width: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(4, height, width) + torch.tensor(autoencoder.OFFSET)[:, None, None]


@pytest.mark.parametrize("name", scenes.MOVES)
@pytest.mark.parametrize("size", [(16, 16), (34, 50)])
def test_the_wired_unet_moves_the_view_as_the_word_says(name: str, size: tuple[int, int]) -> None:
    """Of white noise, at sizes of which one is odd on every lower level, up to the edge and half-way, too."""
    photo, move = noise(*size), scenes.MOVES[name]
    clip = shown(STILL, photo, name, 3)
    for frame, share in enumerate((0, 0.5, 1)):
        assert (clip[:, frame] - seen(photo, move, share)).pow(2).mean() < 2e-3
    assert (photo - seen(photo, move)).pow(2).mean() > 0.25


@pytest.mark.parametrize("frames", [8, 17, 32])
def test_a_pan_is_never_between_two_cells(frames: int) -> None:
    """Whatever the number of frames: where two cells were as near, their mixture would show."""
    photo, move = noise(16, 24), scenes.MOVES["pan right"]
    clip = shown(STILL, photo, "pan right", frames)
    for frame in range(frames):
        wanted = seen(photo, move, frame / (frames - 1))
        assert (clip[:, frame] - wanted).abs().max() < 0.05


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (46, 26), (176, 320)])
def test_a_cell_knows_its_place_to_a_hundredth_of_a_latent(size: tuple[int, int]) -> None:
    """Up to 1280 pixels, the longest side that can be asked for, and for sides that four does not divide."""
    unet, found = wiring.build(STILL), []
    cells = unet.up_blocks[-2].attentions[0]
    cells.register_forward_pre_hook(lambda _, given: found.append(given[0][-1]))
    cells.forward = lambda x, *_, **__: (x,)  # what comes after is not looked at, and slow at this size
    for later in (*unet.up_blocks[-2].attentions[1:], *unet.up_blocks[-2].temp_attentions):
        later.forward = lambda x, *_, **__: (x,)
    height, width = size
    with torch.no_grad():
        unet(
            torch.randn(1, 4, 1, *size),
            torch.tensor([500]),
            fps=torch.tensor([16]),
            image_latents=torch.randn(1, 4, 1, *size),
            image_embeddings=torch.randn(1, 1, text.WIDTH),
            encoder_hidden_states=code("zoom in")[None],
        )
    across, down = (found[0][here] * stream.UNIT for here in stream.HERE)
    shape = (height // 2, width // 2)
    torch.testing.assert_close(across, (2.0 * torch.arange(width // 2) + 1).expand(shape), atol=0.01, rtol=0)
    torch.testing.assert_close(down, (2.0 * torch.arange(height // 2) + 1)[:, None].expand(shape), atol=0.01, rtol=0)


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


def test_a_widened_autoencoder_is_the_same_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "NOISE", 0.0)
    torch.manual_seed(3)
    narrow, x = autoencoder.build((8, 16, 24)), torch.rand(1, 3, 64, 64) * 2 - 1
    wide = autoencoder.widen(narrow, torch.Generator().manual_seed(0))
    assert wide.config.block_out_channels == (16, 32, 48)
    with torch.no_grad():
        before, after = (vae.decode(vae.encode(x).latent_dist.mean).sample for vae in (narrow, wide))
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)


def test_a_stopped_training_of_the_autoencoder_goes_on(tmp_path: Path) -> None:
    """It is stopped while it reports, right after its state was written."""
    small = {"widths": (8, 8, 8), "side": 64}
    held_out = torch.rand(1, 3, 64, 64) * 2 - 1

    def stop(line: str) -> None:
        if "step 2," in line:
            raise KeyboardInterrupt

    def train(say: Callable[[str], None], minutes: float) -> None:
        pictures = Pictures.make(2, seed=0)
        autoencoder.train(tmp_path, pictures, held_out, minutes=minutes, device="cpu", say=say, keep_every=0, **small)

    with pytest.raises(KeyboardInterrupt):
        train(stop, 60)
    lines: list[str] = []
    train(lines.append, 0)
    assert "step 2," in lines[0]
    assert "done after 2 steps" in lines[-1]


def test_latents_between_two_cells_are_their_mixture() -> None:
    z = torch.randn(4, 5, 5)
    torch.testing.assert_close(autoencoder._between(z, 0, 0), z[:, :4, :4])
    torch.testing.assert_close(autoencoder._between(z, 1, 0), z[:, 1:, :4])
    torch.testing.assert_close(autoencoder._between(z, 0, 0.25), z[:, :4, :4] * 0.75 + z[:, :4, 1:] * 0.25)


PICTURE = procedural(7, 256).mean(0).numpy() * 255


@pytest.mark.parametrize("shift", [(0, 0), (0, 24), (-9, 0)])
def test_registration_finds_how_far_a_picture_moved(shift: tuple[int, int]) -> None:
    assert measurement.registered(PICTURE, np.roll(PICTURE, shift, (0, 1))) == (shift, 1.0)


@pytest.mark.parametrize("scale", [0.89, 1.06, 1.25])
def test_registration_finds_how_much_larger_a_picture_is(scale: float) -> None:
    found = measurement.registered(PICTURE, measurement.scaled(PICTURE, scale))
    assert found == ((0.0, 0.0), pytest.approx(scale, abs=0.005))


def measured(word: str, **changes: object) -> measurement.Measured:
    still = {"shift": (0.0, 0.0), "scale": 1.0, "brightness": 1.0, "warmth": 1.0, "contrast": 1.0}
    return measurement.Measured(word=word, photo="p", seed=0, psnr=30.0, **(still | changes))


@pytest.mark.parametrize(
    ("word", "right", "wrong"),
    [
        ("static", {"shift": (1.0, 0.0)}, {"shift": (0.0, 2.0)}),
        ("static", {}, {"scale": 1.1}),
        ("pan left", {"shift": (0.0, 9.0)}, {"shift": (0.0, -24.0)}),
        ("pan left", {"shift": (0.0, 24.0)}, {"shift": (0.0, 7.0)}),
        ("tilt down", {"shift": (-24.0, 0.0)}, {"shift": (24.0, 0.0)}),
        ("zoom in", {"scale": 1.08}, {"scale": 1.07}),
        ("zoom out", {"scale": 0.95}, {"scale": 1.1}),
        ("sunset", {"warmth": 1.3}, {"warmth": 0.7}),
        ("night", {"brightness": 0.7}, {"brightness": 0.9}),
        ("brighten", {"brightness": 1.3}, {"brightness": 1.1}),
        ("fade", {"brightness": 0.1}, {"brightness": 1.3}),
    ],
)
def test_a_clip_follows_its_word_by_sign_and_size(word: str, right: dict, wrong: dict) -> None:
    assert measured(word, **right).follows
    assert not measured(word, **wrong).follows


def test_a_floor_is_failed_by_the_worst_clip() -> None:
    good = [measured("static"), measured("pan left", shift=(0.0, 24.0), moved=28.0)]
    assert [floor["passed"] for floor in evaluate.floors(good).values()] == [True] * 6
    bad = [measured("pan left", shift=(0.0, -24.0), contrast=0.6, moved=26.0), measured("static", shift=(0.0, 5.0))]
    assert [f["passed"] for name, f in evaluate.floors(bad).items() if "frame 0" not in name] == [False] * 4


@pytest.mark.parametrize(
    ("word", "shift"), [("pan left", (0, 24)), ("tilt down", (-24, 0)), ("tilt up slowly", (12, 0))]
)
def test_a_moved_picture_is_compared_where_the_photo_shows_it(word: str, shift: tuple[int, int]) -> None:
    photo = (procedural(7, 96).permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    last = np.roll(photo, shift, (0, 1))  # what comes in at the other side is not looked at
    assert measurement.measure(word, "p", 0, photo, np.stack([photo, last])).moved > 80
    assert measurement.measure(word, "p", 0, photo, np.stack([photo, photo])).moved < 30
    assert measurement.measure("zoom in", "p", 0, photo, np.stack([photo, last])).moved is None


def test_phrases_are_read_as_their_class_and_others_as_drift() -> None:
    """Of the shipped text encoder: every phrase of the grammar alone, and prompts it never saw."""
    folder = Path(DEMO_FOLDER)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", model_max_length=77)
    model = CLIPTextModel.from_pretrained(folder / "text_encoder").float().eval()
    phrases = [(phrase, name) for name, group in PHRASES.items() for phrase in group]
    phrases += [(f, name + SLOWLY) for name in MOTIONS for phrase in PHRASES[name] for f in slow_forms(phrase)]
    read = text.read(model, tokenizer, [phrase for phrase, _ in phrases])
    wrong = [(phrase, found) for (phrase, name), found in zip(phrases, read, strict=True) if found != name]
    assert not wrong
    info = ModelInfo("demo", "demo", "Demo", "cpu", "float32", phrases=source.read_card(folder / "i2v.json").phrases)
    assert all(info.knows(f"A boat, {phrase}.") for phrase, _ in phrases)
    unknown = ["a robot waves", "a cat plays the piano", "an old car in the desert", "qwe zzt"]
    assert text.read(model, tokenizer, unknown) == ["drift"] * 4


def test_the_whole_command_makes_a_folder_that_the_engine_runs(tmp_path: Path) -> None:
    arguments = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "model"), "--quick"]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    stored = {
        part: next(iter(load_file(next((tmp_path / "model" / part).glob("*.safetensors"))).values())).dtype
        for part in ("unet", "vae", "text_encoder")
    }
    assert stored == {"unet": torch.float32, "vae": torch.float16, "text_encoder": torch.float16}
    engine = Engine.load(str(tmp_path / "model"), device="cpu")
    assert engine.info.guidance_range == (1.0, 7.5)
    assert {"camera pans left", "camera zooms in"} <= set(engine.info.vocabulary)
    image = Image.fromarray((procedural(5, 64).permute(1, 2, 0).numpy() * 255).astype(np.uint8))
    request = GenerateRequest(prompt="static camera", width=64, height=64, num_frames=4, steps=2, seed=1)
    frames = engine.generate(request, image).frames
    assert frames.shape == (4, 64, 64, 3)
    assert np.corrcoef(frames[0].ravel(), np.asarray(image).ravel())[0, 1] > 0.7

    again = CliRunner().invoke(app, arguments)  # stages that are done are kept
    assert again.exit_code == 0
    assert "text encoder: kept" in again.output
    assert "autoencoder: kept" in again.output
