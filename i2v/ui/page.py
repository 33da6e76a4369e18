"""The page as Blocks: what stands where, and which event calls which function."""

from dataclasses import dataclass
from typing import Any, Self

import gradio as gr

from i2v.jobs.queue import JobQueue
from i2v.settings import Settings
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

# The link is read once: at a reload it would win over what this browser has looked at since.
JOB_OF_LINK = """(kept, linked) => {
  const address = new URL(window.location), job = address.searchParams.get('job');
  if (job) { address.searchParams.delete('job'); window.history.replaceState(window.history.state, '', address); }
  return [kept, job];
}"""

# The framework loads the page anew when a lost server is back: what was typed waits in this tab. Without the name of
# the model in its first place the form was not ready, and there is nothing to keep. Where another model is there now,
# the fields that are made ready for a model are its own.
KEEP_FORM = "(...form) => { if (form[0]) sessionStorage.setItem('i2v-form', JSON.stringify(form)); }"
OF_A_MODEL = [0, *(Form.names().index(name) for name in GREETED)]  # places of them; the photo is not kept
RESTORE_FORM = f"""(...form) => {{
  const kept = JSON.parse(sessionStorage.getItem('i2v-form') || '[]');
  if (kept.length !== form.length) return form;
  if (form[0] && kept[0] !== form[0]) for (const place of {OF_A_MODEL}) kept[place] = form[place];
  return kept;
}}"""

ONE_PAGE_MORE = f"(count) => String(Number(count) + {history.PAGE})"

# On a phone the stage is below the form: go there once the job is on its way, which the page learns a moment later.
SHOW_STAGE = """async () => {
  if (window.innerWidth >= 720) return;
  const stage = document.querySelector('#stage'), refused = () => document.querySelector('#notice .bad');
  for (let i = 0; i < 30 && !stage.querySelector('.stage-running') && !refused(); i++)
    await new Promise((done) => setTimeout(done, 100));
  if (!refused()) stage.scrollIntoView();
}"""


@dataclass(frozen=True, slots=True)
class Display:
    """What shows the state of things, and what can be done with a finished video."""

    banner: gr.HTML
    html: gr.HTML
    cancel: gr.Button
    line: gr.HTML
    timer: gr.Timer
    reuse: gr.Button
    extend: gr.Button
    delete: gr.Button
    confirm: gr.Row
    delete_yes: gr.Button
    delete_no: gr.Button
    notice: gr.HTML

    def watched(self) -> list[Any]:
        """In the order of `desk.LOOKED`, without what the tab remembers."""
        return [self.banner, self.html, self.line, self.timer]


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
    def build(cls) -> Self:
        def text(value: str = "") -> gr.Textbox:
            return gr.Textbox(value, visible="hidden")

        kept = gr.BrowserState(None, storage_key="i2v-job", secret="i2v")  # noqa: S106 - hides nothing: a job id
        return cls(kept, text(), text(), text(), text(), text(), text(str(history.PAGE)))


@dataclass(frozen=True, slots=True)
class Page:
    """The whole page, unmounted, and the parts of it that a model's arrival changes."""

    blocks: gr.Blocks
    form: Form
    controls: Controls
    model: gr.Textbox
    greeted: gr.Textbox


