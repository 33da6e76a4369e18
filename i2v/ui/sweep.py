"""The seed sweep: the form's job four times at few steps with four seeds; the one that is liked is run in full."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from i2v.errors import I2VError
from i2v.request import MAX_SEED, GenerateRequest, PublicLimits, draw_seed
from i2v.ui import form, hint
from i2v.ui.desk import Desk, caller_of, find, told
from i2v.ui.shown import DRAFTS, Shown
from i2v.ui.texts import language, speaker


def drafts(request: GenerateRequest, limits: PublicLimits) -> list[GenerateRequest]:
    """Four of the fewest steps; a chosen seed and the three after it, or four that are drawn."""
    first = request.seed
    seeds = [draw_seed() if first is None else (first + i) % (MAX_SEED + 1) for i in range(DRAFTS)]
    steps = min(request.steps, limits.steps[0])
    return [request.model_copy(update={"seed": seed, "steps": steps}) for seed in seeds]


@dataclass(frozen=True, slots=True)
class Sweep:
    """Functions of events, as in `Desk`."""

    desk: Desk

    def start(self, upload: Any, *rest: Any) -> tuple[Any, str]:
        """Queue four drafts of the form's job. -> what is shown, notice"""
        *values, request = rest
        say = speaker(language(request))
        queued: list[str] = []
        notice = ""
        try:
            job_request, photo = self.desk.read(say, upload, values)
            for draft in drafts(job_request, self.desk.settings.limits):
                job = self.desk.queue.submit(draft, photo, door="ui", caller=caller_of(request))
                queued.append(job.id)
        except I2VError as error:  # a full queue may have taken some of them
            notice = hint.notice(told(say, error))
        return Shown(sheet=tuple(queued)).sheet_text() if queued else gr.skip(), notice

    def pick(self, steps: Any, shown: str | None, event: gr.EventData, request: gr.Request) -> tuple[Any, Any]:
        """A click on the stage: look at one of the four, at all again, or run one in full. -> what is shown, notice"""
        data = event._data if isinstance(event._data, dict) else {}
        if isinstance(data.get("job"), str):
            return data["job"], gr.skip()
        say = speaker(language(request))
        try:
            draft = find(self.desk.queue, data.get("full"))
            if draft is None:
                return gr.skip(), gr.skip()
            full = draft.request.model_copy(update={"steps": self._steps(steps, draft.request)})
            photo = self.desk.queue.input_image(draft.id)
            job = self.desk.queue.submit(full, photo, door="ui", caller=caller_of(request))
        except I2VError as error:
            return gr.skip(), hint.notice(told(say, error))
        return Shown.read(shown).one(job.id), ""

    def _steps(self, chosen: Any, draft: GenerateRequest) -> int:
        """The form's steps; where those are no more than the draft's, those of the standard quality."""
        low, high = self.desk.settings.limits.steps
        steps = min(high, max(low, int(chosen))) if isinstance(chosen, int | float) else low
        return steps if steps > draft.steps else form.quality_steps(self.desk.queue.model, "standard")
