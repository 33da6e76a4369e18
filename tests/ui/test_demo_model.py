"""The whole way with a model that computes: the shipped demo model, in a browser."""

from collections.abc import Callable

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from i2v.video import probe, read_frames
from tests.conftest import ASSETS
from tests.ui.conftest import Site, fill
from tests.ui.test_main_flow import PLAYS


@pytest.mark.slow
def test_the_demo_model_makes_a_photo_a_sunset_that_plays(
    serve: Callable[..., Site], open_page: Callable[..., Page]
) -> None:
    from i2v.engine.engine import Engine

    site = serve(attach=False)
    page = open_page(site.url)
    expect(page.locator("#banner")).to_contain_text("The model is loading")
    site.queue.attach(Engine.load("demo", device="cpu"))
    expect(page.locator("#banner")).to_contain_text("Demo model")
    page.locator("#examples").get_by_text("the scene at sunset", exact=True).click()
    expect(page.locator("#prompt textarea")).to_have_value("the scene at sunset")
    fill(page, ASSETS / "coffee.jpg", "the scene at sunset")
    page.locator("#quality label", has_text="Fast").click()
    page.locator("#advanced button").first.click()
    page.locator("#frames input[type=number]").fill("8")
    page.locator("#frames input[type=number]").press("Enter")
    expect(page.locator("#steps input[type=number]")).to_have_value("10")
    page.click("#generate")
    expect(page.locator("#stage img.preview")).to_be_visible(timeout=120_000)
    expect(page.locator("#stage video")).to_be_visible(timeout=240_000)
    page.wait_for_function(PLAYS)
    job = site.queue.list()[0]
    assert job.result is not None
    expect(page.locator("#stage .facts")).to_contain_text(str(job.result.seed))
    expect(page.locator("#stage .notes")).to_contain_text("cropped to its middle")
    path = site.queue.video_path(job)
    facts = probe(path)
    assert (facts.width, facts.height, facts.frames) == (256, 256, 8)
    warmth = read_frames(path).astype(float).mean(axis=(1, 2)) @ np.array([1.0, 0.0, -1.0])
    assert warmth[-1] > warmth[0] + 10
