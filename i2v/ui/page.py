"""The page as Blocks: what stands where, and which event calls which function."""

import asyncio
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import gradio as gr
from starlette.concurrency import run_in_threadpool

from i2v.server.context import Context
from i2v.ui import history
from i2v.ui.desk import IDLE_S, Desk
from i2v.ui.form import GREETED, Controls, Form, build_form
from i2v.ui.results import Results
from i2v.ui.system import System
from i2v.ui.texts import label

# Events go straight to their function: they are short, and Gradio's own queue would be a second one beside ours.
EVENT: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

# Events with an uploaded file take raw values: see `i2v.ui.form`.
RAW: dict[str, Any] = {**EVENT, "preprocess": False}

SYSTEM_S = 2.0  # seconds between two looks at the system's figures
SYSTEM_TAB = 2  # its place among the tabs

# The link is read once: after a reload the page shows what this browser showed last, not the link's job again.
JOB_OF_LINK = """(kept, linked) => {
  const address = new URL(window.location), job = address.searchParams.get('job');
  if (job) { address.searchParams.delete('job'); window.history.replaceState(window.history.state, '', address); }
  return [kept, job];
}"""

# When a server that was away is back the framework reloads the page, so what was typed is kept in this browser tab. The
# first value is the name of the model: while it is empty the form is not ready, and nothing is kept. If another model
# is there after the reload, the fields that depend on the model hold that model's values.
KEEP_FORM = "(...form) => { if (form[0]) sessionStorage.setItem('i2v-form', JSON.stringify(form)); }"
OF_A_MODEL = [0, *(Form.names().index(name) for name in GREETED)]  # places of them; the photo is not kept
RESTORE_FORM = f"""(...form) => {{
  const kept = JSON.parse(sessionStorage.getItem('i2v-form') || '[]');
  if (kept.length !== form.length) return form;
  if (form[0] && kept[0] !== form[0]) for (const place of {OF_A_MODEL}) kept[place] = form[place];
  return kept;
}}"""

ONE_PAGE_MORE = f"(count) => String(Number(count) + {history.PAGE})"

# On a phone the stage is below the form: scroll to it when the job has started, which the page learns a moment later.
SHOW_STAGE = """async () => {
  if (window.innerWidth >= 720) return;
  const stage = document.querySelector('#stage'), refused = () => document.querySelector('#notice .bad');
  for (let i = 0; i < 30 && !stage.querySelector('.stage-running') && !refused(); i++)
    await new Promise((done) => setTimeout(done, 100));
  if (!refused()) stage.scrollIntoView();
}"""


@dataclass(frozen=True, slots=True)
class TabValues:
    """What a tab remembers: texts that the browser holds and sends along, so that the server keeps nothing for a tab.

    The job id also stays in the browser when the tab is closed, and a reload comes back to it. With one `gr.State`
    among them the framework would hold a stream open for each tab, beside the polling.
    """

    job_id: gr.BrowserState
    seen: gr.Textbox  # of `Desk.look`
    model: gr.Textbox  # the name of the one that is there
    greeted: gr.Textbox  # the name of the one that the form was made ready for
    pace: gr.Textbox  # of this machine
    photo_size: gr.Textbox
    count: gr.Textbox  # of the cards in the history

    @classmethod
    def draw(cls) -> Self:
        def text(value: str = "") -> gr.Textbox:
            return gr.Textbox(value, visible="hidden")

        kept = gr.BrowserState(None, storage_key="i2v-job", secret="i2v")  # noqa: S106 - hides nothing: a job id
        return cls(kept, text(), text(), text(), text(), text(), text(str(history.PAGE)))


@dataclass(frozen=True, slots=True)
class Actions:
    """Below the form: what starts a job, and what is said about it before."""

    notice: gr.HTML
    hint: gr.HTML
    generate: gr.Button
    sweep: gr.Button

    @classmethod
    def draw(cls) -> Self:
        with gr.Column(elem_id="actions"):
            notice, hint = gr.HTML(elem_id="notice"), gr.HTML(elem_id="hint")
            with gr.Row(elem_id="buttons"):
                generate = gr.Button(label("generate"), variant="primary", size="lg", elem_id="generate", scale=2)
                sweep = gr.Button(label("sweep"), size="lg", elem_id="sweep", scale=1)
        return cls(notice, hint, generate, sweep)


