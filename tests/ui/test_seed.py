"""The seed on the page: drawn anew, locked, taken from the video that is shown."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from i2v.errors import InvalidRequest
from i2v.ui.form import seed_of
from i2v.ui.texts import Say
from tests.conftest import ASSETS
from tests.ui.conftest import Site, fill, open_advanced

OpenPage = Callable[..., Page]
PHOTO = ASSETS / "coffee.jpg"


def generate(page: Page, site: Site) -> int:
    """Press the button and wait until the page shows the new job's video; its seed."""
    before = {job.id for job in site.queue.list()}
    page.click("#generate")
    while not (new := [job for job in site.queue.list() if job.id not in before]):
        page.wait_for_timeout(10)  # until the click has reached the queue; the test's own time limit bounds it
    expect(page.locator(f"#stage .downloads a[href*='{new[0].id}']").first).to_be_visible()
    seed = new[0].request.seed
    assert seed is not None
    return seed


def test_a_seed_is_drawn_locked_repeated_and_refused_as_the_form_says(
    site: Site, open_page: OpenPage, subtests: pytest.Subtests
) -> None:
    page = open_page(site.url)
    fill(page, PHOTO, "night falls")
    with subtests.test("an empty seed draws a new one for each video"):
        # The framework's number field turned "no seed" into 0, so every video of the page had the seed 0.
        seeds = [generate(page, site) for _ in range(3)]
        assert len(set(seeds)) == 3
        open_advanced(page)
        expect(page.locator("#seed input")).to_have_value("")
        expect(page.locator("#seed-lock input")).not_to_be_checked()
    with subtests.test("a locked seed stays and an unlocked one is drawn again"):
        page.locator("#seed-lock input").check()
        expect(page.locator("#seed input")).to_have_value(str(seeds[-1]))
        assert [generate(page, site) for _ in range(2)] == [seeds[-1]] * 2
        page.locator("#seed-lock input").uncheck()
        expect(page.locator("#seed input")).to_have_value("")
        assert generate(page, site) != seeds[-1]
    with subtests.test("the dice draws a seed and locks it"):
        page.click("#seed-new")
        expect(page.locator("#seed input")).not_to_have_value("")
        expect(page.locator("#seed-lock input")).to_be_checked()
        drawn = page.locator("#seed input").input_value()
        assert generate(page, site) == int(drawn)
    with subtests.test("same again repeats the seed of the video that is shown"):
        page.locator("#seed-lock input").uncheck()
        expect(page.locator("#seed input")).to_have_value("")
        shown = generate(page, site)
        assert shown != int(drawn)
        page.click("#seed-same")
        expect(page.locator("#seed input")).to_have_value(str(shown))
        assert generate(page, site) == shown
    with subtests.test("a seed that is no number is said in words"):
        before = len(site.queue.list())
        page.locator("#seed input").fill("lucky")
        page.click("#generate")
        expect(page.locator("#notice .bad")).to_contain_text("whole number")
        assert len(site.queue.list()) == before


@pytest.mark.parametrize(("text", "seed"), [("", None), ("  ", None), (None, None), ("0", 0), (" 42 ", 42)])
def test_a_seed_is_read_from_its_field(text: str | None, seed: int | None) -> None:
    assert seed_of(Say("en"), text) == seed


@pytest.mark.parametrize("text", ["-1", "1.5", "1e3", "٣", "0x10", "seven"])
def test_what_is_no_whole_number_is_no_seed(text: str) -> None:
    for language, words in (("en", "whole number"), ("zh", "种子：请填写整数")):
        with pytest.raises(InvalidRequest, match=words):
            seed_of(Say(language), text)
