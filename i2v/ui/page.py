"""The page as Blocks: what stands where, and which event calls which function of the desk."""

from functools import partial
from typing import Any

import gradio as gr

from i2v.jobs.queue import JobQueue
from i2v.settings import Settings
from i2v.ui.create import Controls, Form, build_form
from i2v.ui.texts import label
from i2v.ui.watch import IDLE_S, Desk

# Events go straight to their function: they are short, and Gradio's own queue would be a second one beside ours.
EVENT: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

JOB_OF_LINK = "(kept, linked) => [kept, new URLSearchParams(window.location.search).get('job')]"


def build(settings: Settings, queue: JobQueue) -> gr.Blocks:
    """The whole page, unmounted."""
    desk = Desk(settings, queue)
    with gr.Blocks(title="i2v", analytics_enabled=False, delete_cache=(3600, 86400), fill_width=True) as blocks:
        job_id = gr.BrowserState(None, storage_key="i2v-job", secret="i2v")  # noqa: S106 - hides nothing: a job id
        linked = gr.Textbox(visible=False)
        seen = gr.State({})
        photo_size = gr.State(None)
        timer = gr.Timer(IDLE_S)
        gr.HTML("<header class='top'><h1>i2v</h1></header>", elem_id="top")
        banner = gr.HTML(elem_id="banner")
        with gr.Row(elem_id="create", equal_height=False):
            with gr.Column(scale=5, min_width=320):
                form, controls = build_form(settings.limits)
                crop = gr.HTML(elem_id="crop")
                hint = gr.HTML(elem_id="hint")
                notice = gr.HTML(elem_id="notice")
                with gr.Row(elem_id="actions"):
                    generate = gr.Button(label("generate"), variant="primary", size="lg", elem_id="generate", scale=3)
                    cancel = gr.Button(
                        label("cancel"), variant="stop", size="lg", visible=False, elem_id="cancel", scale=1
                    )
            with gr.Column(scale=7, min_width=320):
                stage = gr.HTML(elem_id="stage")

        watched = [banner, stage, cancel, timer, seen]
        greeted = [controls.examples, form.size, form.num_frames, form.fps, form.steps, form.guidance_scale]
        blocks.load(desk.open, [job_id, linked], [job_id, *watched, *greeted], js=JOB_OF_LINK, **EVENT)
        timer.tick(desk.look, [job_id, seen], [*watched, *greeted], **EVENT)
        generate.click(
            with_request(desk.submit),
            [*form.components(), seen],
            [job_id, notice, stage, cancel, timer, seen],
            **EVENT,
        )
        cancel.click(desk.cancel, [job_id, seen], [notice, stage, cancel, seen], **EVENT)
        _wire_form(desk, form, controls, job_id, photo_size, crop, hint, notice)
    return blocks


def _wire_form(
    desk: Desk,
    form: Form,
    controls: Controls,
    job_id: gr.BrowserState,
    photo_size: gr.State,
    crop: gr.HTML,
    hint: gr.HTML,
    notice: gr.HTML,
) -> None:
    fields = form.components()
    foresee = partial(gr.on, fn=with_request(desk.foresee), inputs=[photo_size, *fields], outputs=[crop, hint])
    foresee([field.change for field in fields[1:]], trigger_mode="always_last", **EVENT)
    form.photo.change(desk.look_at_photo, form.photo, [photo_size, notice], **EVENT).then(
        with_request(desk.foresee), [photo_size, *fields], [crop, hint], **EVENT
    )
    controls.quality.input(desk.quality, controls.quality, form.steps, **EVENT)
    controls.examples.click(lambda row: row[0], controls.examples, form.prompt, **EVENT)
    controls.new_seed.click(desk.new_seed, None, form.seed, **EVENT)
    controls.same_seed.click(desk.same_seed, job_id, form.seed, **EVENT)


def with_request(function: Any) -> Any:
    """Gradio hands `gr.Request` to a parameter of that type; functions of many values take it as the last one."""

    def called(request: gr.Request, *values: Any) -> Any:
        return function(*values, request)

    return called
