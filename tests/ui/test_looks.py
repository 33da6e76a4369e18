"""How the page shows itself: languages, colours, small screens, the keyboard, hints before a run, the system tab."""

import re
from collections.abc import Callable
from pathlib import Path
from string import Formatter

import pytest
from PIL import Image
from playwright.sync_api import FloatRect, Page, expect

from i2v.engine.fake import FakeEngine
from i2v.engine.interface import ModelInfo
from i2v.engine.source import DEMO_FOLDER, read_card
from i2v.errors import OutOfMemory, error_from_code
from i2v.request import PublicLimits
from i2v.ui.form import as_photo, offered_sizes
from i2v.ui.hint import about_prompt
from i2v.ui.texts import TABLE, Say
from tests.conftest import ASSETS
from tests.ui.conftest import Site, fill, open_advanced

OpenPage = Callable[..., Page]
PHOTO = ASSETS / "coffee.jpg"
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def test_every_text_has_both_languages_with_the_same_values() -> None:
    for key, (english, chinese) in TABLE.items():
        names = [{name for _, name, _, _ in Formatter().parse(text) if name} for text in (english, chinese)]
        assert names[0] == names[1], key
        assert CHINESE.search(chinese) or not re.search(r"[a-z]{3}", re.sub(r"\{.*?\}", "", chinese)), key
        assert not CHINESE.search(english), key


def test_every_explained_error_has_a_code_that_exists() -> None:
    codes = {key.removeprefix("error_") for key in TABLE if key.startswith("error_")}
    assert {code for code in codes if error_from_code(code, "why").code != code} == {"video_lost"}  # of a job's end


def test_the_page_speaks_of_the_demo_model_as_its_card_does() -> None:
    card = read_card(DEMO_FOLDER / "i2v.json")
    assert TABLE["note_demo"][0] == card.note
    assert TABLE["title_demo"][0] == card.title
    assert TABLE["title_fake"][0] == FakeEngine().info.title


def test_a_prompt_that_the_demo_model_does_not_follow_is_said_before_it_runs() -> None:
    """A dog that should run never came, and nothing had said so."""
    card = read_card(DEMO_FOLDER / "i2v.json")
    demo = ModelInfo("demo", "demo", "Demo", "cpu", "float32", vocabulary=card.vocabulary, phrases=card.phrases)
    for language in ("en", "zh"):
        say = Say(language)
        assert "camera zooms in" in about_prompt(say, "a dog runs across the beach", demo)
        for phrase in (*card.vocabulary, "golden hour over a boat", "A cat, the camera pans to the left."):
            assert about_prompt(say, phrase, demo) == ""
        assert about_prompt(say, "a dog runs across the beach", None) == ""


def test_a_chinese_browser_sees_a_chinese_page(
    serve: Callable[..., Site], open_page: OpenPage, subtests: pytest.Subtests
) -> None:
    sentence = "the GPU ran out of memory; 256x256 with 8 frames would fit"
    failures = [OutOfMemory(sentence)]

    def fault(stage: str, step: int) -> None:
        if step == 2 and failures:
            raise failures.pop()

    page = open_page(serve(engine=FakeEngine(fault=fault)).url, locale="zh-CN")
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    expect(page.locator("#generate")).to_have_text("生成视频")
    expect(page.get_by_role("tab", name="历史")).to_be_visible()
    expect(page.locator("#stage")).to_contain_text("视频将显示在这里")
    expect(page.get_by_label("画面中会发生什么？")).to_be_visible()
    with subtests.test("it holds no English but names"):
        open_advanced(page)
        found = []
        for tab in ("创作", "历史", "系统"):
            page.get_by_role("tab", name=tab).click()
            found.append(page.locator("[role=tabpanel]:visible").first.inner_text())
        names = "i2v|fps|MP4|DDIM|DPM-Solver|UniPC|exact|fast|turbo|curl|requests|openai|cpu|uint8|the scene at sunset"
        code = page.locator("#api .cm-content:visible").inner_text()
        left = re.sub(names, "", "\n".join(found).replace(code, ""))
        assert re.findall(r"[A-Za-z]{3,}(?: [A-Za-z]+)*", left) == []
        page.get_by_role("tab", name="创作").click()
    with subtests.test("it says what is missing"):
        page.click("#generate")
        expect(page.locator("#notice")).to_have_text("请先选择照片。")
    with subtests.test("a job that runs out of memory fails in the reader's words, with the server's own beside them"):
        # What a job failed with was shown in English on the Chinese page.
        fill(page, PHOTO, "the scene at sunset")
        page.click("#generate")
        expect(page.locator("#stage .stage-failed")).to_contain_text("显存或内存不足")
        expect(page.locator("#stage .stage-failed")).to_contain_text(sentence)
    with subtests.test("the next one succeeds"):
        page.click("#generate")
        expect(page.locator("#stage video")).to_be_visible()
        expect(page.locator("#stage .facts")).to_contain_text("种子")


