"""Pictures of the page for the README and the documents, and a small GIF of a video that the page made.

    python scripts/screenshots.py [--chromium /usr/bin/chromium] [--only NAME ...]

Starts a server with the demo model in this process, uses the page in Chromium as a person would, and writes palette
PNGs to docs/images. A second server, whose engine is short of memory on purpose, shows what the page says then.
"""

import argparse
import io
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from i2v.engine import memory  # noqa: E402 - the checkout this script lies in
from i2v.engine.engine import Engine  # noqa: E402
from i2v.engine.interface import EngineProtocol, GenerationResult, MemoryNeed, ModelInfo, OnStep  # noqa: E402
from i2v.errors import OutOfMemory  # noqa: E402
from i2v.jobs.job import Job  # noqa: E402
from i2v.jobs.queue import JobQueue  # noqa: E402
from i2v.mutex import GpuMutex  # noqa: E402
from i2v.notes import Note  # noqa: E402
from i2v.request import GenerateRequest  # noqa: E402
from i2v.server.app import create_app  # noqa: E402
from i2v.settings import Settings  # noqa: E402
from i2v.ui.mount.mounting import mount_ui  # noqa: E402
from i2v.video import gif, read_frames  # noqa: E402

PHOTOS = ROOT / "tests" / "assets"
IMAGES = ROOT / "docs" / "images"
DESK = {"width": 1280, "height": 1000}
PHONE = {"width": 390, "height": 844}
PATIENCE_MS = 600_000
MOST_BYTES = 250_000
GIF_SIDE, GIF_BYTES = 320, 1_500_000
MACHINE = memory.MemoryBudget(total=5 * memory.GIB // 4, available=5 * memory.GIB // 4)  # of the second server
MADE = (
    "create",
    "running",
    "result",
    "history",
    "system",
    "chinese",
    "dark",
    "advanced",
    "phone",
    "sweep-running",
    "sweep",
)
OTHERS = (("chelsea", "night falls"), ("rocket", "the scene brightens"), ("astronaut", "fade to black"))
PLAYS = "() => { const v = document.querySelector('#stage video'); return v?.readyState >= 3 && v.currentTime > 0.1 }"


@dataclass(slots=True)
class Short:
    """The demo model on a machine that has little memory and loses that too in the middle of a job."""

    engine: Engine

    @property
    def info(self) -> ModelInfo:
        return self.engine.info

    def check(self, request: GenerateRequest) -> None:
        self.memory_need(request)

    def memory_need(self, request: GenerateRequest) -> MemoryNeed:
        shape = memory.shape_of(self.engine.parts)
        plan = memory.choose_plan(shape, request, MACHINE, offloads=False)
        return MemoryNeed(memory.predict(shape, request, plan).peak, MACHINE.usable)

    def close(self) -> None:
        """The engine belongs to the script."""

    def generate(
        self, request: GenerateRequest, image: Image.Image, noise: Any = None, on_step: OnStep | None = None
    ) -> GenerationResult:
        raise OutOfMemory(f"the job ran out of memory; {self.engine.would_fit(request)}")


@contextmanager
def served(engine: EngineProtocol | None) -> Iterator[tuple[str, JobQueue]]:
    """The address and the queue of a server on a free port, with a data folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="i2v-pictures-"))
    settings = Settings(outputs=folder / "outputs", model="demo", min_free_mb=0)
    queue = JobQueue(settings)
    queue.attach(engine, GpuMutex())
    app = mount_ui(create_app(settings, queue), settings, queue)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=2)
    )
    listening, startup = threading.Event(), server.startup

    async def announced(sockets: list[Any] | None = None) -> None:
        await startup(sockets)
        listening.set()

    server.startup = announced  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        listening.wait()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", queue
    finally:
        server.should_exit = True
        thread.join()
        shutil.rmtree(folder)


@dataclass(frozen=True, slots=True)
class Camera:
    """Writes the pictures that were asked for."""

    browser: Browser
    only: tuple[str, ...]

    def open(self, url: str, size: dict[str, int] = DESK, **options: Any) -> Page:
        context = self.browser.new_context(viewport=size, **{"locale": "en-US", **options})  # type: ignore[arg-type]
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.goto(url)
        page.locator("#stage .stage").wait_for()
        return page

    def wants(self, *names: str) -> bool:
        return not self.only or any(name in self.only for name in names)

    def take(self, page: Page, name: str) -> None:
        """One palette PNG; fails when it is larger than a README should carry."""
        if not self.wants(name):
            return
        page.mouse.move(0, 0)
        page.evaluate("() => document.activeElement?.blur()")
        picture = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
        file = IMAGES / f"{name}.png"
        for colours in (256, 128, 64):  # four videos side by side need fewer to stay small
            picture.quantize(colors=colours, method=Image.Quantize.MEDIANCUT).save(file, optimize=True)
            if file.stat().st_size <= MOST_BYTES:
                break
        print(f"{file.relative_to(ROOT)}: {picture.width}x{picture.height}, {file.stat().st_size / 1000:.0f} kB")
        if file.stat().st_size > MOST_BYTES:
            raise SystemExit(f"{file.name} is too large")


def fill(page: Page, photo: str, prompt: str) -> None:
    page.set_input_files("#photo input[type=file]", PHOTOS / f"{photo}.jpg")
    expect(page.locator("#photo img")).to_be_visible()
    page.locator("#prompt textarea").fill(prompt)
    expect(page.locator("#crop")).to_contain_text(re.compile("[0-9]"))


def at_its_end(page: Page) -> None:
    """Slow the video down where it shows most of what happened; while it plays its controls stay out of the way."""
    page.locator("#stage video").scroll_into_view_if_needed()  # browsers pause a video that nobody sees
    page.wait_for_function(PLAYS)
    page.evaluate(
        """() => new Promise((done) => {
          const video = document.querySelector('#stage video');
          video.playbackRate = 0.07; video.addEventListener('seeked', done, {once: true});
          video.currentTime = 0.7 * video.duration;
        })"""
    )


def make_others(queue: JobQueue) -> None:
    for photo, prompt in OTHERS:
        make(queue, photo, prompt, frames=8)


def make(queue: JobQueue, photo: str, prompt: str, *, frames: int) -> None:
    request = GenerateRequest(prompt=prompt, width=256, height=256, num_frames=frames, steps=10, guidance_scale=7.5)
    queue.submit(request, Image.open(PHOTOS / f"{photo}.jpg").convert("RGB"), door="cli")


def newest(queue: JobQueue) -> Job:
    return queue.wait_sync(queue.list(limit=1)[0].id)


def main_flow(camera: Camera, url: str, queue: JobQueue) -> Job:
    """create, running, result, and the GIF."""
    make_others(queue)
    for job in queue.list():
        queue.wait_sync(job.id)
    page = camera.open(url)
    fill(page, "coffee", "the scene at sunset")
    expect(page.locator("#hint")).to_contain_text("About")
    camera.take(page, "create")
    page.click("#generate")
    expect(page.locator("#stage .now")).to_contain_text(re.compile("Step 1[0-9] of 20"), timeout=PATIENCE_MS)
    expect(page.locator("#stage img.preview")).to_be_visible()
    camera.take(page, "running")
    expect(page.locator("#stage video")).to_be_visible(timeout=PATIENCE_MS)
    job = newest(queue)
    at_its_end(page)
    camera.take(page, "result")
    page.context.close()
    make(queue, "chelsea", "camera pans right", frames=16)
    moving = newest(queue)
    write_gif(read_frames(queue.video_path(moving)), moving.request.fps)
    return job


def seed_sweep(camera: Camera, url: str) -> None:
    """The contact sheet, once with two of the four there, once with all."""
    page = camera.open(url)
    fill(page, "chelsea", "the scene at sunset")
    page.locator("#advanced button").first.click()
    page.locator("#frames input[type=number]").fill("8")
    page.locator("#frames input[type=number]").press("Enter")
    page.locator("#advanced button").first.click()
    page.click("#sweep")
    expect(page.locator(".tile[data-status=completed]")).to_have_count(2)
    expect(page.locator(".tile[data-status=in_progress] img")).to_be_visible()
    camera.take(page, "sweep-running")
    expect(page.locator(".tile video")).to_have_count(4)
    page.wait_for_function(
        "() => [...document.querySelectorAll('.tile video')].every(v => v.readyState >= 3 && v.currentTime > 0.1)"
    )
    page.evaluate(
        "() => document.querySelectorAll('.tile video').forEach(v => { v.currentTime = 0.7; v.playbackRate = 0.07; })"
    )
    camera.take(page, "sweep")
    page.context.close()


def write_gif(frames: Any, fps: int) -> None:
    data = gif(frames, fps, side=GIF_SIDE)
    file = IMAGES / "pan.gif"
    file.write_bytes(data)
    print(f"{file.relative_to(ROOT)}: {len(data) / 1000:.0f} kB")
    if len(data) > GIF_BYTES:
        raise SystemExit("the GIF is too large")


def other_states(camera: Camera, url: str, job: Job) -> None:
    """history, system, chinese, dark, phone: everything that needs videos and no running job."""
    page = camera.open(url)
    page.get_by_role("tab", name="History").click()
    expect(page.locator("#cards .card").first).to_be_visible()
    page.wait_for_function("() => [...document.querySelectorAll('#cards img')].every(i => i.complete)")
    camera.take(page, "history")
    page.get_by_role("tab", name="System").click()
    expect(page.locator("#system .facts")).to_be_visible()
    expect(page.locator("#api .cm-content").first).to_contain_text("curl")
    camera.take(page, "system")
    page.context.close()
    looks: dict[str, dict[str, Any]] = {
        "chinese": {"locale": "zh-CN"},
        "dark": {"color_scheme": "dark"},
        "phone": {"size": PHONE, "device_scale_factor": 1.5, "has_touch": True, "is_mobile": True},
    }
    for name, options in looks.items():
        page = camera.open(f"{url}/?job={job.id}", **options)
        expect(page.locator("#banner .banner")).to_be_visible()
        at_its_end(page)
        page.click("#reuse")  # photo and settings of the video into the form
        expect(page.locator("#photo img")).to_be_visible()
        expect(page.locator("#crop")).to_contain_text(re.compile("[0-9]"))
        page.evaluate(f"() => document.querySelector('{'#stage' if name == 'phone' else 'body'}').scrollIntoView()")
        camera.take(page, name)
        if name == "dark":
            page.locator("#advanced button").first.click()
            expect(page.locator("#seed input")).to_be_visible()
            page.locator("#seed-row").scroll_into_view_if_needed()
            page.evaluate("() => window.scrollBy(0, 200)")  # from behind the buttons, which stay in sight
            camera.take(page, "advanced")
        page.context.close()


def still_loading(camera: Camera) -> None:
    with served(None) as (url, queue):
        values = {"repo": "ali-vilab/i2vgen-xl", "done_gb": 2.94, "total_gb": 7.0}
        queue.report_loading(Note("downloading", values), 0.42)
        page = camera.open(url)
        fill(page, "coffee", "the scene at sunset")
        camera.take(page, "loading")
        page.context.close()


def short_of_memory(camera: Camera, engine: Engine) -> None:
    with served(Short(engine)) as (url, _queue):
        page = camera.open(url)
        fill(page, "coffee", "the scene at sunset")
        page.click("#generate")
        expect(page.locator("#stage .stage-failed")).to_be_visible(timeout=PATIENCE_MS)
        camera.take(page, "out-of-memory")
        page.locator("#size input").fill("1280x704")
        page.locator("#size input").press("Enter")
        expect(page.locator("#hint .bad")).to_be_visible()
        camera.take(page, "does-not-fit")
        page.context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser")
    parser.add_argument("--only", nargs="*", default=(), help="names of the pictures to take (default: all)")
    options = parser.parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=PATIENCE_MS)
    engine = Engine.load("demo", device="cpu")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox", "--disable-gpu"])
        camera = Camera(browser, tuple(options.only))
        if camera.wants(*MADE):
            with served(engine) as (url, queue):
                job = main_flow(camera, url, queue)
                other_states(camera, url, job)
                seed_sweep(camera, url)
        if camera.wants("loading"):
            still_loading(camera)
        if camera.wants("out-of-memory", "does-not-fit"):
            short_of_memory(camera, engine)
        browser.close()


if __name__ == "__main__":
    main()
