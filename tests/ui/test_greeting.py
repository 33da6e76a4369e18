"""A model's arrival fills the form in once; what somebody has typed since stays, whatever the server does."""

import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from playwright.sync_api import Page, Request, Route, expect

from i2v.engine.fake import FakeEngine
from i2v.engine.interface import ModelInfo
from i2v.mutex import GpuMutex
from i2v.notes import Note
from tests.ui.conftest import Site, open_advanced

OpenPage = Callable[..., Page]
PROMPT = "a boat at night"


def type_settings(page: Page) -> None:
    """A prompt, a size and a number of frames that no model's greeting would write."""
    page.locator("#prompt textarea").fill(PROMPT)
    page.locator("#size input").fill("320x192")
    page.locator("#size input").press("Enter")
    open_advanced(page)
    page.locator("#frames input[type=number]").fill("9")
    page.locator("#frames input[type=number]").press("Enter")
    page.locator("#frames input[type=number]").blur()


def expect_settings(page: Page) -> None:
    expect(page.locator("#prompt textarea")).to_have_value(PROMPT)
    expect(page.locator("#size input")).to_have_value("320x192")
    expect(page.locator("#quality label", has_text="Standard").locator("input")).to_be_checked()
    if not page.locator("#frames").is_visible():  # loaded anew
        open_advanced(page)
    expect(page.locator("#frames input[type=number]")).to_have_value("9")


def answered(page: Page, count: int = 1) -> None:
    """Wait until the server has answered `count` events and the page has had the time to draw what they said."""
    for _ in range(count):
        with page.expect_response(lambda response: "/gradio_api/run/predict" in response.url) as waiting:
            pass
        waiting.value.finished()
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)))")


class Narrow(FakeEngine):
    """Another model: one that knows two phrases and a narrow range of guidance."""

    @property
    def info(self) -> ModelInfo:
        return replace(
            super().info, name="narrow", vocabulary=("night falls", "fade to black"), guidance_range=(2.0, 5.5)
        )


