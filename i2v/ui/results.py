"""What can be done with a finished video: find it again, take its settings into the form, delete it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from i2v.errors import Conflict, I2VError
from i2v.settings import Settings
from i2v.ui import form, hint, history
from i2v.ui.sweep import Shown
from i2v.ui.texts import PageRefusal, Say, language, told

if TYPE_CHECKING:
    from i2v.jobs.queue import JobQueue


@dataclass(frozen=True, slots=True)
class Results:
    """Functions of events, as in `i2v.ui.desk.Desk`."""

    settings: Settings
    queue: "JobQueue"

    def reuse(self, job_id: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Put the shown job's photo and settings into the form. -> notice, fields"""
        say = Say(language(request))
        try:
            job = history.find(self.queue, job_id)
            if job is None:
                raise PageRefusal(say("nothing_chosen"))
            photo = self.queue.input_image(job.id)
        except I2VError as error:
            return _unchanged(hint.notice(told(say, error)))
        return hint.notice(say("settings_taken"), "good"), photo, *form.values_of(job.request, self.queue.model)

    def delete(self, shown: str | None, request: gr.Request) -> tuple[Any, str]:
        """Remove the shown video for good, and go back to the other drafts of its sheet. -> what is shown, notice"""
        what = Shown.read(shown)
        refusal = self._delete(what.job or "", Say(language(request)))
        if refusal:
            return gr.skip(), refusal
        rest = tuple(draft for draft in what.sheet if draft != what.job)
        left = Shown(sheet=rest).sheet_text() if rest else None
        return left, hint.notice(Say(language(request))("deleted"), "good")

    def _delete(self, job_id: str, say: Say) -> str:
        """Why the job cannot be deleted, as a notice; empty once it is gone. One that runs or waits stays."""
        try:
            if not self.queue.get(job_id).is_final:
                raise Conflict(say("delete_unfinished"))
            self.queue.delete(job_id)
        except I2VError as error:
            return hint.notice(told(say, error))
        return ""

    def card(self, event: gr.EventData, request: gr.Request) -> tuple[Any, Any, Any]:
        """A click on a card: open it, or delete it after the second click. -> job id, tabs, notice"""
        data = event._data if isinstance(event._data, dict) else {}
        opened, removed = data.get("job"), data.get("remove")
        if isinstance(removed, str):
            say = Say(language(request))
            refusal = self._delete(removed, say)
            return gr.skip(), gr.skip(), refusal or hint.notice(say("deleted"), "good")
        if isinstance(opened, str):
            return opened, gr.Tabs(selected="create"), ""
        return gr.skip(), gr.skip(), gr.skip()

    def cards(self, search: str | None, count: str, request: gr.Request) -> tuple[str, Any]:
        """-> cards, the button that shows more"""
        say = Say(language(request))
        try:
            html, more = history.cards(say, self.queue, (search or "").strip(), history.count_of(count))
        except I2VError as error:
            return hint.notice(told(say, error)), gr.skip()
        return html, gr.Button(visible=more)

    def restore(self, upload: Any, request: gr.Request) -> tuple[Any, ...]:
        """Read the settings back from an MP4. -> notice of this tab, tabs, notice of the form, fields"""
        say = Say(language(request))
        if upload is None:
            return "", gr.skip(), *_unchanged(gr.skip())
        try:
            found, job_id = history.settings_of(upload, say)
            job = history.find(self.queue, job_id)
            photo = gr.skip() if job is None else self.queue.input_image(job.id)
        except I2VError as error:
            return hint.notice(told(say, error)), gr.skip(), *_unchanged(gr.skip())
        words = say("restore_no_photo" if job is None else "restore_done")
        return (
            "",
            gr.Tabs(selected="create"),
            hint.notice(words, "good"),
            photo,
            *form.values_of(found, self.queue.model),
        )


def _unchanged(notice: Any) -> tuple[Any, ...]:
    return notice, *[gr.skip()] * len(form.Form.names())
