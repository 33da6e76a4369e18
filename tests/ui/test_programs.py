"""The examples of the system tab: run as a program would run them, they make the job that the form describes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import ASSETS
from tests.ui.conftest import Site, open_advanced

TOKEN = "a-token-of-some-length"
PROMPT = '@it\'s "night"; type=text & $HOME falls'


def example(page: Page, tab: str) -> str:
    """The code under one tab, as the copy button would give it."""
    page.get_by_role("tab", name=tab, exact=True).click()
    shown = page.locator("#api .cm-content:visible")
    expect(shown).to_contain_text("photo.jpg")
    return "\n".join(shown.locator(".cm-line").all_inner_texts())


def filled_page(site: Site, open_page: Callable[..., Page], **options: object) -> Page:
    page = open_page(site.url, **options)
    expect(page.locator("#banner")).to_contain_text(site.engine.info.title)
    page.locator("#prompt textarea").fill(PROMPT)
    open_advanced(page)
    page.locator("#frames input[type=number]").fill("9")
    page.locator("#frames input[type=number]").press("Enter")
    page.locator("#seed input").fill("1234")
    page.get_by_role("tab", name="System").click()
    return page


def run(code: str, language: str, folder: Path) -> None:
    (folder / "photo.jpg").write_bytes((ASSETS / "coffee.jpg").read_bytes())
    command = ["bash", "-c", code] if language == "curl" else [sys.executable, "-c", code]
    environment = {**os.environ, "I2V_API_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("guarded", [False, True], ids=["open", "guarded"])
def test_each_example_makes_the_job_of_the_form(
    serve: Callable[..., Site], open_page: Callable[..., Page], tmp_path: Path, guarded: bool, subtests: pytest.Subtests
) -> None:
    """The examples knew no token, and openai's named a model that no server here has: they were refused."""
    options: dict[str, object] = {"http_credentials": {"username": "x", "password": TOKEN}} if guarded else {}
    site = serve(api_token=TOKEN) if guarded else serve()
    page = filled_page(site, open_page, **options)
    assert "makes squares" not in example(page, "requests")
    for language in ("curl", "requests", "openai"):
        run(example(page, language), language, tmp_path)
        job = site.queue.wait_sync(site.queue.list()[0].id, 60)
        assert job.status == "completed", language
        request = job.request
        assert (request.prompt, request.num_frames, request.seed, request.steps) == (PROMPT, 9, 1234, 20), language
        assert (request.width, request.height, request.guidance_scale) == (256, 256, 9.0), language
    assert len(site.queue.list()) == 3
    assert (tmp_path / "video.mp4").read_bytes()[4:8] == b"ftyp"
    if not guarded:
        with subtests.test("an example says that its door makes squares only"):
            example(page, "requests")
            page.get_by_role("tab", name="Create").click()
            page.locator("#size input").fill("320x192")
            page.locator("#size input").press("Enter")
            page.get_by_role("tab", name="System").click()
            expect(page.locator("#api .cm-content:visible")).to_contain_text("makes squares")
