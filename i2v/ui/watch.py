"""What the events of the create tab do: submit, watch and cancel jobs, through `JobQueue` and nothing else.

Every event is short: nothing here waits for a job. The page asks again by its timer, so a closed tab, a reload and a
restarted server all come back to the same picture.
"""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from i2v.errors import Conflict, I2VError, InvalidRequest, NotFound
from i2v.images import place
from i2v.jobs.job import Job
from i2v.jobs.queue import JobQueue
from i2v.request import draw_seed
from i2v.settings import Settings
from i2v.ui import create, hint, history, stage
from i2v.ui.banner import banner
from i2v.ui.photo import read_photo
from i2v.ui.texts import Say, language, speaker

RUNNING_S = 0.5  # seconds between two looks at a running job
IDLE_S = 3.0

Seen = dict[str, Any]  # what this tab shows already, so that unchanged parts are left alone
WATCHED = ("banner", "stage", "cancel", "after", "line", "pace")
GREETED = 6  # fields that a model's arrival changes


@dataclass(frozen=True, slots=True)
class Desk:
    """The events' functions. Each receives plain values and returns updates in the order that its docstring lists."""

    settings: Settings
    queue: JobQueue

    def submit(self, upload: Any, *rest: Any) -> tuple[Any, Any]:
        """Queue the form's job. -> job id, notice"""
        *values, request = rest
        say = speaker(language(request))
        named = dict(zip(create.Form.names()[1:], values, strict=True))
        try:
            photo = read_photo(upload, self.settings.max_image_pixels)
            if photo is None:
                raise InvalidRequest(say("needs_photo"), field="image")
            job_request = create.read_request(say, named, photo.size, self.settings.limits, self.queue.model)
            job = self.queue.submit(job_request, photo, door="ui", caller=caller_of(request))
        except I2VError as error:
            return gr.skip(), hint.notice(told(say, error))
        return job.id, ""

    def cancel(self, job_id: str | None, request: gr.Request) -> str:
        """Stop the shown job; returns when it has stopped. -> notice"""
        try:
            self.queue.cancel(job_id or "")
        except Conflict:  # it ended by itself meanwhile
            return ""
        except I2VError as error:
            return hint.notice(told(speaker(language(request)), error))
        return ""

    def look(self, job_id: str | None, seen: Seen, request: gr.Request) -> tuple[Any, ...]:
        """What has changed since `seen`. -> seen, `WATCHED`, then the fields of `greeting`"""
        say = speaker(language(request))
        job = find(self.queue, job_id)
        running = job is not None and not job.is_final
        now: Seen = {
            "banner": banner(say, self.queue),
            "stage": self._stage(say, job) if job else (stage.gone(say) if job_id else stage.empty(say)),
            "cancel": running,
            "after": job is not None and job.status == "completed",
            "line": history.line(say, self.queue, job_id),
            "pace": RUNNING_S if running or self.queue.state == "loading" else IDLE_S,
            "model": self.queue.model.name if self.queue.model else None,
        }
        updates = {
            **now,
            "cancel": gr.Button(visible=running),
            "after": gr.Row(visible=now["after"]),
            "pace": gr.Timer(now["pace"]),
        }
        changed = [updates[key] if now[key] != seen.get(key) else gr.skip() for key in WATCHED]
        met = now["model"] != seen.get("model")
        return now if now != seen else gr.skip(), *changed, *(self._greeting(say) if met else [gr.skip()] * GREETED)

    def open(self, kept: str | None, linked: str | None, request: gr.Request) -> tuple[Any, ...]:
        """A page load: the linked job, or the one this browser looked at last. -> job id, then as `look`"""
        job_id = linked or (kept if find(self.queue, kept) else None)
        return (job_id, *self.look(job_id, {}, request))

    def look_at_photo(self, upload: Any, request: gr.Request) -> tuple[Any, str]:
        """A photo was chosen or removed. -> its size or None, notice under the photo"""
        try:
            photo = read_photo(upload, self.settings.max_image_pixels)
        except I2VError as error:
            return None, hint.notice(told(speaker(language(request)), error))
        return (None if photo is None else photo.size), ""

    def foresee(self, photo_size: Any, upload: Any, *rest: Any) -> tuple[str, str]:
        """Any field changed. -> the crop on the photo, the estimate with what the prompt lacks"""
        *values, request = rest
        say = speaker(language(request))
        named = dict(zip(create.Form.names()[1:], values, strict=True))
        lines = [hint.about_prompt(say, str(named["prompt"] or ""))]
        crop = ""
        try:
            photo = tuple(photo_size) if photo_size else (640, 480)
            width, height = create.size_of(named, photo, self.settings.limits, self.queue.model)
            if photo_size and upload:
                crop = hint.crop(say, place(photo, (width, height), named["fit"]))
            job_request = create.request_of({**named, "prompt": named["prompt"] or "-"}, width, height)
            lines.append(hint.estimate(say, self.queue, self.settings.limits.check(job_request)))
        except I2VError as error:
            lines.append(told(say, error))
        return crop, "".join(f"<p>{hint.escape(line)}</p>" for line in lines if line)

    def quality(self, name: str) -> int:
        """-> steps"""
        return create.quality_steps(self.queue.model, name)

    def new_seed(self) -> int:
        """-> seed"""
        return draw_seed()

    def same_seed(self, job_id: str | None) -> Any:
        """-> the seed of the shown job"""
        job = find(self.queue, job_id)
        return gr.skip() if job is None else job.request.seed

    def _stage(self, say: Say, job: Job) -> str:
        preview = self.queue.preview(job.id) if job.status == "in_progress" else None
        file = job.result.file if job.result else ""
        return stage.job(
            say,
            job,
            path=str(self.settings.outputs.resolve() / file),
            url=f"/outputs/{file}",
            preview=preview,
            waiting_for_model=self.queue.state == "loading",
        )

    def _greeting(self, say: Say) -> list[Any]:
        """A model is there. -> examples, size, frames, fps, steps, guidance scale"""
        model = self.queue.model
        if model is None:
            return [gr.skip()] * GREETED
        values = create.defaults(model)
        words = [[phrase] for phrase in model.vocabulary]
        guidance: dict[str, Any] = {"value": values["guidance_scale"]}
        if model.guidance_range is not None:
            low, high = model.guidance_range
            guidance["info"] = say("guidance_kept", low=f"{low:g}", high=f"{high:g}")
        fields = [values[name] for name in ("size", "num_frames", "fps", "steps")]
        return [gr.Dataset(samples=words, visible=bool(words)), *fields, gr.Slider(**guidance)]


def find(queue: JobQueue, job_id: str | None) -> Job | None:
    try:
        return queue.get(job_id) if job_id else None
    except NotFound:
        return None


def caller_of(request: gr.Request | None) -> str | None:
    return request.client.host if request is not None and request.client else None


def told(say: Say, error: I2VError) -> str:
    """The error's own sentence, and for a job that does not fit, what would."""
    largest = getattr(error, "largest", None)
    if not largest:
        return error.message
    what = ", ".join(f"{name} {value}" for name, value in largest.items())
    return f"{error.message}. {say('fits', what=what)}"
