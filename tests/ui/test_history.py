"""Finished videos: downloads, settings back into the form, extension, deletion, the history tab, restored files."""

from collections.abc import Callable
from pathlib import Path

import requests
from PIL import Image
from playwright.sync_api import Page, expect

from i2v.jobs.job import Job
from i2v.request import GenerateRequest
from tests.conftest import ASSETS
from tests.ui.conftest import Site, fill

OpenPage = Callable[..., Page]
PHOTO = ASSETS / "coffee.jpg"


def make_video(site: Site, prompt: str, **more: object) -> Job:
    values = {"width": 256, "height": 192, "num_frames": 8, "steps": 10, "seed": 7, **more}
    request = GenerateRequest(prompt=prompt, **values)  # type: ignore[arg-type]
    job = site.queue.submit(request, Image.open(PHOTO).convert("RGB"), door="videos")
    return site.queue.wait_sync(job.id, 60)


def test_the_history_shows_finished_videos_and_finds_them_by_their_prompt(site: Site, open_page: OpenPage) -> None:
    night, sunset = make_video(site, "night falls"), make_video(site, "the scene at sunset")
    page = open_page(site.url)
    page.get_by_role("tab", name="History").click()
    cards = page.locator("#cards .card")
    expect(cards).to_have_count(2)
    expect(cards.first).to_have_attribute("data-job", sunset.id)
    page.wait_for_function(
        "() => [...document.querySelectorAll('#cards img')].every(i => i.complete && i.naturalWidth)"
    )
    page.locator("#search textarea, #search input").fill("night")
    expect(cards).to_have_count(1)
    expect(cards.first).to_have_attribute("data-job", night.id)
    page.locator("#search textarea, #search input").fill("no such words")
    expect(page.locator("#cards")).to_contain_text("no such words")


def test_a_card_opens_its_video_whose_settings_go_into_the_form(site: Site, open_page: OpenPage) -> None:
    job = make_video(site, "night falls", seed=4711, num_frames=12, fit="pad", negative_prompt="blur")
    page = open_page(site.url)
    page.get_by_role("tab", name="History").click()
    page.locator("#cards .card").click()
    expect(page.locator("#stage .said")).to_have_text("night falls")
    page.click("#reuse")
    expect(page.locator("#notice .good")).to_be_visible()
    expect(page.locator("#prompt textarea")).to_have_value("night falls")
    expect(page.locator("#photo img")).to_be_visible()
    page.click("#generate")
    expect(page.locator("#stage .facts")).to_contain_text("4711")
    page.wait_for_function(f"() => !document.querySelector('#stage a[href*=\"{job.id}\"]')")
    again = site.queue.wait_sync(site.queue.list()[0].id, 60)
    assert again.id != job.id
    assert again.request == job.request
    assert (site.settings.outputs / again.result.file).read_bytes() != b""  # type: ignore[union-attr]
    assert site.queue.input_image(again.id).tobytes() == site.queue.input_image(job.id).tobytes()


def test_a_link_to_a_video_opens_it_in_another_browser(site: Site, open_page: OpenPage) -> None:
    job = make_video(site, "night falls")
    page = open_page(f"{site.url}/?job={job.id}")
    expect(page.locator("#stage video")).to_be_visible()
    expect(page.locator("#stage .said")).to_have_text("night falls")
    gone = open_page(f"{site.url}/?job=video_{'0' * 24}")
    expect(gone.locator("#stage")).to_contain_text("no longer here")


def test_every_download_link_gives_its_kind_of_file(site: Site, open_page: OpenPage) -> None:
    job = make_video(site, "night falls")
    page = open_page(f"{site.url}/?job={job.id}")
    starts = {"MP4": b"ftyp", "GIF": b"GIF89a", "WebP": b"WEBP"}
    for name, magic in starts.items():
        address = page.locator("#stage .downloads a", has_text=name).evaluate("link => link.href")
        answer = requests.get(address, timeout=60)
        assert answer.status_code == 200
        assert magic in answer.content[:16]


def test_a_video_is_deleted_only_after_a_second_yes(site: Site, open_page: OpenPage) -> None:
    job = make_video(site, "night falls")
    page = open_page(f"{site.url}/?job={job.id}")
    page.click("#delete")
    page.click("#delete-no")
    expect(page.locator("#delete-yes")).to_be_hidden()
    page.click("#delete")
    page.click("#delete-yes")
    expect(page.locator("#notice .good")).to_contain_text("deleted")
    expect(page.locator("#stage .stage-empty")).to_be_visible()
    assert site.queue.list() == []
    assert list(site.settings.outputs.glob("*.mp4")) == []


def test_a_video_is_extended_from_its_last_frame(site: Site, open_page: OpenPage) -> None:
    job = make_video(site, "night falls")
    page = open_page(f"{site.url}/?job={job.id}")
    page.click("#extend")
    page.wait_for_function(
        f"() => document.querySelector('#stage video')?.src.includes('video_') &&"
        f" !document.querySelector('#stage .downloads a[href*=\"{job.id}\"]')"
    )
    longer = site.queue.list()[0]
    assert longer.extends == job.id
    assert longer.status == "completed"


def test_a_dropped_video_brings_its_settings_back(site: Site, open_page: OpenPage, tmp_path: Path) -> None:
    job = make_video(site, "night falls", seed=99, num_frames=10)
    kept = tmp_path / "from_a_friend.mp4"
    assert job.result is not None
    kept.write_bytes((site.settings.outputs / job.result.file).read_bytes())
    page = open_page(site.url)
    page.get_by_role("tab", name="History").click()
    page.set_input_files("#restore input[type=file]", kept)
    expect(page.locator("#notice .good")).to_be_visible()
    expect(page.locator("#prompt textarea")).to_have_value("night falls")
    expect(page.locator("#photo img")).to_be_visible()
    page.locator("#advanced button").first.click()
    expect(page.locator("#seed input")).to_have_value("99")
    expect(page.locator("#frames input[type=number]")).to_have_value("10")


def test_a_dropped_file_without_settings_says_so(site: Site, open_page: OpenPage, tmp_path: Path) -> None:
    foreign = tmp_path / "holiday.mp4"
    foreign.write_bytes(b"not a video at all")
    page = open_page(site.url)
    page.get_by_role("tab", name="History").click()
    page.set_input_files("#restore input[type=file]", foreign)
    expect(page.locator("#history-notice .bad")).not_to_be_empty()


def test_three_jobs_queue_up_from_one_page_and_show_their_places(site: Site, open_page: OpenPage) -> None:
    site.gate.allow(2)
    page = open_page(site.url)
    fill(page, PHOTO, "first words")
    page.click("#generate")
    expect(page.locator("#stage .now")).to_contain_text("Step 2")
    for words in ("second words", "third words"):
        page.locator("#prompt textarea").fill(words)
        page.click("#generate")
        expect(page.locator("#stage .said")).to_have_text(words)
    expect(page.locator("#stage .now")).to_contain_text("1 before you")
    expect(page.locator("#line li")).to_have_count(2)
    page.locator("#line a", has_text="first words").click()
    expect(page.locator("#stage .said")).to_have_text("first words")
    site.gate.open()
    expect(page.locator("#line li")).to_have_count(0)
    expect(page.locator("#stage video")).to_be_visible()
    assert [job.status for job in site.queue.list()] == ["completed"] * 3
