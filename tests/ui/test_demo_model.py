"""The whole way with a model that computes: the shipped demo model, in a browser. One model for all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from i2v.mutex import GpuMutex
from i2v.video import probe, read_frames
from tests.conftest import ASSETS
from tests.ui.conftest import Site, fill, open_advanced
from tests.ui.test_main_flow import PLAYS

OpenPage = Callable[..., Page]
PHOTO = ASSETS / "coffee.jpg"
GROWS = "(step) => Number(document.querySelector('#stage .now')?.dataset.step) > step"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine() -> Any:
    from i2v.engine.engine import Engine

    return Engine.load("demo", device="cpu")


def choose(page: Page, *, size: str, frames: int, steps: int) -> None:
    """A job that two cores finish in seconds."""
    page.locator("#size input").fill(size)
    page.locator("#size input").press("Enter")
    open_advanced(page)
    for name, value in (("frames", frames), ("steps", steps)):
        page.locator(f"#{name} input[type=number]").fill(str(value))
        page.locator(f"#{name} input[type=number]").press("Enter")
    page.locator("#advanced button").first.click()


def test_a_photo_becomes_a_sunset_that_a_phone_makes_again(
    serve: Callable[..., Site], open_page: OpenPage, engine: Any, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    site = serve(attach=False, model="demo")
    page = open_page(site.url)
    with subtests.test("a page opened while the model loads follows it"):
        expect(page.locator("#banner")).to_contain_text("The model is loading")
        site.queue.attach(engine, GpuMutex())
        expect(page.locator("#banner")).to_contain_text("Demo model")
    with subtests.test("an example goes into the prompt"):
        page.locator("#examples").get_by_text("the scene at sunset", exact=True).click()
        expect(page.locator("#prompt textarea")).to_have_value("the scene at sunset")
    fill(page, PHOTO, "the scene at sunset")
    expect(page.locator("#hint")).to_contain_text("GB of memory")
    with subtests.test("the steps grow with a preview until cancel stops the model"):
        choose(page, size="384x384", frames=16, steps=100)  # three steps are taken, of seconds each
        page.click("#generate")
        page.wait_for_function(GROWS, arg=0)
        reached = int(page.locator("#stage .now").get_attribute("data-step") or 0)
        expect(page.locator("#stage img.preview")).to_be_visible()
        page.wait_for_function(GROWS, arg=reached)
        page.click("#cancel")
        expect(page.locator("#stage .stage-cancelled")).to_be_visible()
        job = site.queue.list()[0]
        assert (job.status, job.result) == ("cancelled", None)
        assert site.queue.counts().get("in_progress", 0) == 0
    with subtests.test("the sunset plays"):
        page.locator("#quality label", has_text="Fast").click()
        choose(page, size="128x128", frames=8, steps=10)
        page.click("#generate")
        expect(page.locator("#stage video")).to_be_visible(timeout=240_000)
        page.wait_for_function(PLAYS)
        job = site.queue.list()[0]
        assert job.result is not None
        expect(page.locator("#stage .facts")).to_contain_text(str(job.result.seed))
        expect(page.locator("#stage .notes")).to_contain_text("cropped to its middle")
        path = site.queue.video_path(job)
        facts = probe(path)
        assert (facts.width, facts.height, facts.frames) == (128, 128, 8)
        warmth = read_frames(path).astype(float).mean(axis=(1, 2)) @ np.array([1.0, 0.0, -1.0])
        assert warmth[-1] > warmth[0] + 10
    with subtests.test("a Chinese phone in the dark restores the video and makes it again"):
        kept = tmp_path / "kept.mp4"
        kept.write_bytes(path.read_bytes())
        phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
        page.context.close()
        page = open_page(site.url, locale="zh-CN", color_scheme="dark", **phone)
        expect(page.locator("body.dark")).to_have_count(1)
        expect(page.locator("#banner")).to_contain_text("小型演示模型")
        page.get_by_role("tab", name="历史").click()
        page.set_input_files("#restore input[type=file]", kept)
        expect(page.locator("#notice .good")).to_have_text("已填入该文件的设置。")
        expect(page.locator("#photo img")).to_be_visible()
        page.click("#generate")
        page.wait_for_function(PLAYS)
        expect(page.locator("#stage .facts")).to_contain_text("种子")
        again = site.queue.list()[0]
        assert again.id != job.id
        assert again.request == job.request
        assert (read_frames(site.queue.video_path(again)) == read_frames(path)).all()
        assert page.evaluate("() => document.documentElement.scrollWidth <= 390")


def test_jobs_wait_their_turn_and_a_sweep_runs_the_chosen_draft_in_full(
    serve: Callable[..., Site], open_page: OpenPage, engine: Any, subtests: pytest.Subtests
) -> None:
    site = serve(engine=engine, model="demo")
    page = open_page(site.url)
    fill(page, PHOTO, "night falls")
    choose(page, size="128x128", frames=8, steps=12)
    with subtests.test("three jobs wait their turn and a reload in mid-job loses none"):
        words = ["night falls", "the scene brightens", "fade to black"]
        for prompt in words:
            page.locator("#prompt textarea").fill(prompt)
            page.click("#generate")
            expect(page.locator("#stage .said")).to_have_text(prompt)
        jobs = site.queue.list(limit=3)
        page.reload()
        expect(page.locator("#stage .said")).to_have_text("fade to black")
        page.wait_for_function(PLAYS)
        done = [site.queue.get(job.id) for job in reversed(jobs)]
        assert [job.request.prompt for job in done] == words
        assert [job.status for job in done] == ["completed"] * 3
        ends = [job.completed_at for job in done]
        assert ends == sorted(ends)  # type: ignore[type-var]
        last = read_frames(site.queue.video_path(done[2]))
        assert last[-1].mean() < 0.5 * last[0].mean()  # it did fade
    with subtests.test("a sweep shows four drafts and runs the chosen one in full"):
        fill(page, PHOTO, "night falls")
        page.click("#sweep")
        expect(page.locator("#stage .tile[data-status=completed]")).to_have_count(4)
        drafts = site.queue.list(limit=4)
        assert {job.request.steps for job in drafts} == {10}
        page.locator("#stage .tile button").first.click()
        expect(page.locator("#stage .facts")).to_contain_text("12 steps")  # the drafts play on the sheet already
        page.wait_for_function(PLAYS)
        full = site.queue.list()[0]
        assert full.request.steps == 12
        assert full.request.seed in {job.request.seed for job in drafts}
