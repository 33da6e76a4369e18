"""Finished videos: downloads, settings back into the form, extension, deletion, the history tab, restored files."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from PIL import Image
from playwright.sync_api import Page, expect

from i2v.jobs.job import Job
from i2v.request import GenerateRequest
from tests.conftest import ASSETS
from tests.ui.conftest import Site, fill, open_advanced

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


def test_a_reload_shows_what_was_made_after_a_link_was_opened(site: Site, open_page: OpenPage) -> None:
    """The link stayed in the address and won over the newer video at each reload."""
    linked = make_video(site, "night falls")
    page = open_page(f"{site.url}/?job={linked.id}")
    expect(page.locator("#stage .said")).to_have_text("night falls")
    page.reload()
    expect(page.locator("#stage .said")).to_have_text("night falls")
    fill(page, PHOTO, "the sun rises")
    page.click("#generate")
    expect(page.locator("#stage .said")).to_have_text("the sun rises")
    expect(page.locator("#stage video")).to_be_visible()
    page.reload()
    expect(page.locator("#stage .said")).to_have_text("the sun rises")


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


def test_the_page_continues_no_longer_clip_than_the_routes_do(
    site: Site, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page decoded a clip of any length into memory; the routes' limit of 256 frames was not asked."""
    monkeypatch.setattr("i2v.server.video_extension.MAX_FRAMES", 4)
    job = make_video(site, "night falls")
    page = open_page(f"{site.url}/?job={job.id}")
    page.click("#extend")
    expect(page.locator("#notice .bad")).to_contain_text("over 4 frames")
    assert len(site.queue.list()) == 1


def test_a_card_is_deleted_by_a_second_click_on_the_same_button(site: Site, open_page: OpenPage) -> None:
    kept, gone = make_video(site, "night falls"), make_video(site, "the scene at sunset")
    page = open_page(site.url)
    page.get_by_role("tab", name="History").click()
    button = page.get_by_role("button", name="Delete the video “the scene at sunset”")
    button.click()
    expect(button).to_have_text("Delete for good?")
    expect(button).to_have_accessible_name("Delete for good? Delete the video “the scene at sunset”")
    assert len(site.queue.list()) == 2
    button.click()
    expect(page.locator("#history-notice .good")).to_contain_text("deleted")
    expect(page.locator("#cards .card")).to_have_count(1)
    assert [job.id for job in site.queue.list()] == [kept.id]
    assert gone.result is not None
    assert not (site.settings.outputs / gone.result.file).exists()


def test_the_share_link_is_copied_by_a_click_and_opens_the_video(site: Site, open_page: OpenPage) -> None:
    job = make_video(site, "night falls")
    page = open_page(f"{site.url}/?job={job.id}", permissions=["clipboard-read", "clipboard-write"])
    page.locator("#stage .downloads a", has_text="Link to this video").click()
    expect(page.locator("#stage .downloads")).to_contain_text("Link copied")
    copied = page.evaluate("() => navigator.clipboard.readText()")
    other = open_page(copied)
    expect(other.locator("#stage .said")).to_have_text("night falls")


def test_a_finished_video_stands_beside_its_photo_in_any_browser(site: Site, open_page: OpenPage) -> None:
    job = make_video(site, "night falls")
    page = open_page(f"{site.url}/?job={job.id}")
    photo = page.locator("#stage .origin img")
    expect(photo).to_have_attribute("alt", "Photo")
    wide, high = photo.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert (wide, high) == (256, 192)  # of 640 x 480


def test_script_in_a_prompt_is_text_in_the_history_and_no_part_of_a_file_name(site: Site, open_page: OpenPage) -> None:
    prompt = "<script>document.title='owned'</script>'\"><img src=x onerror=\"document.title='owned'\"> ../../etc"
    job = make_video(site, prompt)
    page = open_page(site.url)
    page.get_by_role("tab", name="History").click()
    expect(page.locator("#cards .card b")).to_have_text(prompt)
    assert page.locator("#cards script, #cards img[src=x]").count() == 0
    page.locator("#search textarea, #search input").fill(prompt)
    expect(page.locator("#cards .card")).to_have_count(1)
    page.locator("#search textarea, #search input").fill("<img src=x onerror=\"document.title='owned'\">!")
    expect(page.locator("#cards .none")).to_contain_text("<img src=x")
    assert page.title() == "i2v"
    assert job.result is not None
    assert re.fullmatch(r"video_\d{8}_\d{6}_[a-z0-9]+\.mp4", job.result.file)
    for kind in ("gif", "webp", "thumbnail"):
        answer = requests.get(f"{site.url}/v1/videos/{job.id}/content?variant={kind}", timeout=60)
        assert "script" not in str(answer.headers)


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
    open_advanced(page)
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