# WCAG 2.2, relative luminance and contrast; the ground is the nearest one behind the text that is not see-through.
CONTRASTS = """() => {
  const rgba = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = rgba(getComputedStyle(e).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  return [...document.querySelectorAll('body *')].filter((e) => own(e) && e.checkVisibility())
    .filter((e) => !['SCRIPT', 'STYLE'].includes(e.tagName) && e.getClientRects().length)
    .map((e) => {
      const [a, b] = [light(rgba(getComputedStyle(e).color)), light(ground(e))];
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.trim().slice(0, 60)];
    });
}"""


def assert_readable(page: Page, *, dark: bool) -> None:
    """Each text of the three tabs has a contrast of 4.5 (WCAG 2.2 AA), on a ground that is dark or is not."""
    expect(page.locator("body.dark")).to_have_count(int(dark))
    fill(page, PHOTO, "the scene at sunset")
    open_advanced(page)
    expect(page.locator("#stage video")).to_be_visible()
    for tab in ("Create", "History", "System"):
        page.get_by_role("tab", name=tab).click()
        if tab == "System":
            expect(page.locator("#api .cm-content:visible")).to_contain_text("curl")
        found = page.evaluate(CONTRASTS)
        assert len(found) > 12
        code = "\n".join(page.locator("#api .cm-content").all_inner_texts())  # coloured by the framework's own theme
        assert [(round(ratio, 2), text) for ratio, text in found if ratio < 4.5 and text not in code] == []
    await_ground(page, dark=dark)


def await_ground(page: Page, *, dark: bool, part: str = "gradio-app") -> None:
    """Until `part`, as a rule the one that covers the whole page, is dark or is not: styles come after the page."""
    page.wait_for_function(
        """([part, dark]) => {
            const ground = getComputedStyle(document.querySelector(part)).backgroundColor
            return Math.max(...ground.match(/\\d+/g).slice(0, 3)) < 80 === dark
        }""",
        arg=[part, dark],
    )


def test_every_text_stands_out_from_its_ground_in_both_schemes_and_a_reader_may_choose(
    site: Site, open_page: OpenPage, subtests: pytest.Subtests
) -> None:
    """Labels and hints had a contrast of 2.6, the button's words 4.4."""
    page = open_page(site.url, color_scheme="light")
    expect(page.locator("body.dark")).to_have_count(0)
    fill(page, PHOTO, "the scene at sunset")
    page.click("#generate")
    with subtests.test("light"):
        assert_readable(page, dark=False)
    page.get_by_role("link", name="Dark").click()
    with subtests.test("dark"):
        assert_readable(page, dark=True)
    with subtests.test("light again"):
        page.get_by_role("link", name="Light").click()
        expect(page.locator("body.dark")).to_have_count(0)
        await_ground(page, dark=False)


