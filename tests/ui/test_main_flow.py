"""The main job in a browser: upload, generate, watch, play, read the summary, and what stops it."""

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect

from i2v.engine.fake import FakeEngine
from i2v.engine.interface import MemoryNeed
from i2v.errors import DoesNotFit, OutOfMemory
from i2v.mutex import GpuMutex
from i2v.notes import Note
from i2v.request import GenerateRequest
from tests.conftest import ASSETS
from tests.ui.conftest import Site, fill, open_advanced

PLAYS = "() => { const v = document.querySelector('#stage video'); return v?.readyState >= 3 && v.currentTime > 0.1 }"
PHOTO = ASSETS / "coffee.jpg"
OpenPage = Callable[..., Page]


def test_a_photo_and_a_prompt_become_a_video_that_plays(site: Site, open_page: OpenPage) -> None:
    page = open_page(site.url)
    fill(page, PHOTO, "the scene at sunset")
    page.click("#generate")
    expect(page.locator("#stage .stage-done video")).to_be_visible()
    page.wait_for_function(PLAYS)
    assert page.evaluate("() => document.querySelector('#stage video').videoWidth") == 256
    job = site.queue.list()[0]
    facts = page.locator("#stage .facts").inner_text()
    assert job.result is not None
    assert str(job.result.seed) in facts
    assert str(site.settings.outputs / job.result.file) in facts
    assert "256 × 256" in facts
    assert " s" in facts


def test_progress_grows_while_the_job_runs_and_a_preview_is_shown(site: Site, open_page: OpenPage) -> None:
    site.gate.allow(5)
    page = open_page(site.url)
    fill(page, PHOTO, "night falls")
    page.click("#generate")
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
    expect(page.locator("#stage video")).to_be_visible()
    expect(page.locator("#cancel")).to_be_hidden()


def test_the_video_stays_in_sight_beside_a_long_form(site: Site, open_page: OpenPage) -> None:
    """The stage scrolled away with the advanced fields open, and browsers pause a video that nobody sees."""
    page = open_page(site.url)
    fill(page, PHOTO, "night falls")
    open_advanced(page)
    page.click("#generate")
    page.wait_for_function(PLAYS)
    page.mouse.wheel(0, 3000)
    expect(page.locator("#stage video")).to_be_in_viewport(ratio=0.5)
    expect(page.locator("#generate")).to_be_in_viewport()


def test_cancel_stops_the_engine_and_says_so(site: Site, open_page: OpenPage) -> None:
    site.gate.allow(3)
    page = open_page(site.url)
    fill(page, PHOTO, "night falls")
    page.click("#generate")
    expect(page.locator("#stage .now")).to_contain_text("Step 3 of 20")
    live = site.queue._running.get(site.queue.list()[0].id)
    assert live is not None
    page.click("#cancel")
    while not live.must_end:  # until the click has reached the queue; the test's own time limit bounds it
        page.wait_for_timeout(10)
    expect(page.locator("#stage .now")).to_contain_text("Step 3 of 20")
    site.gate.allow(4)  # the step that was under way ends; no further one begins
    expect(page.locator("#stage .stage-cancelled")).to_contain_text("Cancelled")
    assert site.queue.list()[0].status == "cancelled"
    assert site.gate.reached <= 5


def test_a_reload_in_the_middle_of_a_job_shows_the_job_again(site: Site, open_page: OpenPage) -> None:
    site.gate.allow(5)
    page = open_page(site.url)
    fill(page, PHOTO, "night falls")
    page.click("#generate")
    expect(page.locator("#stage .now")).to_contain_text("Step 5 of 20")
    page.reload()
    expect(page.locator("#stage .now")).to_contain_text("Step 5 of 20")
    expect(page.locator("#stage .said")).to_have_text("night falls")
    site.gate.open()
    expect(page.locator("#stage video")).to_be_visible()


def test_missing_photo_and_missing_prompt_are_said_in_words(site: Site, open_page: OpenPage) -> None:
    page = open_page(site.url)
    page.click("#generate")
    expect(page.locator("#notice")).to_have_text("Choose a photo first.")
    page.set_input_files("#photo input[type=file]", PHOTO)
    expect(page.locator("#photo img")).to_be_visible()
    expect(page.locator("#notice .notice")).to_have_count(0)  # it is chosen now
    page.click("#generate")
    expect(page.locator("#notice")).to_have_text("Write what should happen in the video.")
    assert site.queue.list() == []


def test_a_job_that_runs_out_of_memory_fails_in_words_and_the_next_one_succeeds(
    serve: Callable[..., Site], open_page: OpenPage
) -> None:
    sentence = "the GPU ran out of memory; 256x256 with 8 frames would fit"
    failures = [OutOfMemory(sentence)]

    def fault(stage: str, step: int) -> None:
        if step == 2 and failures:
            raise failures.pop()

    site = serve(engine=FakeEngine(fault=fault))
    page = open_page(site.url)
    fill(page, PHOTO, "night falls")
    page.click("#generate")
    expect(page.locator("#stage .stage-failed")).to_contain_text(sentence)
    page.click("#generate")
    expect(page.locator("#stage video")).to_be_visible()