def build(settings: Settings, queue: JobQueue) -> Page:
    """Draw everything and connect it."""
    with gr.Blocks(title="i2v", analytics_enabled=False, delete_cache=(3600, 86400), fill_width=True) as blocks:
        memory = TabValues.build()
        linked = gr.Textbox(visible=False)
        timer = gr.Timer(IDLE_S)
        desk = Desk(settings, queue)
        banner = gr.HTML(elem_id="banner")
        with gr.Tabs(selected="create", elem_id="tabs") as tabs:
            with gr.Tab(label("tab_create"), id="create"), gr.Row(elem_id="create", equal_height=False):
                with gr.Column(scale=5, min_width=320, elem_id="form"):
                    form, controls = build_form(settings.limits, settings.default_preset)
                    with gr.Column(elem_id="actions"):
                        notice = gr.HTML(elem_id="notice")
                        hint = gr.HTML(elem_id="hint")
                        with gr.Row(elem_id="buttons"):
                            generate = gr.Button(
                                label("generate"), variant="primary", size="lg", elem_id="generate", scale=2
                            )
                            sweep = gr.Button(label("sweep"), size="lg", elem_id="sweep", scale=1)
                with gr.Column(scale=7, min_width=320, elem_id="show"):
                    stage = _build_stage(banner, timer, notice)
            foresee: dict[str, Any] = {
                "fn": with_request(desk.foresee),
                "inputs": [memory.photo_size, *form.components()],
                "outputs": [controls.crop, hint],
                **RAW,
            }
            with gr.Tab(label("tab_history"), id="history") as history_tab:
                _build_history(Results(settings, queue), memory, form, stage, tabs, history_tab, foresee)
            with gr.Tab(label("tab_system"), id="system") as system_tab:
                _build_system(System(settings, queue), form, tabs, system_tab)
        greeted = [getattr(form, name) for name in GREETED]
        shown = [memory.seen, memory.model, memory.pace, *stage.watched()]
        kept = [memory.greeted, *form.components()[1:]]
        blocks.load(fn=None, js=RESTORE_FORM, inputs=kept, outputs=kept)
        gr.on([part.change for part in kept], fn=None, js=KEEP_FORM, inputs=kept)
        blocks.load(desk.open, [memory.job_id, linked], [memory.job_id, *shown], js=JOB_OF_LINK, **EVENT)
        memory.model.change(
            with_request(desk.greet),
            [memory.model, memory.greeted, form.prompt, *greeted],
            [memory.greeted, controls.examples, controls.prompt_notice, controls.quality, *greeted],
            **RAW,  # the form may hold a guidance that the model's slider, the same for all tabs, does not take
        )
        timer.tick(desk.look, [memory.job_id, memory.seen], shown, **EVENT)
        generate.click(with_request(desk.submit), form.components(), [memory.job_id, notice], **RAW).then(
            fn=None, js=SHOW_STAGE
        )
        sweep.click(with_request(desk.sweep), form.components(), [memory.job_id, notice], **RAW).then(
            fn=None, js=SHOW_STAGE
        )
        stage.html.click(desk.pick, [form.steps, memory.job_id], [memory.job_id, notice], **EVENT)
        stage.cancel.click(desk.cancel, memory.job_id, notice, **EVENT)
        memory.job_id.change(desk.look, [memory.job_id, memory.seen], shown, **EVENT)
        _wire_form(desk, form, controls, memory, notice, foresee)
        _wire_result(Results(settings, queue), form, stage, memory, foresee)
    return Page(blocks, form, controls, memory.model, memory.greeted)


def _build_stage(banner: gr.HTML, timer: gr.Timer, notice: gr.HTML) -> Display:
    html = gr.HTML(elem_id="stage", js_on_load=history.OPEN_CARD)
    with gr.Row(elem_id="cancel-row"):  # seen, as the next one, in the states that style.css names
        cancel = gr.Button(label("cancel"), variant="stop", elem_id="cancel", scale=0, min_width=140)
    with gr.Row(elem_id="after"):
        reuse = gr.Button(label("what_next"), size="sm", elem_id="reuse", min_width=120)
        extend = gr.Button(label("extend"), size="sm", elem_id="extend", min_width=120)
        delete = gr.Button(label("delete"), size="sm", elem_id="delete", min_width=80)
    with gr.Row(visible=False, elem_id="confirm") as confirm:
        yes = gr.Button(label("delete_yes"), variant="stop", size="sm", elem_id="delete-yes")
        no = gr.Button(label("delete_no"), size="sm", elem_id="delete-no")
    line = gr.HTML(elem_id="line", js_on_load=history.OPEN_CARD)
    return Display(banner, html, cancel, line, timer, reuse, extend, delete, confirm, yes, no, notice)


