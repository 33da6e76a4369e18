"""What can be done with a finished video: reuse its settings, extend it, delete it, find it again, restore it."""

from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image

from i2v.errors import I2VError, InvalidRequest
from i2v.jobs.queue import JobQueue
from i2v.settings import Settings
from i2v.ui import create, hint, history, system
from i2v.ui.texts import Say, language, speaker
from i2v.ui.watch import caller_of, find, told
from i2v.video import read_frames


@dataclass(frozen=True, slots=True)
class Shelf:
    """Functions of events, as in `Desk`."""

    settings: Settings
    queue: JobQueue

    def reuse(self, job_id: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Put the shown job's photo and settings into the form. -> notice, fields"""
        say = speaker(language(request))
        job = find(self.queue, job_id)
        if job is None:
            return _unchanged(hint.notice(say("nothing_chosen")))
        photo = self.queue.input_image(job.id)
        return hint.notice(say("settings_taken"), "good"), photo, *create.values_of(job.request)

    def extend(self, job_id: str | None, request: gr.Request) -> tuple[Any, str]:
        """Go on from the last frame of the shown video, with its own settings and a new seed. -> job id, notice"""
        say = speaker(language(request))
        job = find(self.queue, job_id)
        try:
            if job is None or job.result is None:
                raise InvalidRequest(say("nothing_chosen"))
            last = Image.fromarray(read_frames(self.queue.video_path(job))[-1])
            again = job.request.model_copy(update={"seed": None})
            longer = self.queue.submit(again, last, door="ui", caller=caller_of(request), extends=job.id)
        except I2VError as error:
            return gr.skip(), hint.notice(told(say, error))
        return longer.id, ""

    def delete(self, job_id: str | None, request: gr.Request) -> tuple[Any, str]:
        """Remove the shown video for good. -> job id, notice"""
        say = speaker(language(request))
        try:
            self.queue.delete(job_id or "")
        except I2VError as error:
            return gr.skip(), hint.notice(told(say, error))
        return None, hint.notice(say("deleted"), "good")

    def cards(self, search: str, count: int, request: gr.Request) -> tuple[str, Any]:
        """-> cards, the button that shows more"""
        html, more = history.cards(speaker(language(request)), self.queue, search, count)
        return html, gr.Button(visible=more)

    def restore(self, upload: Any, request: gr.Request) -> tuple[Any, ...]:
        """Read the settings back from an MP4. -> tabs, notice of this tab, notice of the form, fields"""
        say = speaker(language(request))
        if upload is None:
            return gr.skip(), "", *_unchanged(gr.skip())
        try:
            found, job_id = history.settings_of(upload, say)
        except I2VError as error:
            return gr.skip(), hint.notice(told(say, error)), *_unchanged(gr.skip())
        job = find(self.queue, job_id)
        photo = gr.skip() if job is None else self.queue.input_image(job.id)
        words = say("restore_no_photo" if job is None else "restore_done")
        return gr.Tabs(selected="create"), "", hint.notice(words, "good"), photo, *create.values_of(found)

    def system(self, *values: Any) -> tuple[str, str, str, str]:
        """-> facts, curl, requests, openai"""
        *fields, request = values
        say = speaker(language(request))
        named = dict(zip(create.Form.names()[1:], fields, strict=True))
        facts = system.facts(say, self.settings, self.queue)
        return facts, *self._examples(say, named, str(request.request.base_url).rstrip("/"))

    def _examples(self, say: Say, named: dict[str, Any], base: str) -> tuple[str, str, str]:
        named = {**named, "prompt": str(named["prompt"] or "").strip() or "the scene at sunset"}
        try:
            width, height = create.size_of(named, (512, 512), self.settings.limits, self.queue.model)
            request = create.request_of(named, width, height)
        except I2VError as error:
            words = f"# {told(say, error)}"
            return words, words, words
        return system.curl(base, request), system.positional(base, request), system.openai(base, request)


def _unchanged(notice: Any) -> tuple[Any, ...]:
    return notice, *[gr.skip()] * len(create.Form.names())
