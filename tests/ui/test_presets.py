"""Presets on the page: what each approximates in one line, and that the choice reaches the job and comes back."""

from collections.abc import Callable

from PIL import Image
from playwright.sync_api import Page, expect

from i2v.request import GenerateRequest
from i2v.ui.texts import TABLE
from tests.conftest import ASSETS
from tests.ui.conftest import Site, fill

OpenPage = Callable[..., Page]
PHOTO = ASSETS / "coffee.jpg"


def test_each_preset_says_in_one_line_what_the_engine_does_for_it() -> None:
    from i2v.engine.sampler import PRESETS

    for name, sampling in PRESETS.items():
        for text in TABLE[f"preset_{name}"]:
            assert text.startswith(name)
            assert len(text) < 130
            assert ("DPM-Solver++" in text or "16" in text) == (sampling.solver == "dpm++2m")
            if sampling.max_steps is not None:
                assert str(sampling.max_steps) in text
    assert PRESETS["turbo"].guidance_interval == (0.5, 1.0)  # "the second half only"
    assert PRESETS["turbo"].deep_cache[0] == 2  # "every second step"


def test_the_chosen_preset_is_the_one_of_the_job(site: Site, open_page: OpenPage) -> None:
    """The form had no preset: a job of the page always ran as `exact`."""
    page = open_page(site.url)
    fill(page, PHOTO, "night falls")
    page.locator("#advanced button").first.click()
    page.locator("#preset label", has_text="turbo").click()
    page.click("#generate")
    expect(page.locator("#stage .facts")).to_contain_text("preset turbo")
    assert site.queue.list()[0].request.preset == "turbo"


def test_the_operators_preset_is_chosen_at_first(serve: Callable[..., Site], open_page: OpenPage) -> None:
    """The page ignored the setting `default_preset`, which every other door takes."""
    site = serve(default_preset="fast")
    page = open_page(site.url)
    fill(page, PHOTO, "night falls")
    page.click("#generate")
    expect(page.locator("#stage .facts")).to_contain_text("preset fast")


def test_use_these_settings_brings_the_preset_back(site: Site, open_page: OpenPage) -> None:
    request = GenerateRequest(
        prompt="night falls", width=256, height=256, num_frames=8, steps=40, seed=5, preset="turbo"
    )
    job = site.queue.submit(request, Image.open(PHOTO).convert("RGB"), door="videos")
    site.queue.wait_sync(job.id, 60)
    page = open_page(f"{site.url}/?job={job.id}")
    page.click("#reuse")
    expect(page.locator("#notice .good")).to_be_visible()
    page.locator("#advanced button").first.click()
    expect(page.locator("#preset input[value=turbo]")).to_be_checked()
    expect(page.locator("#quality input[value=high]")).to_be_checked()  # 40 steps
    page.locator("#steps input[type=number]").fill("33")
    page.locator("#steps input[type=number]").press("Enter")
    expect(page.locator("#quality input:checked")).to_have_count(0)
