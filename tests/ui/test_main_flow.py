"""The main job in a browser: upload, generate, watch, play, read the summary, and what stops it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from i2v.engine.fake import FakeEngine
from i2v.engine.interface import MemoryNeed
from i2v.errors import DoesNotFit
from i2v.request import GenerateRequest
from tests.conftest import ASSETS
from tests.ui.conftest import Site, fill, open_advanced

PLAYS = "() => { const v = document.querySelector('#stage video'); return v?.readyState >= 3 && v.currentTime > 0.1 }"
PHOTO = ASSETS / "coffee.jpg"
OpenPage = Callable[..., Page]


def test_a_photo_and_a_prompt_become_a_video_that_plays(
    site: Site, open_page: OpenPage, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    page = open_page(site.url, viewport={"width": 1366, "height": 768})
    open_advanced(page)
    with subtests.test("a missing photo is said in words, where the button is"):
        # The sentence stood under a long form, out of sight of whoever pressed the button.
        page.evaluate("() => window.scrollTo(0, 0)")
        page.click("#generate")
        expect(page.locator("#notice .bad")).to_be_in_viewport(ratio=1)
        expect(page.locator("#notice")).to_have_text("Choose a photo first.")
    with subtests.test("a file that is no photo is refused in words"):
        drawing = tmp_path / "drawing.svg"
        drawing.write_text(
            "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><script>alert(1)</script></svg>"
        )
        page.set_input_files("#photo input[type=file]", drawing)
        expect(page.locator("#photo-notice .bad")).not_to_be_empty()
    with subtests.test("a missing prompt is said in words"):
        page.set_input_files("#photo input[type=file]", PHOTO)
        expect(page.locator("#photo img")).to_be_visible()
        expect(page.locator("#notice .notice")).to_have_count(0)  # it is chosen now
        page.click("#generate")
        expect(page.locator("#notice")).to_have_text("Write what should happen in the video.")
        assert site.queue.list() == []
    prompt = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script> __i18n__{\"key\""
    page.locator("#prompt textarea").fill(prompt)
    expect(page.locator("#hint")).to_contain_text("The first run shows how fast")
    site.gate.allow(5)
    page.click("#generate")
    with subtests.test("progress grows while the job runs, and a preview is shown"):
        expect(page.locator("#stage .now")).to_contain_text("Step 5 of 20")
        bar = page.locator("#stage .bar")
        early = int(bar.get_attribute("aria-valuenow") or 0)
        assert 0 < early <= 25  # 5 of 20 steps, and decoding has its part of the bar too
        expect(page.locator("#stage img.preview")).to_be_visible()
        site.gate.allow(12)
        expect(page.locator("#stage .now")).to_contain_text("Step 12 of 20")
        assert early < int(bar.get_attribute("aria-valuenow") or 0) <= 60
        expect(page.locator("#stage .now")).to_contain_text("left")
    site.gate.open()
    with subtests.test("the video plays, with its facts below it"):
        expect(page.locator("#stage .stage-done video")).to_be_visible()
        expect(page.locator("#cancel")).to_be_hidden()
        page.wait_for_function(PLAYS)
        assert page.evaluate("() => document.querySelector('#stage video').videoWidth") == 256
        job = site.queue.list()[0]
        facts = page.locator("#stage .facts").inner_text()
        assert job.result is not None
        assert str(job.result.seed) in facts
        assert str(site.settings.outputs / job.result.file) in facts
        assert "256 × 256" in facts
        assert " s" in facts
    with subtests.test("the estimate is there as soon as the first job has ended"):
        # The hint was written when a field changed: after the first job it still said that nothing was known.
        expect(page.locator("#hint")).to_contain_text("on this machine")
    with subtests.test("script in a prompt is shown as text"):
        expect(page.locator("#stage .said")).to_have_text(prompt)
        assert page.title() == "i2v"
    with subtests.test("the video stays in sight beside a long form"):
        # The stage scrolled away with the advanced fields open, and browsers pause a video that nobody sees.
        page.mouse.wheel(0, 3000)
        page.wait_for_function("() => window.scrollY > 0")
        expect(page.locator("#stage video")).to_be_in_viewport(ratio=0.5)
        expect(page.locator("#generate")).to_be_in_viewport()


def test_a_job_is_shown_again_after_a_reload_and_cancel_stops_it(
    site: Site, open_page: OpenPage, subtests: pytest.Subtests
) -> None:
    site.gate.allow(3)
    page = open_page(site.url)
    fill(page, PHOTO, "night falls")
    page.click("#generate")
    expect(page.locator("#stage .now")).to_contain_text("Step 3 of 20")
    with subtests.test("a reload in the middle of the job shows it again"):
        page.reload()
        expect(page.locator("#stage .now")).to_contain_text("Step 3 of 20")
        expect(page.locator("#stage .said")).to_have_text("night falls")
        site.gate.allow(6)
        expect(page.locator("#stage .now")).to_contain_text("Step 6 of 20")
    with subtests.test("cancel stops the engine and says so"):
        live = site.queue._running.get(site.queue.list()[0].id)
        assert live is not None
        page.click("#cancel")
        while not live.must_end:  # until the click has reached the queue; the test's own time limit bounds it
            page.wait_for_timeout(10)
        expect(page.locator("#stage .now")).to_contain_text("Step 6 of 20")
        site.gate.allow(7)  # the step that was under way ends; no further one begins
        expect(page.locator("#stage .stage-cancelled")).to_contain_text("Cancelled")
        assert site.queue.list()[0].status == "cancelled"
        assert site.gate.reached <= 8
    with subtests.test("the next job of the page shows its video"):
        site.gate.open()
        fill(page, PHOTO, "night falls")
        page.click("#generate")
        expect(page.locator("#stage video")).to_be_visible()


class Counting(FakeEngine):
    """A fake engine that counts memory: each pixel of a frame is 1 kB, and 100 MB can be had."""

    def memory_need(self, request: GenerateRequest) -> MemoryNeed:
        needed = request.width * request.height * 1000
        if needed > 100_000_000:
            raise DoesNotFit("too large", largest={"width": 256, "height": 256, "num_frames": request.num_frames})
        return MemoryNeed(needed, 100_000_000)


def test_before_a_run_the_page_says_what_it_takes_and_what_would_fit(
    serve: Callable[..., Site], open_page: OpenPage, subtests: pytest.Subtests
) -> None:
    site = serve(engine=Counting(max_pixels=256 * 256 * 12))
    page = open_page(site.url)
    fill(page, PHOTO, "night falls")
    with subtests.test("the memory that a job takes"):
        expect(page.locator("#hint")).to_contain_text("0.1 GB of memory; 0.1 GB can be had")
    with subtests.test("a job that cannot fit is refused with what would"):
        page.click("#generate")
        expect(page.locator("#notice")).to_contain_text("256 × 256 with 12 frames would")
        assert site.queue.list() == []
    with subtests.test("a size that cannot fit is said at once, with what would"):
        # The refusal was in the page and not to be seen: the style hid a hint without an estimate.
        page.locator("#size input").fill("512x512")
        page.locator("#size input").press("Enter")
        expect(page.locator("#hint .bad")).to_contain_text("256 × 256 with 16 frames would")
        expect(page.locator("#hint .bad")).to_be_in_viewport()


def test_a_model_that_cannot_load_says_why(serve: Callable[..., Site], open_page: OpenPage) -> None:
    site = serve(attach=False)
    site.queue.fail_loading("no weights were found; put them into the cache folder")
    page = open_page(site.url)
    expect(page.locator("#banner .bad")).to_contain_text("no weights were found")
    fill(page, PHOTO, "night falls")
    page.click("#generate")
    expect(page.locator("#notice .bad")).not_to_be_empty()