def sent(url: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the page is made from: the properties of each named part, and the texts."""
    config = requests.get(f"{url}/config", timeout=60).json()
    parts = [part["props"] for part in config["components"]]
    return {part["elem_id"]: part for part in parts if part.get("elem_id")}, config["i18n_translations"]


def test_a_page_is_sent_with_the_settings_of_the_model_that_is_there(serve: Callable[..., Site]) -> None:
    """The model greeted each visitor by an event, which set off three more: two thirds of what a visit cost."""
    site = serve(attach=False)
    parts, _ = sent(site.url)
    assert (parts["size"]["value"], parts["steps"]["value"]) == ("512x512", 50)
    assert not parts["examples"]["visible"]
    site.queue.attach(Narrow(), GpuMutex())
    parts, texts = sent(site.url)
    assert (parts["size"]["value"], parts["steps"]["value"], parts["quality"]["value"]) == ("256x256", 20, "standard")
    assert parts["examples"]["visible"]
    assert parts["examples"]["samples"] == [["night falls"], ["fade to black"]]
    guidance = parts["guidance"]
    assert (guidance["minimum"], guidance["maximum"], guidance["value"]) == (2.0, 5.5, 5.5)
    assert "guidance_kept" in str(guidance["info"])
    for language in ("en", "zh", "zh-CN", "zh-TW"):
        assert "2" in texts[language]["guidance_kept"]
        assert "5.5" in texts[language]["guidance_kept"]
    assert texts["en"]["guidance_kept"] != texts["zh"]["guidance_kept"]


def test_a_page_opened_before_the_model_came_follows_it_and_is_greeted(
    serve: Callable[..., Site], open_page: OpenPage, subtests: pytest.Subtests
) -> None:
    site = serve(attach=False)
    site.queue.report_loading(Note("loading", {"part": Note("unet")}), 0.42)
    page = open_page(site.url)
    with subtests.test("banner and system tab say how far the model has loaded"):
        expect(page.locator("#banner")).to_contain_text("loading unet 42 %")
        page.get_by_role("tab", name="System").click()
        expect(page.locator("#system")).to_contain_text("loading")
        expect(page.locator("#system")).to_contain_text("writable")
    held: list[Route] = []
    page.route("**/gradio_api/run/predict*", lambda route: held.append(route))  # as in a tab in the background
    narrow = Narrow()
    site.queue.attach(narrow, GpuMutex())
    sent(site.url)
    page.unroute("**/gradio_api/run/predict*")
    for route in held:
        route.continue_()
    with subtests.test("both say then what it is"):
        # The system tab's figures were those of the click that opened it.
        expect(page.locator("#system")).to_contain_text("ready")
        expect(page.locator("#system")).to_contain_text(narrow.info.title)
        expect(page.locator("#system")).to_contain_text(narrow.info.note)
        expect(page.locator("#banner")).to_contain_text(narrow.info.title)
        expect(page.locator("#banner")).to_contain_text("on cpu")
        expect(page.locator("#banner")).to_contain_text(narrow.info.note)
    with subtests.test("its settings are in the form, after others were sent them"):
        # The narrower slider, the same for all tabs, refused the guidance of the form that was to be greeted.
        page.get_by_role("tab", name="Create").click()
        expect(page.locator("#size input")).to_have_value("256 × 256")
        open_advanced(page)
        expect(page.locator("#guidance input[type=number]")).to_have_value("5.5")


def test_a_visit_makes_two_events_and_opens_no_stream(site: Site, open_page: OpenPage) -> None:
    """`open`, and the estimate; the page's clock ticks besides. The framework held a stream open for each tab."""
    events = requests.get(f"{site.url}/config", timeout=60).json()["dependencies"]
    ticks = {event["id"] for event in events if any(target[1] == "tick" for target in event["targets"])}
    made: Counter[int] = Counter()
    streams: list[str] = []

    def count(request: Request) -> None:
        if request.resource_type == "eventsource" or "heartbeat" in request.url or "/queue/" in request.url:
            streams.append(request.url)
        if "/gradio_api/run/predict" in request.url:
            made[json.loads(request.post_data or "{}")["fn_index"]] += 1

    page = open_page(site.url, before=lambda page: page.on("request", count))
    expect(page.locator("#hint")).to_contain_text("this machine")
    page.wait_for_function("() => document.readyState === 'complete'")
    while not ticks & set(made):  # whatever the visit sets off has been sent by the first tick, seconds later
        page.wait_for_event("request")
    assert sorted(made[event] for event in set(made) - ticks) == [1, 1]
    assert streams == []


def test_what_was_typed_stays_whatever_the_server_does(
    site: Site, serve: Callable[..., Site], open_page: OpenPage, subtests: pytest.Subtests
) -> None:
    held: list[Route] = []
    first = threading.Event()

    def hold_first(route: Route) -> None:
        if first.is_set():
            route.continue_()
        else:
            first.set()
            held.append(route)

    page = open_page(
        site.url,
        before=lambda page: page.route("**/gradio_api/run/predict*", hold_first),
        forgive="ERR_CONNECTION_REFUSED",
    )
    with subtests.test("after a slow answer to the page's load"):
        # Looks that began before `open` had answered greeted the form once more, and the job just sent was lost.
        expect(page.locator("#size input")).to_have_value("256 × 256")  # a tick has greeted
        type_settings(page)
        with page.expect_response(lambda response: response.request == held[0].request):
            held[0].continue_()
        answered(page, 2)
        expect_settings(page)
    with subtests.test("in an open tab, when the server is started again"):
        # It had forgotten what the tab had seen and greeted it again; later the page was loaded anew.
        site.stop()
        again = serve(attach=False, port=urlsplit(site.url).port)
        expect(page.locator("#banner")).to_contain_text("The model is loading")
        again.queue.attach(again.engine, GpuMutex())
        expect(page.locator("#banner")).to_contain_text(again.engine.info.title)
        answered(page, 2)
        expect_settings(page)
    with subtests.test("when the page is loaded anew"):
        page.reload()
        expect_settings(page)
    page.goto("about:blank")
    again.stop()
    serve(port=urlsplit(site.url).port, engine=Narrow())
    page.goto(site.url)
    with subtests.test("the words alone, when another model has come"):
        expect(page.locator("#prompt textarea")).to_have_value(PROMPT)
        expect(page.locator("#size input")).to_have_value("256 × 256")
        open_advanced(page)
        expect(page.locator("#frames input[type=number]")).to_have_value("16")
    with subtests.test("an example of that model goes into the prompt, and its guidance is in the form"):
        page.locator("#examples").get_by_text("fade to black", exact=True).click()
        expect(page.locator("#prompt textarea")).to_have_value("fade to black")
        expect(page.locator("#guidance")).to_contain_text("5.5")
        expect(page.locator("#guidance input[type=number]")).to_have_value("5.5")