def test_a_job_that_cannot_fit_is_refused_with_what_would(serve: Callable[..., Site], open_page: OpenPage) -> None:
    site = serve(engine=FakeEngine(max_pixels=256 * 256 * 12))
    page = open_page(site.url)
    fill(page, PHOTO, "night falls")
    page.click("#generate")
    expect(page.locator("#notice")).to_contain_text("256 × 256 with 12 frames would")
    assert site.queue.list() == []


class Counting(FakeEngine):
    """A fake engine that counts memory: each pixel of a frame is 1 kB, and 100 MB can be had."""

    def memory_need(self, request: GenerateRequest) -> MemoryNeed:
        needed = request.width * request.height * 1000
        if needed > 100_000_000:
            raise DoesNotFit("too large", largest={"width": 256, "height": 256, "num_frames": request.num_frames})
        return MemoryNeed(needed, 100_000_000)


def test_before_a_run_the_page_says_what_it_takes_and_what_would_fit(
    serve: Callable[..., Site], open_page: OpenPage
) -> None:
    """The refusal was in the page and not to be seen: the style hid a hint without an estimate."""
    site = serve(engine=Counting())
    page = open_page(site.url)
    fill(page, PHOTO, "night falls")
    expect(page.locator("#hint")).to_contain_text("0.1 GB of memory; 0.1 GB can be had")
    page.locator("#size input").fill("512x512")
    page.locator("#size input").press("Enter")
    expect(page.locator("#hint .bad")).to_contain_text("256 × 256 with 16 frames would")
    expect(page.locator("#hint .bad")).to_be_in_viewport()


def test_the_estimate_is_there_as_soon_as_the_first_job_has_ended(site: Site, open_page: OpenPage) -> None:
    """The hint was written when a field changed: after the first job it still said that nothing was known."""
    page = open_page(site.url)
    fill(page, PHOTO, "night falls")
    expect(page.locator("#hint")).to_contain_text("The first run shows how fast")
    page.click("#generate")
    expect(page.locator("#stage video")).to_be_visible()
    expect(page.locator("#hint")).to_contain_text("on this machine")


def test_what_keeps_a_job_from_starting_is_said_where_the_button_is(site: Site, open_page: OpenPage) -> None:
    """The sentence stood under a long form, out of sight of whoever pressed the button."""
    page = open_page(site.url, viewport={"width": 1366, "height": 768})
    open_advanced(page)
    page.evaluate("() => window.scrollTo(0, 0)")
    page.click("#generate")
    expect(page.locator("#notice .bad")).to_be_in_viewport(ratio=1)


def test_the_banner_says_how_far_the_model_has_loaded_and_then_what_it_is(
    serve: Callable[..., Site], open_page: OpenPage
) -> None:
    site = serve(attach=False)
    site.queue.report_loading(Note("loading", {"part": Note("unet")}), 0.42)
    page = open_page(site.url)
    expect(page.locator("#banner")).to_contain_text("loading unet 42 %")
    site.queue.attach(site.engine, GpuMutex())
    expect(page.locator("#banner")).to_contain_text(site.engine.info.title)
    expect(page.locator("#banner")).to_contain_text("on cpu")
    expect(page.locator("#banner")).to_contain_text(site.engine.info.note)


def test_a_model_that_cannot_load_says_why(serve: Callable[..., Site], open_page: OpenPage) -> None:
    site = serve(attach=False)
    site.queue.fail_loading("no weights were found; put them into the cache folder")
    page = open_page(site.url)
    expect(page.locator("#banner .bad")).to_contain_text("no weights were found")
    fill(page, PHOTO, "night falls")
    page.click("#generate")
    expect(page.locator("#notice .bad")).not_to_be_empty()


def test_script_in_a_prompt_is_shown_as_text(site: Site, open_page: OpenPage) -> None:
    prompt = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script> __i18n__{\"key\""
    page = open_page(site.url)
    fill(page, PHOTO, prompt)
    page.click("#generate")
    expect(page.locator("#stage video")).to_be_visible()
    expect(page.locator("#stage .said")).to_have_text(prompt)
    assert page.title() == "i2v"


def test_a_file_that_is_no_photo_is_refused_in_words(site: Site, open_page: OpenPage, tmp_path: Path) -> None:
    drawing = tmp_path / "drawing.svg"
    drawing.write_text("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><script>alert(1)</script></svg>")
    page = open_page(site.url)
    page.set_input_files("#photo input[type=file]", drawing)
    expect(page.locator("#photo-notice .bad")).not_to_be_empty()
    assert page.title() == "i2v"
