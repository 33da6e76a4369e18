"""Presets on the page: what each approximates in one line, and that the choice reaches the job and comes back."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from i2v.settings import Settings
from i2v.ui.form import PRESETS
from i2v.ui.shortcuts import sentences
from i2v.ui.texts import translations
from tests.conftest import ASSETS
from tests.ui.conftest import Site, fill, open_advanced

OpenPage = Callable[..., Page]
PHOTO = ASSETS / "coffee.jpg"


def test_each_preset_says_in_one_line_what_the_engine_does_for_it() -> None:
    """`fast` named the solver that it had before."""
    written = sentences(Settings())
    assert list(written) == [f"preset_{name}" for name in PRESETS]
    for name in PRESETS:
        for text in written[f"preset_{name}"]:
            assert text.startswith(name)
            assert len(text) < 170
    assert written["preset_fast"][0] == "fast — UniPC in at most 25 steps stands in for DDIM"
    assert written["preset_turbo"][1] == (
        "turbo：以至多 16 步的 DPM-Solver++(2M) 代替 DDIM；仅在进程的 50% 至 100% 做引导；"
        "每 2 步完整计算一步，其余复用深层特征"
    )


def test_the_operators_presets_are_said_in_the_words_of_their_values(tmp_path: Path) -> None:
    """The page's words were those of the package's presets, whatever the server used."""
    file = tmp_path / "presets.yaml"
    file.write_text("fast: {solver: dpm++2m, max_steps: 12}\nturbo: {guidance_interval: [0.2, 0.8]}\n")
    written = sentences(Settings(presets=file))
    for text in written["preset_fast"]:
        assert "DPM-Solver++(2M)" in text
        assert "12" in text
        assert "UniPC" not in text
    for text in written["preset_turbo"]:
        assert "20" in text
        assert "80" in text
        assert "16" in text  # kept from the package's own
    table = translations(written).translations_dict
    assert table["en"]["preset_fast"] == written["preset_fast"][0]
    assert table["zh"]["preset_fast"] == written["preset_fast"][1]


def test_presets_that_cannot_be_read_leave_the_page_its_words(tmp_path: Path) -> None:
    file = tmp_path / "presets.yaml"
    file.write_text("fast: {solver: euler}\n")
    assert sentences(Settings(presets=file)) == sentences(Settings())


def test_a_preset_goes_from_the_form_to_the_job_and_back(
    serve: Callable[..., Site], open_page: OpenPage, subtests: pytest.Subtests
) -> None:
    site = serve(default_preset="fast")
    page = open_page(site.url)
    fill(page, PHOTO, "night falls")
    with subtests.test("the operator's preset is chosen at first"):
        # The page ignored the setting `default_preset`, which every other door takes.
        page.click("#generate")
        expect(page.locator("#stage .facts")).to_contain_text("preset fast")
    with subtests.test("the chosen preset is the one of the job"):
        # The form had no preset: a job of the page always ran as `exact`.
        open_advanced(page)
        page.locator("#preset label", has_text="turbo").click()
        page.locator("#quality label", has_text="High quality").click()
        expect(page.locator("#steps input[type=number]")).to_have_value("40")
        page.click("#generate")
        expect(page.locator("#stage .facts")).to_contain_text("preset turbo")
        request = site.queue.list()[0].request
        assert (request.preset, request.steps) == ("turbo", 40)
    with subtests.test("use these settings brings the preset back, and the quality of these steps"):
        page.locator("#preset label", has_text="exact").click()
        page.locator("#quality label", has_text="Fast").click()
        expect(page.locator("#steps input[type=number]")).to_have_value("10")
        page.click("#reuse")
        expect(page.locator("#notice .good")).to_be_visible()
        expect(page.locator("#preset input[value=turbo]")).to_be_checked()
        expect(page.locator("#quality input[value=high]")).to_be_checked()  # 40 steps
    with subtests.test("steps that no quality has choose none"):
        page.locator("#steps input[type=number]").fill("33")
        page.locator("#steps input[type=number]").press("Enter")
        expect(page.locator("#quality input:checked")).to_have_count(0)
