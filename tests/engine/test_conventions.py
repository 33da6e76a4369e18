"""Where the model's authors and the upstream pipeline differ, and what a model folder may say about itself."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from i2v.engine import Engine
from i2v.engine.conditioning import PROMPT, encode_text, upstream_crop
from i2v.engine.conventions import AUTHORS, UPSTREAM, for_model, for_parity, named
from i2v.images import fit_image
from i2v.loading import load_engine
from i2v.request import GenerateRequest
from i2v.settings import Settings
from tests.engine.tiny_folder import draw_photo, write_tiny_folder

pytestmark = pytest.mark.slow

REQUEST = GenerateRequest(prompt="the sun", width=64, height=64, num_frames=2, steps=2, guidance_scale=5.0, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def upstream(folder: Path) -> Engine:
    return Engine.load(folder, device="cpu", conventions="upstream")


def latents(engine: Engine, **change: object) -> torch.Tensor:
    return engine.generate(REQUEST.model_copy(update=change), draw_photo()).latents


def test_the_authors_set_is_the_default(folder: Path) -> None:
    assert Engine.load(folder, device="cpu").conventions == AUTHORS


def test_a_folder_that_says_nothing_of_its_training_has_the_photo_enter_once(folder: Path) -> None:
    """Fine-tuned with diffusers it learned that; a factor of 2 under `authors` broke its first frame."""
    assert not (folder / "i2v.json").exists()
    for conventions in ("authors", "upstream"):
        assert Engine.load(folder, device="cpu", conventions=conventions).conventions.image_concat_scale == 1.0


def test_the_setting_overrides_the_folders_card_and_the_conventions(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "tiny")
    (folder / "i2v.json").write_text('{"conventions": {"image_concat_scale": 2.0}}')

    def loaded(**settings: Any) -> float:
        engine = load_engine(Settings(model=str(folder), device="cpu", **settings), lambda what, fraction: None)
        return engine.conventions.image_concat_scale

    assert loaded() == 2.0
    assert loaded(image_concat_scale=1.0) == 1.0
    assert loaded(image_concat_scale=1.5, conventions="upstream") == 1.5


def test_an_unknown_name_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(ValueError, match="'vgen'; it must be upstream or authors"):
        named("vgen")
    with pytest.raises(ValueError, match="'vgen'"):
        Engine.load(folder, device="cpu", conventions="vgen")


def test_no_negative_prompt_means_the_conventional_one(upstream: Engine) -> None:
    assert torch.equal(latents(upstream), latents(upstream, negative_prompt=""))
    authors = replace(upstream, conventions=replace(UPSTREAM, negative_prompt=AUTHORS.negative_prompt))
    assert torch.equal(latents(authors), latents(upstream, negative_prompt=AUTHORS.negative_prompt))
    assert torch.equal(latents(authors, negative_prompt=""), latents(upstream))


def test_image_concat_scale_equals_a_doubled_conv_in(upstream: Engine, tmp_path: Path) -> None:
    scaled = replace(upstream, conventions=replace(UPSTREAM, image_concat_scale=2.0))
    doubled = Engine.load(write_tiny_folder(tmp_path / "tiny"), device="cpu", conventions="upstream")
    with torch.no_grad():
        doubled.parts.unet.conv_in.weight[:, 4:] *= 2
    assert torch.allclose(latents(scaled), latents(doubled), atol=1e-4)
    assert not torch.allclose(latents(scaled), latents(upstream), atol=1e-2)


def test_padding_changes_what_follows_the_end_of_the_text_and_nothing_before(upstream: Engine) -> None:
    cpu = torch.device("cpu")
    own, _ = encode_text(upstream.parts, "the sun", UPSTREAM, cpu, PROMPT)
    zeros, _ = encode_text(upstream.parts, "the sun", AUTHORS, cpu, PROMPT)
    end = len(upstream.parts.tokenizer("the sun").input_ids)
    assert torch.allclose(own[:, :end], zeros[:, :end], atol=1e-5)
    assert not torch.allclose(own[:, end:], zeros[:, end:], atol=1e-2)


def test_a_latent_scale_of_ones_own_is_used_both_ways(upstream: Engine) -> None:
    other = replace(upstream, conventions=replace(UPSTREAM, latent_scale=0.5))
    assert not torch.allclose(latents(other), latents(upstream), atol=1e-2)
    same = replace(upstream, conventions=replace(UPSTREAM, latent_scale=0.18125))
    assert torch.equal(latents(same), latents(upstream))


def test_a_folder_says_how_it_was_trained(folder: Path) -> None:
    card = {"image_concat_scale": 1.0, "negative_prompt": "", "pad_token_id": None}
    assert for_model(AUTHORS, card) == replace(UPSTREAM, name="authors")
    with pytest.raises(ValueError, match="'crop'"):
        for_model(AUTHORS, {"crop": "upstream"})


def test_parity_brings_back_two_defects_and_no_more() -> None:
    assert for_parity(UPSTREAM) == replace(UPSTREAM, crop="upstream", vae_sample="upstream")


def test_upstreams_crop_leaves_a_black_row_and_ours_does_not() -> None:
    """diffusers divides by floor: 77 rows scaled for 80 become 79, and one row stays black."""
    bright = draw_photo().point(lambda value: max(value, 60))
    width, height = 64, 80
    theirs = np.asarray(upstream_crop(bright, width, height))
    ours = np.asarray(fit_image(bright, width, height)[0])
    assert theirs.shape == ours.shape == (height, width, 3)
    assert min(theirs[0].max(), theirs[-1].max()) == 0
    assert min(ours[0].min(), ours[-1].min()) > 20


def test_a_given_noise_is_a_parity_run_for_upstream_alone(upstream: Engine) -> None:
    noise = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    found = {}
    for engine in (upstream, replace(upstream, conventions=replace(UPSTREAM, name="authors"))):
        for seed in (1, 2):
            torch.manual_seed(seed)
            name = engine.conventions.name
            found[name, seed] = engine.generate(REQUEST, draw_photo(), noise=noise).latents
    assert not torch.equal(found["upstream", 1], found["upstream", 2])  # the VAE's sample follows the global state
    assert torch.equal(found["authors", 1], found["authors", 2])
