"""Mounts the page at `/`, after every other route, with the framework's open doors closed.

A mounted Gradio does not check the paths of uploaded files unless `has_launched` is set, which only `launch()` does;
without it any caller could read any file of this machine through any event.
"""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import gradio as gr
import yaml
from fastapi import FastAPI
from gradio.blocks import BlocksConfig
from gradio.routes import App
from starlette.middleware import Middleware
from starlette.routing import Mount

from i2v.settings import Settings
from i2v.ui.mount.assets import FromMemory
from i2v.ui.mount.events import note_what_components_refuse
from i2v.ui.mount.gate import Gate
from i2v.ui.mount.upload_total import TOTAL_MB, UploadTotal
from i2v.ui.mount.uploads import take_folder
from i2v.ui.mount.welcome import Welcome
from i2v.ui.page import build
from i2v.ui.shortcuts import sentences
from i2v.ui.texts import translations

if TYPE_CHECKING:
    from i2v.jobs.queue import JobQueue

STYLE = Path(__file__).with_name("style.css")
THEME = Path(__file__).with_name("theme.yaml")
SESSIONS = 1000  # visitors of whom the framework keeps what it showed, 24 kB each; a tab's own values are in the tab
NOBODY_COMES_S = 3600.0  # between two looks into the framework's queue
ICON = Path(__file__).with_name("icon.svg")
HEAD = (  # for screen readers: the texts are English for every other language
    "<script>document.documentElement.lang = /^zh/i.test(navigator.language) ? navigator.language : 'en'</script>"
)


def mount_ui(app: FastAPI, settings: Settings, queue: "JobQueue") -> FastAPI:
    """The app with the page at `/`. Call it last: a mount at `/` takes every path that no earlier route has taken."""
    largest = int(settings.max_body_mb * 1_000_000)
    uploads = UploadTotal(take_folder(), max(TOTAL_MB * 1_000_000, 4 * largest))
    page = build(app.state.context)
    page.blocks.state_session_capacity = SESSIONS
    blocks, words = page.blocks, translations(sentences(settings))
    app = gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        server_name=settings.host,
        server_port=settings.port,
        footer_links=[],  # its settings change half of the language: sentences follow the browser
        run_history=False,
        show_error=False,
        max_file_size=largest,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        i18n=words,
        theme=theme(),
        css_paths=[STYLE],
        head=HEAD,
        favicon_path=str(ICON),
        allowed_paths=[],
        blocked_paths=[str(settings.outputs.resolve())],
    )
    blocks.has_launched = True
    mount = cast(Mount, app.router.routes[-1])
    mount.app = Gate(cast(App, mount.app), uploads, largest)
    note_what_components_refuse(blocks)
    keep_sessions_light(blocks)
    rest_the_queue(blocks)
    check_closed(blocks)
    remember_signatures(blocks)
    # Inside of the layers that guard and stamp.
    welcome = Welcome(blocks, page.form, page.controls, (page.model, page.greeted), words, queue)
    app.user_middleware.append(Middleware(FromMemory, written_for=welcome))
    return app


def check_closed(blocks: gr.Blocks) -> None:
    """Refuse to serve a page that would read files for anyone who names them."""
    if not blocks.has_launched or blocks.show_error or blocks.max_file_size is None or blocks.allowed_paths:
        raise RuntimeError("the web page would serve files that nobody uploaded; it is not mounted")


class _Undescribed(BlocksConfig):
    """The page's components, of which a visitor's session keeps no description."""

    def __copy__(self) -> BlocksConfig:
        copied = super().__copy__()
        copied.config_for_block = lambda *_: {}
        return copied


def keep_sessions_light(blocks: gr.Blocks) -> None:
    """The framework describes each component anew for each visitor, for links that bring a session back
    (`gr.DeepLinkButton`). That is half of what a visit's events cost, and this page has no such links.
    """
    blocks.default_config.__class__ = _Undescribed


def rest_the_queue(blocks: gr.Blocks) -> None:
    """Nothing enters the framework's queue: no event uses it and the gate is closed before it. It looked a thousand
    times a second whether something had, a twentieth of a core on an idle server.
    """
    blocks._queue.sleep_when_free = blocks._queue.progress_update_sleep_when_free = NOBODY_COMES_S


def remember_signatures(blocks: gr.Blocks) -> None:
    """Keep each component's signature with its constructor, where `inspect` looks for one first.

    The framework reads it anew for every component of the page at each visit and for each output of every event, which
    took two fifths of what a visit costs.
    """
    constructors = {vars(kind).get("__init__") for block in blocks.blocks.values() for kind in type(block).__mro__}
    for constructor in constructors:
        if inspect.isfunction(constructor):
            plain: Any = inspect.unwrap(constructor)
            plain.__signature__ = inspect.signature(plain)


def theme() -> gr.themes.Base:
    """The values of `theme.yaml`, and fonts of the reader's own system: the framework's own come from the internet."""
    found = yaml.safe_load(THEME.read_text(encoding="utf-8"))
    dark = {f"{name}_dark": value for name, value in (found["both"] | found["dark"]).items()}
    sans = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Noto Sans CJK SC", "sans-serif"]
    return gr.themes.Soft(
        primary_hue="indigo",
        secondary_hue="indigo",
        neutral_hue="slate",
        radius_size="lg",
        font=sans,
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
    ).set(**found["both"], **found["light"], **dark)