def _wire_form(
    desk: Desk, form: Form, controls: Controls, memory: TabValues, notice: gr.HTML, foresee: dict[str, Any]
) -> None:
    # What a person changes of the job's weight. Events that fill the form ask for the estimate themselves: each field
    # would ask once more.
    weighed = [form.fit, form.num_frames, form.steps, form.guidance_scale, form.preset]
    changes = [form.size.change, memory.pace.change, *(field.input for field in weighed)]
    gr.on(changes, trigger_mode="always_last", **foresee)
    form.photo.change(desk.look_at_photo, form.photo, [memory.photo_size, controls.photo_notice], **RAW).then(**foresee)
    form.prompt.change(desk.about, form.prompt, controls.prompt_notice, trigger_mode="always_last", **EVENT)
    # What was said of a missing photo or prompt is over once there is one; the browser does that by itself.
    gr.on([form.photo.input, form.photo.upload, form.prompt.input], fn=None, js="() => ''", outputs=notice)
    controls.quality.input(desk.quality, controls.quality, form.steps, **EVENT).then(**foresee)
    form.steps.change(desk.quality_of, form.steps, controls.quality, **EVENT)
    controls.examples.click(lambda row: row[0], controls.examples, form.prompt, **EVENT)
    seed = controls.seed
    seed.new.click(desk.new_seed, None, form.seed, **EVENT)
    seed.same.click(desk.same_seed, memory.job_id, form.seed, **EVENT)
    seed.lock.input(desk.lock, [seed.lock, memory.job_id], form.seed, **EVENT)
    form.seed.change(desk.locked, form.seed, seed.lock, **EVENT)


def _wire_result(results: Results, form: Form, stage: Display, memory: TabValues, foresee: dict[str, Any]) -> None:
    stage.reuse.click(results.reuse, memory.job_id, [stage.notice, *form.components()], **EVENT).then(**foresee)
    stage.extend.click(results.extend, memory.job_id, [memory.job_id, stage.notice], **EVENT)
    stage.delete.click(lambda: gr.Row(visible=True), None, stage.confirm, **EVENT)
    stage.delete_no.click(lambda: gr.Row(visible=False), None, stage.confirm, **EVENT)
    stage.delete_yes.click(results.delete, memory.job_id, [memory.job_id, stage.notice], **EVENT).then(
        lambda: gr.Row(visible=False), None, stage.confirm, **EVENT
    )
    stage.line.click(job_of_card, None, memory.job_id, **EVENT)


def _build_history(
    results: Results, memory: TabValues, form: Form, stage: Display, tabs: gr.Tabs, tab: gr.Tab, foresee: dict[str, Any]
) -> None:
    with gr.Row(equal_height=True):
        search = gr.Textbox(label=label("history_search"), elem_id="search", scale=3, type="text")
        restore = gr.File(
            label=label("restore"), file_types=[".mp4"], file_count="single", height=120, elem_id="restore", scale=2
        )
    notice = gr.HTML(elem_id="history-notice")
    cards = gr.HTML(elem_id="cards", js_on_load=history.OPEN_CARD)
    more = gr.Button(label("history_more"), visible=False, elem_id="more")
    listed: dict[str, Any] = {
        "fn": results.cards,
        "inputs": [search, memory.count],
        "outputs": [cards, more],
        **EVENT,
    }
    tab.select(**listed)
    search.change(trigger_mode="always_last", **listed)
    more.click(fn=None, js=ONE_PAGE_MORE, inputs=memory.count, outputs=memory.count).then(**listed)
    cards.click(results.card, None, [memory.job_id, tabs, notice], **EVENT).then(**listed)
    filled = [tabs, notice, stage.notice, *form.components()]
    restore.change(results.restore, restore, filled, **RAW).then(**foresee)


def _build_system(system: System, form: Form, tabs: gr.Tabs, tab: gr.Tab) -> None:
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


def is_system(event: gr.SelectData) -> gr.Timer:
    """The clock of the system tab runs while that tab is open."""
    return gr.Timer(active=event.index == SYSTEM_TAB)


def job_of_card(event: gr.EventData) -> Any:
    """The job whose card was clicked."""
    job_id = event._data.get("job") if isinstance(event._data, dict) else None
    return job_id if isinstance(job_id, str) else gr.skip()


def with_request(function: Any) -> Any:
    """Gradio hands `gr.Request` to a parameter of that type; functions of many values take it as the last one."""

    def called(request: gr.Request, *values: Any) -> Any:
        return function(*values, request)

    return called
