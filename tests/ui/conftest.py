"""A real server on a free port and a real Chromium before it; errors, foreign requests, blocked things fail a test."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch
from urllib.parse import urlsplit

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.dependencies import models as fastapi_models
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from i2v.engine.fake import FakeEngine
from i2v.errors import JobCancelled
from i2v.jobs.queue import JobQueue
from i2v.mutex import GpuMutex
from i2v.server.app import create_app
from i2v.server.protocol import bounded_protocol
from i2v.settings import Settings
from i2v.ui.mount.mounting import mount_ui

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",  # a camera that shows a test picture, and no question before it
    "--use-fake-ui-for-media-stream",
    # A page lives for seconds: what is compiled for it ahead of its use, or well, is never paid back.
    "--js-flags=--max-lazy --no-opt --no-maglev --no-sparkplug",
    # A last --disable-features replaces the driver's own. The first two load a page of the browser's own beside each
    # page of a test, which takes a third of a test's processor time; the others ask machines outside, or step in
    # between a test and its page.
    "--disable-features="
    "WebUIOmniboxPopup,WebUIOmniboxAimPopup,"
    "AimEnabled,PreconnectToSearch,OptimizationHints,NetworkTimeServiceQuerying,MediaRouter,"
    "AvoidUnnecessaryBeforeUnloadCheckSync,AvoidCorsURLLoaderRestartOnRedirect,DestroyProfileOnBrowserClose,"
    "HttpsFirstBalancedModeAutoEnable,HttpsUpgrades,LensOverlay,PaintHolding,ThirdPartyStoragePartitioning",
]
TELL_BLOCKED = """document.addEventListener('securitypolicyviolation', (event) =>
  console.error(`the policy blocks ${event.violatedDirective} ${event.blockedURI}`))"""
PATIENCE_MS = 60_000  # generous: two cores shared with other tests
expect.set_options(timeout=PATIENCE_MS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that drive a browser: `scripts/check` leaves them out."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")


class Gate:
    """Holds a `FakeEngine` between steps: `allow(n)` lets it go on until step n is done."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._allowed = 10**9
        self.reached = 0

    def allow(self, step: int) -> None:
        with self._changed:
            self._allowed = step
            self._changed.notify_all()

    def open(self) -> None:
        self.allow(10**9)

    def __call__(self, stage: str, step: int) -> None:
        with self._changed:
            self.reached = step
            if not self._changed.wait_for(lambda: stage != "denoise" or step <= self._allowed, timeout=120):
                raise JobCancelled("the test held this job for too long")


@dataclass
class Site:
    """One running server, its queue and its engine."""

    url: str
    queue: JobQueue
    engine: FakeEngine
    gate: Gate
    settings: Settings
    stop: Callable[[], None]


def mounted(settings: Settings, queue: JobQueue) -> FastAPI:
    """The app with the page. The framework builds its own app three times for one page and serves the last one: the
    first two, which took more than half of the time, are left out.
    """
    with patch("gradio.blocks.App", SimpleNamespace(create_app=lambda *_, **__: None)):  # where it builds those two
        return mount_ui(create_app(settings, queue), settings, queue)


def run_server(settings: Settings, queue: JobQueue, port: int = 0) -> tuple[uvicorn.Server, threading.Thread, int]:
    app = mounted(settings, queue)
    http = bounded_protocol(settings.receive_timeout_s, settings.max_connections)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, http=http, log_level="warning", timeout_graceful_shutdown=2)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    listening = threading.Event()
    startup = server.startup

    async def announced(sockets: list | None = None) -> None:
        await startup(sockets)
        listening.set()

    server.startup = announced  # type: ignore[method-assign]
    thread.start()
    assert listening.wait(60), "the server did not start"
    return server, thread, server.servers[0].sockets[0].getsockname()[1]


@contextmanager
def servers(folder: Path) -> Iterator[Callable[..., Site]]:
    """`start(attach=True, **settings)` starts a server; the model is the fake engine behind a gate that is open.

    `start(port=..., ...)` after `site.stop()` is the same server started again.
    """
    running: list[Callable[[], None]] = []

    def start(*, attach: bool = True, engine: FakeEngine | None = None, port: int = 0, **given: object) -> Site:
        values = {"outputs": folder / "outputs", "model": "fake", "min_free_mb": 0, **given}
        settings = Settings(**values)  # type: ignore[arg-type]
        gate = Gate()
        engine = engine or FakeEngine(fault=gate)
        queue = JobQueue(settings)
        server, thread, port = run_server(settings, queue, port)

        def stop() -> None:
            gate.open()
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()

        running.append(stop)
        if attach:
            queue.attach(engine, GpuMutex())
        return Site(f"http://127.0.0.1:{port}", queue, engine, gate, settings, stop)

    yield start
    for stop in running:
        stop()
    release_apps()


def release_apps() -> None:
    """Let the stopped apps go: FastAPI remembers the last 4096 functions that it has looked at, about 200 for each
    page, and each of them holds its app, its page and its queue.
    """
    for remembered in vars(fastapi_models).values():
        if hasattr(remembered, "cache_clear"):
            remembered.cache_clear()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    with servers(tmp_path) as start:
        yield start


@pytest.fixture
def site(serve: Callable[..., Site]) -> Site:
    return serve()


@pytest.fixture(scope="module")  # while it is there no event loop of another test can run
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """`open_page(url, before=None, forgive=None, **context options)`; `before(page)` runs before it goes there.

    At the end no page may have asked another machine or logged an error, but for those with `forgive` in their text.
    """
    complaints: list[str] = []
    contexts = []

    forgiven: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error" and not any(text in message.text for text in forgiven):
            complaints.append(f"console: {message.text}")

    def on_request(request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.hostname != "127.0.0.1":
            complaints.append(f"foreign request: {request.url}")

    def start(
        url: str, before: Callable[[Page], None] | None = None, forgive: str | None = None, **options: object
    ) -> Page:
        forgiven.extend([forgive] if forgive else [])
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, "locale": "en-US", **options})  # type: ignore[arg-type]
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("console", on_console)
        page.on("pageerror", lambda error: complaints.append(f"page error: {error}"))
        page.on("request", on_request)
        page.add_init_script(TELL_BLOCKED)
        if before is not None:
            before(page)
        page.goto(url)
        page.locator("#stage .stage").wait_for()
        return page

    yield start
    for context in contexts:
        context.close()
    assert complaints == []


def fill(page: Page, photo: Path, prompt: str) -> None:
    """Choose a photo and write a prompt, and wait until the page has taken the photo."""
    page.set_input_files("#photo input[type=file]", photo)
    expect(page.locator("#photo img")).to_be_visible()
    page.locator("#prompt textarea").fill(prompt)


def open_advanced(page: Page) -> None:
    """Open the advanced fields and wait until they can be filled.

    The framework builds them when they are first opened and writes their values once more a frame later: what a
    program types before that is gone.
    """
    page.locator("#advanced button").first.click()
    expect(page.locator("#seed input")).to_be_visible()
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))")