def test_the_keyboard_alone_makes_a_video_of_forty_megapixels_and_shows_where_it_is(
    site: Site, open_page: OpenPage, tmp_path: Path
) -> None:
    large = tmp_path / "large.jpg"
    Image.open(PHOTO).convert("RGB").resize((7300, 5475), Image.Resampling.NEAREST).save(large, quality=70)
    page = open_page(site.url)
    page.set_input_files("#photo input[type=file]", large)
    expect(page.locator("#photo img")).to_be_visible()
    expect(page.locator("#crop")).to_contain_text("of 7300 × 5475")
    page.locator("#prompt textarea").focus()
    page.keyboard.type("night falls")
    passed = []
    for _ in range(20):
        page.keyboard.press("Tab")
        place, ring = page.evaluate(
            """() => {
              const e = document.activeElement, s = getComputedStyle(e), l = e.closest('label');
              const rings = [s, ...(l ? [getComputedStyle(l)] : [])];
              const field = e.matches('input, textarea') && !e.matches('[type=radio]');
              const drawn = rings.some((r) => r.outlineStyle !== 'none' && parseFloat(r.outlineWidth) >= 1);
              return [e.closest('[id]')?.id, field || drawn];
            }"""
        )
        passed.append(place)
        assert ring, place
        if place == "generate":
            break
    assert [name for name in dict.fromkeys(passed) if name in ("quality", "size", "fit", "generate")] == [
        "quality",
        "size",
        "fit",
        "generate",
    ]
    page.keyboard.press("Enter")
    expect(page.locator("#stage video")).to_be_visible()


def box_of(page: Page, part: str) -> FloatRect:
    box = page.locator(part).first.bounding_box()
    assert box is not None
    return box


# From where a phone's owner stands: what is too wide would widen the page of a phone too, so its own width is asked.
FITS = "() => document.documentElement.scrollWidth <= 390"


def test_a_phone_shows_everything_where_its_owner_looks(
    site: Site, open_page: OpenPage, subtests: pytest.Subtests
) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    page = open_page(site.url, color_scheme="dark", **phone)
    with subtests.test("in the dark the page is dark"):
        expect(page.locator("body.dark")).to_have_count(1)
        await_ground(page, dark=True)
        await_ground(page, dark=True, part="body")
    with subtests.test("photo, then prompt, then the button on the first screen"):
        boxes = []
        for part in ("#photo", "#prompt", "#generate"):
            expect(page.locator(part)).to_be_in_viewport(ratio=1)
            boxes.append(box_of(page, part))
        assert min(box["width"] for box in boxes) > 200
        assert [box["y"] for box in boxes] == sorted(box["y"] for box in boxes)
        sweep, generate = box_of(page, "#sweep"), box_of(page, "#generate")
        middles = [box["y"] + box["height"] / 2 for box in (sweep, generate)]
        assert abs(middles[0] - middles[1]) < 4  # one row of buttons
    with subtests.test("the box for a video covers none of its words"):
        # Label and words lay on each other in half of the screen's width.
        page.get_by_role("tab", name="History").click()
        expect(page.locator("#restore")).to_be_visible()
        search, restore, label = (box_of(page, part) for part in ("#search", "#restore", "#restore label"))
        words = (
            page.locator("#restore")
            .get_by_text("Drop File Here")
            .evaluate(
                "(part) => { const range = document.createRange(); range.selectNodeContents(part);"
                " return range.getBoundingClientRect().top }"
            )
        )
        assert restore["y"] >= search["y"] + search["height"]
        assert words >= label["y"] + label["height"]
        page.get_by_role("tab", name="Create").click()
    with subtests.test("the page goes to what is wrong, and to the job once it is on its way"):
        # It looked for the running job before the page knew of it, and stayed at the form; the video never played.
        site.gate.allow(2)
        page.locator("#generate").click()
        expect(page.locator("#notice .bad")).to_be_in_viewport()
        fill(page, PHOTO, "the scene at sunset")
        page.locator("#generate").click()
        expect(page.locator("#stage .bar")).to_be_in_viewport()
        expect(page.locator("#cancel")).to_be_in_viewport()
        site.gate.open()
        expect(page.locator("#stage video")).to_be_in_viewport()
    with subtests.test("nothing needs scrolling sideways"):
        assert page.evaluate(FITS)
        page.get_by_role("tab", name="History").click()
        expect(page.locator("#cards .card")).to_have_count(1)
        assert page.evaluate(FITS)


