"""A model's arrival fills the form in once; what somebody has typed since stays, whatever the server does."""

import threading
from collections.abc import Callable
from urllib.parse import urlsplit

from playwright.sync_api import Page, Route, expect

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


def test_a_restarted_server_leaves_what_was_typed_in_an_open_tab(
    serve: Callable[..., Site], open_page: OpenPage
) -> None:
    """It had forgotten what the tab had seen and greeted it again; after a longer absence the page was loaded anew."""
    site = serve()
    page = open_page(site.url, forgive="ERR_CONNECTION_REFUSED")
    expect(page.locator("#size input")).to_have_value("256 × 256")
    type_settings(page)
    site.stop()
    again = serve(attach=False, port=urlsplit(site.url).port)
    expect(page.locator("#banner")).to_contain_text("The model is loading")
    again.queue.attach(again.engine)
    expect(page.locator("#banner")).to_contain_text(again.engine.info.title)
    answered(page, 2)
    expect_settings(page)


def test_a_slow_answer_to_the_page_load_leaves_what_was_typed_meanwhile(site: Site, open_page: OpenPage) -> None:
    """Looks that began before `open` had answered greeted the form a second time, and the job just sent was lost."""
    held: list[Route] = []
    first = threading.Event()

    def hold_first(route: Route) -> None:
        if first.is_set():
            route.continue_()
        else:
            first.set()
            held.append(route)

    page = open_page(site.url, before=lambda page: page.route("**/gradio_api/run/predict*", hold_first))
    expect(page.locator("#size input")).to_have_value("256 × 256")  # a tick has greeted
    type_settings(page)
    with page.expect_response(lambda response: response.request == held[0].request):
        held[0].continue_()
    answered(page, 2)
    expect_settings(page)
