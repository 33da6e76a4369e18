"""A server with a token: the browser's own login opens the page, and nothing of the page is served without it."""

from collections.abc import Callable, Iterator

import pytest
import requests
from playwright.sync_api import Browser, Page, expect

from tests.conftest import ASSETS
from tests.ui.conftest import Site, fill, servers

TOKEN = "a-token-of-some-length"
PHOTO = ASSETS / "coffee.jpg"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with servers(tmp_path_factory.mktemp("login")) as start:
        yield start(api_token=TOKEN)


def test_a_browser_that_logs_in_with_the_token_uses_the_whole_page(site: Site, open_page: Callable[..., Page]) -> None:
    page = open_page(site.url, http_credentials={"username": "anyone", "password": TOKEN})
    fill(page, PHOTO, "night falls")
    page.click("#generate")
    expect(page.locator("#stage video")).to_be_visible()
    page.wait_for_function("() => document.querySelector('#stage video').readyState >= 2")
    page.get_by_role("tab", name="History").click()
    expect(page.locator("#cards .card")).to_have_count(1)
    page.wait_for_function("() => document.querySelector('#cards img').naturalWidth > 0")
    page.get_by_role("tab", name="System").click()
    expect(page.locator("#api")).to_contain_text("Authorization: Bearer $I2V_API_TOKEN")


def test_a_browser_without_the_token_sees_no_page(site: Site, browser: Browser) -> None:
    context = browser.new_context(http_credentials={"username": "anyone", "password": "a guess"})
    page = context.new_page()
    answer = page.goto(site.url)
    assert answer is not None
    assert answer.status == 401
    assert answer.headers["www-authenticate"].startswith("Basic")
    assert page.locator("#stage").count() == 0
    assert TOKEN not in page.content()
    context.close()


def test_no_address_of_the_framework_answers_without_the_token(site: Site) -> None:
    """The mount's own `auth` would guard the page and leave the routes open; one middleware guards both."""
    config = requests.get(f"{site.url}/config", auth=("x", TOKEN), timeout=30).json()
    event = {"fn_index": config["dependencies"][0]["id"], "session_hash": "a", "data": []}
    tried = [
        ("GET", "/", None),
        ("GET", "/config", None),
        ("GET", "/theme.css", None),
        ("GET", "/gradio_api/info", None),
        ("GET", "/gradio_api/startup-events", None),
        ("GET", "/gradio_api/file=/etc/passwd", None),
        ("GET", "/gradio_api/queue/data?session_hash=a", None),
        ("POST", "/gradio_api/run/predict", event),
        ("POST", "/gradio_api/queue/join", event),
        ("POST", "/gradio_api/upload", {}),
        ("GET", "/v1/videos", None),
        ("POST", "/api/predict/", {"data": []}),
    ]
    for method, path, body in tried:
        answer = requests.request(method, f"{site.url}{path}", json=body, timeout=30)
        assert answer.status_code == 401, path