def test_the_form_answers_what_is_chosen_and_typed(site: Site, open_page: OpenPage, subtests: pytest.Subtests) -> None:
    page = open_page(site.url, locale="fr-FR")
    with subtests.test("a page in English says that it is English"):
        # A French or German browser had its own language put on English words: they were read out in its accent.
        assert page.locator("html").get_attribute("lang") == "en"
        expect(page.locator("#generate")).to_have_text("Generate video")
    with subtests.test("a photo alone brings no warning and hides no example"):
        # The page complained of a prompt that nobody had had the time to write.
        page.set_input_files("#photo input[type=file]", PHOTO)
        expect(page.locator("#crop")).to_contain_text("of 640 × 480")
        expect(page.locator("#prompt-notice .notice")).to_have_count(0)
    with subtests.test("hints speak of length and language of the prompt"):
        page.locator("#prompt textarea").fill("word " * 90)
        expect(page.locator("#prompt-notice")).to_contain_text("the model reads the first 77")
        page.locator("#prompt textarea").fill("夕阳下的风景")
        expect(page.locator("#prompt-notice")).to_contain_text("trained on English")
        page.locator("#prompt textarea").fill("night falls")
        expect(page.locator("#prompt-notice .notice")).to_have_count(0)
        page.locator("#prompt textarea").fill("")
        expect(page.locator("#prompt-notice")).to_contain_text("Write what should happen")
    with subtests.test("the crop is drawn where the video will be cut"):
        expect(page.locator("#photo img")).to_be_visible()
        expect(page.locator("#crop")).to_contain_text("479 × 480 of 640 × 480")
        inset = page.evaluate("() => getComputedStyle(document.querySelector('#photo .image-frame'), '::after').left")
        frame = box_of(page, "#photo .image-frame")
        assert abs(float(inset.removesuffix("px")) - frame["width"] * 0.1257) < 1.5
        page.locator("#fit label", has_text="padded").click()
        expect(page.locator("#crop")).to_contain_text("black borders to 256 × 256")
        page.locator("#fit label", has_text="cropped").click()
    with subtests.test("a size can be typed and a wrong one is said"):
        page.locator("#size input").fill("320x192")
        page.locator("#size input").press("Enter")
        expect(page.locator("#crop")).to_contain_text("× 384 of 640 × 480")
        page.locator("#size input").fill("banana")
        page.locator("#size input").press("Enter")
        expect(page.locator("#hint")).to_contain_text("WIDTHxHEIGHT")
    open_advanced(page)
    with subtests.test("every control has a name for screen readers"):
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('#create input, #create textarea, #create button')]
              .filter(e => e.offsetParent && e.type !== 'file')
              .filter(e => !(e.labels?.length || e.getAttribute('aria-label') || e.title || e.innerText.trim()))
              .map(e => e.outerHTML.slice(0, 200))"""
        )
        assert nameless == []
    with subtests.test("a quality sets the steps"):
        page.locator("#quality label", has_text="Fast").click()
        expect(page.locator("#steps input[type=number]")).to_have_value("10")
        page.locator("#quality label", has_text="High quality").click()
        expect(page.locator("#steps input[type=number]")).to_have_value("40")
    with subtests.test("the system tab fills its examples with the form"):
        page.locator("#size input").fill("256x256")
        page.locator("#size input").press("Enter")
        page.locator("#prompt textarea").fill("it's night")
        page.get_by_role("tab", name="System").click()
        expect(page.locator("#system")).to_contain_text(site.engine.info.title)
        expect(page.locator("#system")).to_contain_text("0 waiting; it takes up to 16")
        expect(page.locator("#api")).to_contain_text(f"{site.url}/v1/videos")
        expect(page.locator("#api")).to_contain_text("night")


def test_as_the_photo_keeps_its_shape_within_the_limits() -> None:
    limits = PublicLimits()
    assert as_photo((640, 480), 256 * 256, limits) == (320, 192)
    assert as_photo((480, 640), 512 * 512, limits) == (448, 576)
    for photo in ((20000, 100), (100, 20000), (16, 16), (5000, 5000)):
        width, height = as_photo(photo, 512 * 512, limits)
        assert width % 64 == 0
        assert height % 64 == 0
        assert min(width, height) >= 128
        assert max(width, height) <= 1280
        assert width * height <= limits.max_pixels


def test_only_sizes_that_the_operator_allows_are_offered() -> None:
    assert offered_sizes(PublicLimits(resolutions=(256,), side=(128, 640))) == [(256, 256)]
    assert (1280, 704) in offered_sizes(PublicLimits())