@dataclass(frozen=True, slots=True)
class StageParts:
    """The right half: what is shown, and what can be done with a finished video."""

    stage: gr.HTML
    cancel: gr.Button
    reuse: gr.Button
    extend: gr.Button
    delete: gr.Button
    confirm: gr.Row
    delete_yes: gr.Button
    delete_no: gr.Button
    line: gr.HTML

    @classmethod
    def draw(cls) -> Self:
        stage = gr.HTML(elem_id="stage", js_on_load=history.OPEN_CARD)
        with gr.Row(elem_id="cancel-row"):  # style.css names the states in which this row and the next one are seen
            cancel = gr.Button(label("cancel"), variant="stop", elem_id="cancel", scale=0, min_width=140)
        with gr.Row(elem_id="after"):
            reuse = gr.Button(label("what_next"), size="sm", elem_id="reuse", min_width=120)
            extend = gr.Button(label("extend"), size="sm", elem_id="extend", min_width=120)
            delete = gr.Button(label("delete"), size="sm", elem_id="delete", min_width=80)
        with gr.Row(visible=False, elem_id="confirm") as confirm:
            yes = gr.Button(label("delete_yes"), variant="stop", size="sm", elem_id="delete-yes")
            no = gr.Button(label("delete_no"), size="sm", elem_id="delete-no")
        line = gr.HTML(elem_id="line", js_on_load=history.OPEN_CARD)
        return cls(stage, cancel, reuse, extend, delete, confirm, yes, no, line)


@dataclass(frozen=True, slots=True)
class Page:
    """The whole page, unmounted, and the parts of it that a model's arrival changes."""

    blocks: gr.Blocks
    form: Form
    controls: Controls
    model: gr.Textbox
    greeted: gr.Textbox


