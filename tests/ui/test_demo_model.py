"""The whole way with a model that computes: the shipped demo model, in a browser. One model and one server for all."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from i2v.mutex import GpuMutex
from i2v.video import probe, read_frames
from tests.conftest import ASSETS
from tests.ui.conftest import Site, fill, open_advanced, servers
from tests.ui.test_main_flow import PLAYS

OpenPage = Callable[..., Page]
PHOTO = ASSETS / "coffee.jpg"
GROWS = "(step) => Number(document.querySelector('#stage .now')?.dataset.step) > step"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine() -> Any:
    from i2v.engine.engine import Engine

    return Engine.load("demo", device="cpu")


@pytest.fixture(scope="module")
def demo(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with servers(tmp_path_factory.mktemp("demo")) as start:
        yield start(engine=engine, model="demo")


def choose(page: Page, *, size: str, frames: int, steps: int) -> None:
    """A job that two cores finish in seconds."""
    page.locator("#size input").fill(size)
    page.locator("#size input").press("Enter")
    open_advanced(page)
    for name, value in (("frames", frames), ("steps", steps)):
        page.locator(f"#{name} input[type=number]").fill(str(value))
        page.locator(f"#{name} input[type=number]").press("Enter")
    page.locator("#advanced button").first.click()


def test_a_photo_becomes_a_sunset_that_plays_on_a_page_opened_while_the_model_loads(
    serve: Callable[..., Site], open_page: OpenPage, engine: Any
) -> None:
    site = serve(attach=False, model="demo")
    page = open_page(site.url)
    expect(page.locator("#banner")).to_contain_text("The model is loading")
    site.queue.attach(engine, GpuMutex())
    expect(page.locator("#banner")).to_contain_text("Demo model")
    page.locator("#examples").get_by_text("the scene at sunset", exact=True).click()
    expect(page.locator("#prompt textarea")).to_have_value("the scene at sunset")
    fill(page, PHOTO, "the scene at sunset")
    expect(page.locator("#hint")).to_contain_text("GB of memory")
    page.locator("#quality label", has_text="Fast").click()
    choose(page, size="256x256", frames=8, steps=10)
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


def test_the_steps_grow_with_a_preview_until_cancel_stops_the_model(demo: Site, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    fill(page, PHOTO, "night falls")
    choose(page, size="256x256", frames=8, steps=100)
    page.click("#generate")
    page.wait_for_function(GROWS, arg=0)
    reached = int(page.locator("#stage .now").get_attribute("data-step") or 0)
    expect(page.locator("#stage img.preview")).to_be_visible()
    page.wait_for_function(GROWS, arg=reached)
    page.click("#cancel")
    expect(page.locator("#stage .stage-cancelled")).to_be_visible()
    job = demo.queue.list()[0]
    assert (job.status, job.result) == ("cancelled", None)
    assert demo.queue.counts().get("in_progress", 0) == 0


def test_three_jobs_wait_their_turn_and_a_reload_in_mid_job_loses_none(demo: Site, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    fill(page, PHOTO, "night falls")
    choose(page, size="128x128", frames=8, steps=30)
    words = ["night falls", "the scene brightens", "fade to black"]
    for prompt in words:
        page.locator("#prompt textarea").fill(prompt)
        page.click("#generate")
        expect(page.locator("#stage .said")).to_have_text(prompt)
    jobs = demo.queue.list(limit=3)
    page.reload()
    expect(page.locator("#stage .said")).to_have_text("fade to black")
    page.wait_for_function(PLAYS)
    done = [demo.queue.get(job.id) for job in reversed(jobs)]
    assert [job.request.prompt for job in done] == words
    assert [job.status for job in done] == ["completed"] * 3
    ends = [job.completed_at for job in done]
    assert ends == sorted(ends)  # type: ignore[type-var]
    last = read_frames(demo.queue.video_path(done[2]))
    assert last[-1].mean() < 0.5 * last[0].mean()  # it did fade


def test_a_chinese_phone_in_the_dark_restores_a_video_and_makes_it_again(
    demo: Site, open_page: OpenPage, tmp_path: Path
) -> None:
    page = open_page(demo.url)
    fill(page, PHOTO, "the scene at sunset")
    choose(page, size="128x128", frames=8, steps=10)
    page.click("#generate")
    page.wait_for_function(PLAYS)
    job = demo.queue.list()[0]
    kept = tmp_path / "kept.mp4"
    kept.write_bytes(demo.queue.video_path(job).read_bytes())

    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    page = open_page(demo.url, locale="zh-CN", color_scheme="dark", **phone)
    expect(page.locator("body.dark")).to_have_count(1)
    expect(page.locator("#banner")).to_contain_text("小型演示模型")
    page.get_by_role("tab", name="历史").click()
    page.set_input_files("#restore input[type=file]", kept)
    expect(page.locator("#notice .good")).to_have_text("已填入该文件的设置。")
    expect(page.locator("#photo img")).to_be_visible()
    page.click("#generate")
    page.wait_for_function(PLAYS)
    expect(page.locator("#stage .facts")).to_contain_text("种子")
    again = demo.queue.list()[0]
    assert again.id != job.id
    assert again.request == job.request
    assert (read_frames(demo.queue.video_path(again)) == read_frames(demo.queue.video_path(job))).all()
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")


def test_a_sweep_shows_four_drafts_and_runs_the_chosen_one_in_full(demo: Site, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    fill(page, PHOTO, "night falls")
    choose(page, size="128x128", frames=8, steps=20)
    page.click("#sweep")
    expect(page.locator("#stage .tile[data-status=completed]")).to_have_count(4)
    drafts = demo.queue.list(limit=4)
    assert {job.request.steps for job in drafts} == {10}
    page.locator("#stage .tile button").first.click()
    expect(page.locator("#stage .facts")).to_contain_text("20 steps")  # the drafts play on the sheet already
    page.wait_for_function(PLAYS)
    full = demo.queue.list()[0]
    assert full.request.steps == 20
    assert full.request.seed in {job.request.seed for job in drafts}
