"""Where a photo comes from: dropped, pasted, taken with the camera; and what each of them shows at once."""

import base64
import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import ASSETS
from tests.ui.conftest import Site

PHOTO = ASSETS / "coffee.jpg"
OpenPage = Callable[..., Page]

TO_PNG = """async (encoded) => {
  const blob = new Blob([Uint8Array.from(atob(encoded), (byte) => byte.charCodeAt(0))], {type: 'image/jpeg'});
  const bitmap = await createImageBitmap(blob);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext('2d').drawImage(bitmap, 0, 0);
  return canvas.convertToBlob({type: 'image/png'});
}"""


def encoded() -> str:
    return base64.b64encode(PHOTO.read_bytes()).decode()


def is_taken(page: Page, size: str) -> None:
    expect(page.locator("#photo img")).to_be_visible()
    expect(page.locator("#crop")).to_contain_text(re.compile(size))


def take_away(page: Page) -> None:
    page.locator("#photo").get_by_role("button", name="Remove Image").click()
    expect(page.locator("#photo img")).to_have_count(0)
    expect(page.locator("#crop")).not_to_contain_text("640")


def test_a_photo_is_taken_however_it_comes(site: Site, open_page: OpenPage, subtests: pytest.Subtests) -> None:
    page = open_page(site.url, permissions=["clipboard-read", "clipboard-write", "camera"])
    with subtests.test("dropped"):
        dropped = page.evaluate_handle(
            f"""async (encoded) => {{
              const blob = await ({TO_PNG})(encoded);
              const data = new DataTransfer();
              data.items.add(new File([blob], 'dropped.png', {{type: 'image/png'}}));
              return data;
            }}""",
            encoded(),
        )
        page.locator("#photo button[aria-dropeffect]").dispatch_event("drop", {"dataTransfer": dropped})
        is_taken(page, "of 640 × 480")
        take_away(page)
    with subtests.test("pasted"):
        page.evaluate(
            f"""async (encoded) => {{
              const blob = await ({TO_PNG})(encoded);
              await navigator.clipboard.write([new ClipboardItem({{'image/png': blob}})]);
            }}""",
            encoded(),
        )
        page.locator("#photo").get_by_role("button", name="Paste from clipboard").click()
        is_taken(page, "of 640 × 480")
        take_away(page)
    with subtests.test("from the camera"):
        page.locator("#photo").get_by_role("button", name="Capture from camera").click()
        page.locator("#photo").get_by_title("grant webcam access").click()
        page.wait_for_function("() => document.querySelector('#photo video')?.videoWidth > 0")
        page.locator("#photo").get_by_role("button", name="capture photo").click()
        is_taken(page, r"of \d+ × \d+|whole photo")
