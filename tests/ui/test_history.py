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


SEARCH = "#search textarea, #search input"


def test_a_link_opens_a_video_in_another_browser_where_it_is_the_readers_own(
    site: Site, open_page: OpenPage, subtests: pytest.Subtests, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_video(site, "night falls")
    link = f"{site.url}/?job={job.id}"
    page = open_page(link, permissions=["clipboard-read", "clipboard-write"])
    expect(page.locator("#stage video")).to_be_visible()
    expect(page.locator("#stage .said")).to_have_text("night falls")
    with subtests.test("beside its photo"):
        photo = page.locator("#stage .origin img")
        expect(photo).to_have_attribute("alt", "Photo")
        wide, high = photo.evaluate("image => [image.naturalWidth, image.naturalHeight]")
        assert (wide, high) == (256, 192)  # of 640 x 480
    with subtests.test("every download link gives its kind of file"):
        for name, magic in {"MP4": b"ftyp", "GIF": b"GIF89a", "WebP": b"WEBP"}.items():
            address = page.locator("#stage .downloads a", has_text=name).evaluate("link => link.href")
            answer = requests.get(address, timeout=60)
            assert answer.status_code == 200
            assert magic in answer.content[:16]
    with subtests.test("the share link, copied by a click, is the one that has opened the video here"):
        page.locator("#stage .downloads a", has_text="Link to this video").click()
        expect(page.locator("#stage .downloads")).to_contain_text("Link copied")
        assert page.evaluate("() => navigator.clipboard.readText()") == link
    with subtests.test("a reload shows it again"):
        page.reload()
        expect(page.locator("#stage .said")).to_have_text("night falls")
    with subtests.test("the page continues no longer clip than the routes do"):
        # The page decoded a clip of any length into memory; the routes' limit of 256 frames was not asked.
        with monkeypatch.context() as short:
            short.setattr("i2v.server.video_extension.MAX_FRAMES", 4)
            page.click("#extend")
            expect(page.locator("#notice .bad")).to_contain_text("over 4 frames")
        assert len(site.queue.list()) == 1
    with subtests.test("it is extended from its last frame"):
        page.click("#extend")
        page.wait_for_function(
            f"() => document.querySelector('#stage video')?.src.includes('video_') &&"
            f" !document.querySelector('#stage .downloads a[href*=\"{job.id}\"]')"
        )
        longer = site.queue.list()[0]
        assert longer.extends == job.id
        assert longer.status == "completed"
    with subtests.test("a reload shows what was made after the link was opened"):
        # The link stayed in the address and won over the newer video at each reload.
        fill(page, PHOTO, "the sun rises")
        page.click("#generate")
        expect(page.locator("#stage .said")).to_have_text("the sun rises")
        expect(page.locator("#stage video")).to_be_visible()
        page.reload()
        expect(page.locator("#stage .said")).to_have_text("the sun rises")
        assert page.url == f"{site.url}/"
    with subtests.test("it is deleted only after a second yes"):
        gone = site.queue.list()[0]
        page.click("#delete")
        page.click("#delete-no")
        expect(page.locator("#delete-yes")).to_be_hidden()
        assert site.queue.get(gone.id).status == "completed"
        page.click("#delete")
        page.click("#delete-yes")
        expect(page.locator("#notice .good")).to_contain_text("deleted")
        expect(page.locator("#stage .stage-empty")).to_be_visible()
        kept = site.queue.list()
        assert [job.id for job in kept] == [longer.id, job.id]
        assert {path.name for path in site.settings.outputs.glob("*.mp4")} == {file_of(job) for job in kept}
    with subtests.test("a link to a deleted video says that it is gone"):
        page.goto(f"{site.url}/?job={gone.id}")
        expect(page.locator("#stage")).to_contain_text("no longer here")


def file_of(job: Job) -> str:
    assert job.result is not None
    return job.result.file


SCRIPT = "<script>document.title='owned'</script>'\"><img src=x onerror=\"document.title='owned'\"> ../../etc"


def test_the_history_finds_opens_deletes_and_takes_back_videos(
    site: Site, open_page: OpenPage, subtests: pytest.Subtests, tmp_path: Path
) -> None:
    scripted = make_video(site, SCRIPT, seed=99, num_frames=10)
    night = make_video(site, "night falls", seed=4711, num_frames=12, fit="pad", negative_prompt="blur")
    sunset = make_video(site, "the scene at sunset")
    friends = tmp_path / "from_a_friend.mp4"
    friends.write_bytes((site.settings.outputs / file_of(scripted)).read_bytes())
    page = open_page(site.url)
    page.get_by_role("tab", name="History").click()
    cards, search = page.locator("#cards .card"), page.locator(SEARCH)
    with subtests.test("it shows finished videos and finds them by their prompt"):
        expect(cards).to_have_count(3)
        expect(cards.first).to_have_attribute("data-job", sunset.id)
        page.wait_for_function(
            "() => [...document.querySelectorAll('#cards img')].every(i => i.complete && i.naturalWidth)"
        )
        search.fill("night")
        expect(cards).to_have_count(1)
        expect(cards.first).to_have_attribute("data-job", night.id)
        search.fill("no such words")
        expect(page.locator("#cards")).to_contain_text("no such words")
    with subtests.test("script in a prompt is text, and no part of a file's name"):
        search.fill(SCRIPT)
        expect(cards).to_have_count(1)
        expect(page.locator("#cards .card b")).to_have_text(SCRIPT)
        assert page.locator("#cards script, #cards img[src=x]").count() == 0
        search.fill("<img src=x onerror=\"document.title='owned'\">!")
        expect(page.locator("#cards .none")).to_contain_text("<img src=x")
        assert page.title() == "i2v"
        assert re.fullmatch(r"video_\d{8}_\d{6}_[a-z0-9]+\.mp4", file_of(scripted))
        for kind in ("gif", "webp", "thumbnail"):
            answer = requests.get(f"{site.url}/v1/videos/{scripted.id}/content?variant={kind}", timeout=60)
            assert "script" not in str(answer.headers)
    with subtests.test("a card is deleted by a second click on the same button"):
        search.fill("")
        button = page.get_by_role("button", name="Delete the video “the scene at sunset”")
        button.click()
        expect(button).to_have_text("Delete for good?")
        expect(button).to_have_accessible_name("Delete for good? Delete the video “the scene at sunset”")
        assert len(site.queue.list()) == 3
        button.click()
        expect(page.locator("#history-notice .good")).to_contain_text("deleted")
        expect(cards).to_have_count(2)
        assert [job.id for job in site.queue.list()] == [night.id, scripted.id]
        assert not (site.settings.outputs / file_of(sunset)).exists()
    with subtests.test("a dropped file without settings says so"):
        foreign = tmp_path / "holiday.mp4"
        foreign.write_bytes(b"not a video at all")
        page.set_input_files("#restore input[type=file]", foreign)
        expect(page.locator("#history-notice .bad")).not_to_be_empty()
        page.locator("#restore").get_by_role("button", name="Clear").click()
        expect(page.locator("#restore input[type=file]")).to_have_count(1)
    with subtests.test("a card opens its video, whose settings go into the form"):
        page.locator(f"#cards .card[data-job='{night.id}']").click()
        expect(page.locator("#stage .said")).to_have_text("night falls")
        page.click("#reuse")
        expect(page.locator("#notice .good")).to_be_visible()
        expect(page.locator("#prompt textarea")).to_have_value("night falls")
        expect(page.locator("#photo img")).to_be_visible()
        page.click("#generate")
        expect(page.locator("#stage .facts")).to_contain_text("4711")
        page.wait_for_function(f"() => !document.querySelector('#stage a[href*=\"{night.id}\"]')")
        again = site.queue.wait_sync(site.queue.list()[0].id, 60)
        assert again.id != night.id
        assert again.request == night.request
        assert (site.settings.outputs / file_of(again)).read_bytes() != b""
        assert site.queue.input_image(again.id).tobytes() == site.queue.input_image(night.id).tobytes()
    with subtests.test("a dropped video brings its settings back"):
        page.locator("#photo").get_by_role("button", name="Remove Image").click()
        expect(page.locator("#photo img")).to_have_count(0)
        page.get_by_role("tab", name="History").click()
        page.set_input_files("#restore input[type=file]", friends)
        expect(page.locator("#prompt textarea")).to_have_value(SCRIPT)
        expect(page.locator("#notice .good")).to_be_visible()
        expect(page.locator("#photo img")).to_be_visible()
        open_advanced(page)
        expect(page.locator("#seed input")).to_have_value("99")
        expect(page.locator("#frames input[type=number]")).to_have_value("10")
    with subtests.test("three jobs queue up from one page and show their places"):
        site.gate.allow(2)
        page.locator("#prompt textarea").fill("first words")
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
        made = site.queue.list(limit=3, order="desc")
        assert [job.request.prompt for job in made] == ["third words", "second words", "first words"]
        assert [job.status for job in made] == ["completed"] * 3