@dataclass(frozen=True, slots=True)
class Shares:
    """Events that decode a photo or a video wait where the routes that do so wait."""

    context: Context

    def photo(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return in_line(self.context.decoding, function)

    def video(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return in_line(self.context.rendering, function)


def build(context: Context) -> Page:
    """Draw everything and connect it."""
    settings, queue, shares = context.settings, context.queue, Shares(context)
    desk, results = Desk(settings, queue), Results(settings, queue)
    with gr.Blocks(title="i2v", analytics_enabled=False, delete_cache=(3600, 86400), fill_width=True) as blocks:
        tab = TabValues.draw()
        timer = gr.Timer(IDLE_S)
        banner = gr.HTML(elem_id="banner")
        with gr.Tabs(selected="create", elem_id="tabs") as tabs:
            with gr.Tab(label("tab_create"), id="create"), gr.Row(elem_id="create", equal_height=False):
                with gr.Column(scale=5, min_width=320, elem_id="form"):
                    form, controls = build_form(settings.limits, settings.default_preset)
                    actions = Actions.draw()
                with gr.Column(scale=7, min_width=320, elem_id="show"):
                    parts = StageParts.draw()
            foresee: dict[str, Any] = {
                "fn": with_request(desk.foresee),
                "inputs": [tab.photo_size, *form.components()],
                "outputs": [controls.crop, actions.hint],
                **RAW,
            }
            with gr.Tab(label("tab_history"), id="history") as history_tab:
                filled = [tabs, actions.notice, *form.components()]
                _history(shares, results, tab, tabs, filled, history_tab, foresee)
            with gr.Tab(label("tab_system"), id="system") as system_tab:
                _system(System(settings, queue), form, tabs, system_tab)
        _keep_what_is_typed(blocks, tab, form)
        _watch(desk, blocks, tab, [banner, parts.stage, parts.line, timer], timer)
        _greet(desk, tab, form, controls)
        _start_and_stop(shares, desk, tab, form, actions, parts)
        _fill_in(shares, desk, tab, form, controls, actions.notice, foresee)
        _go_on(shares, desk, results, tab, form, parts, actions.notice, foresee)
    return Page(blocks, form, controls, tab.model, tab.greeted)


def _keep_what_is_typed(blocks: gr.Blocks, tab: TabValues, form: Form) -> None:
    kept = [tab.greeted, *form.components()[1:]]
    blocks.load(fn=None, js=RESTORE_FORM, inputs=kept, outputs=kept)
    gr.on([part.change for part in kept], fn=None, js=KEEP_FORM, inputs=kept)


def _watch(desk: Desk, blocks: gr.Blocks, tab: TabValues, places: list[Any], timer: gr.Timer) -> None:
    """The one way in which the page learns of anything: it asks `Desk.look`, by a timer and when what is shown changes.

    `places` in the order of `desk.LOOKED`, without the two that the tab remembers.
    """
    linked = gr.Textbox(visible=False)
    looked = [tab.seen, tab.model, tab.pace, *places]
    blocks.load(desk.open, [tab.job_id, linked], [tab.job_id, *looked], js=JOB_OF_LINK, **EVENT)
    timer.tick(desk.look, [tab.job_id, tab.seen], looked, **EVENT)
    tab.job_id.change(desk.look, [tab.job_id, tab.seen], looked, **EVENT)


def _greet(desk: Desk, tab: TabValues, form: Form, controls: Controls) -> None:
    greeted = [getattr(form, name) for name in GREETED]
    tab.model.change(
        with_request(desk.greet),
        [tab.model, tab.greeted, form.prompt, *greeted],
        [tab.greeted, controls.examples, controls.prompt_notice, controls.quality, *greeted],
        **RAW,  # the form may hold a guidance that the model's slider, the same for all tabs, does not take
    )


def _start_and_stop(
    shares: Shares, desk: Desk, tab: TabValues, form: Form, actions: Actions, parts: StageParts
) -> None:
    for button, start in ((actions.generate, desk.submit), (actions.sweep, desk.sweep)):
        sent = shares.photo(with_request(start))
        started = button.click(sent, form.components(), [tab.job_id, actions.notice], **RAW)
        started.then(fn=None, js=SHOW_STAGE)
    parts.stage.click(shares.photo(desk.pick), [form.steps, tab.job_id], [tab.job_id, actions.notice], **EVENT)
    parts.cancel.click(desk.cancel, tab.job_id, actions.notice, **EVENT)


def _fill_in(
    shares: Shares,
    desk: Desk,
    tab: TabValues,
    form: Form,
    controls: Controls,
    notice: gr.HTML,
    foresee: dict[str, Any],
) -> None:
    # The fields by which a person changes what the job costs. Events that fill in the whole form ask for the estimate
    # once, at their end, and not once for each field.
    weighed = [form.fit, form.num_frames, form.steps, form.guidance_scale, form.preset]
    changes = [form.size.change, tab.pace.change, *(field.input for field in weighed)]
    gr.on(changes, trigger_mode="always_last", **foresee)
    look = shares.photo(desk.look_at_photo)
    form.photo.change(look, form.photo, [tab.photo_size, controls.photo_notice], **RAW).then(**foresee)
    form.prompt.change(desk.about, form.prompt, controls.prompt_notice, trigger_mode="always_last", **EVENT)
    # The message about a missing photo or prompt goes when there is one; the browser does that without the server.
    gr.on([form.photo.input, form.photo.upload, form.prompt.input], fn=None, js="() => ''", outputs=notice)
    controls.quality.input(desk.quality, controls.quality, form.steps, **EVENT).then(**foresee)
    form.steps.change(desk.quality_of, form.steps, controls.quality, **EVENT)
    controls.examples.click(lambda row: row[0], controls.examples, form.prompt, **EVENT)
    seed = controls.seed
    seed.new.click(desk.new_seed, None, form.seed, **EVENT)
    seed.same.click(desk.same_seed, tab.job_id, form.seed, **EVENT)
    seed.lock.input(desk.lock, [seed.lock, tab.job_id], form.seed, **EVENT)
    form.seed.change(desk.locked, form.seed, seed.lock, **EVENT)


def _go_on(
    shares: Shares,
    desk: Desk,
    results: Results,
    tab: TabValues,
    form: Form,
    shown: StageParts,
    notice: gr.HTML,
    foresee: dict[str, Any],
) -> None:
    """What is done with a finished video, and the jobs that run or wait below it."""
    after = [tab.job_id, notice]
    reuse = shares.photo(results.reuse)
    shown.reuse.click(reuse, tab.job_id, [notice, *form.components()], **EVENT).then(**foresee)
    shown.extend.click(shares.video(desk.extend), tab.job_id, after, **EVENT)
    shown.delete.click(lambda: gr.Row(visible=True), None, shown.confirm, **EVENT)
    shown.delete_no.click(lambda: gr.Row(visible=False), None, shown.confirm, **EVENT)
    deleted = shown.delete_yes.click(results.delete, tab.job_id, after, **EVENT)
    deleted.then(lambda: gr.Row(visible=False), None, shown.confirm, **EVENT)
    shown.line.click(job_of_card, None, tab.job_id, **EVENT)


def _history(
    shares: Shares,
    results: Results,
    tab: TabValues,
    tabs: gr.Tabs,
    filled: list[Any],
    history_tab: gr.Tab,
    foresee: dict[str, Any],
) -> None:
    """`filled`: what an MP4's settings change outside of this tab."""
    with gr.Row(equal_height=True):
        search = gr.Textbox(label=label("history_search"), elem_id="search", scale=3, type="text")
        restore = gr.File(
            label=label("restore"), file_types=[".mp4"], file_count="single", height=120, elem_id="restore", scale=2
        )
    notice = gr.HTML(elem_id="history-notice")
    cards = gr.HTML(elem_id="cards", js_on_load=history.OPEN_CARD)
    more = gr.Button(label("history_more"), visible=False, elem_id="more")
    listed: dict[str, Any] = {"fn": results.cards, "inputs": [search, tab.count], "outputs": [cards, more], **EVENT}
    history_tab.select(**listed)
    search.change(trigger_mode="always_last", **listed)
    more.click(fn=None, js=ONE_PAGE_MORE, inputs=tab.count, outputs=tab.count).then(**listed)
    cards.click(results.card, None, [tab.job_id, tabs, notice], **EVENT).then(**listed)
    restore.change(shares.video(results.restore), restore, [notice, *filled], **RAW).then(**foresee)


def _system(system: System, form: Form, tabs: gr.Tabs, tab: gr.Tab) -> None:
    facts = gr.HTML(elem_id="system")
    gr.Markdown(label("sys_api"), elem_id="api-title")
    gr.Markdown(label("sys_api_note"))
    with gr.Tabs(elem_id="api"):
        with gr.Tab("curl"):
            curl = gr.Code(language="shell", show_label=False, interactive=False)
        with gr.Tab("requests"):
            positional = gr.Code(language="python", show_label=False, interactive=False)
        with gr.Tab("openai"):
            openai = gr.Code(language="python", show_label=False, interactive=False)
    tab.select(with_request(system.tab), form.components()[1:], [facts, curl, positional, openai], **RAW)
    timer = gr.Timer(SYSTEM_S, active=False)  # ticks while the tab is open, so that its figures are those of now
    tabs.select(fn=is_system, outputs=timer, **EVENT)
    timer.tick(system.facts, None, facts, **EVENT)


def is_system(event: gr.EventData) -> gr.Timer:
    """The clock of the system tab runs while that tab is open."""
    return gr.Timer(active=isinstance(event._data, dict) and event._data.get("index") == SYSTEM_TAB)


def job_of_card(event: gr.EventData) -> Any:
    """The job whose card was clicked."""
    job_id = event._data.get("job") if isinstance(event._data, dict) else None
    return job_id if isinstance(job_id, str) else gr.skip()


def in_line(place: asyncio.Semaphore, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, run on a thread once `place` is free; until then it takes none of the framework's threads."""

    @functools.wraps(function)
    async def waiting(*values: Any) -> Any:
        async with place:
            return await run_in_threadpool(function, *values)

    return waiting


def with_request(function: Any) -> Any:
    """Gradio hands `gr.Request` to a parameter of that type; functions of many values take it as the last one."""

    def called(request: gr.Request, *values: Any) -> Any:
        return function(*values, request)

    return called
