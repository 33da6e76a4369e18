"""What the events of the create tab do: submit, watch and cancel jobs, through `JobQueue` and nothing else.

Every event is short: nothing here waits for a job. The page asks again by its timer, so a closed tab, a reload and a
restarted server all come back to the same picture.
"""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from i2v.errors import Conflict, I2VError, NotFound
from i2v.images import place
from i2v.jobs.job import Job
from i2v.jobs.queue import JobQueue
from i2v.request import draw_seed
from i2v.settings import Settings
from i2v.ui import create, hint, stage
from i2v.ui.banner import banner
from i2v.ui.photo import read_photo
from i2v.ui.texts import Say, language, speaker

RUNNING_S = 0.5  # seconds between two looks at a running job
IDLE_S = 3.0

Seen = dict[str, Any]  # what this tab shows already, so that unchanged parts are left alone


@dataclass(frozen=True, slots=True)
class Desk:
    """The events' functions. Each receives plain values and returns updates in the order its caller lists."""

    settings: Settings
    queue: JobQueue

    def submit(self, path: str | None, *rest: Any) -> tuple[Any, ...]:
        """Queue the form's job. -> job id, notice, stage, cancel button, timer, seen."""
        *values, seen, request = rest
        say = speaker(language(request))
        named = dict(zip(create.Form.names()[1:], values, strict=True))
        try:
            photo = read_photo(path, self.settings.max_image_pixels)
            job_request = create.read_request(say, named, photo, self.settings.limits, self.queue.model)
            assert photo is not None  # read_request refuses None
            caller = request.client.host if request is not None and request.client else None
            job = self.queue.submit(job_request, photo, door="ui", caller=caller)
        except I2VError as error:
            return gr.skip(), hint.notice(told(say, error)), gr.skip(), gr.skip(), gr.skip(), seen
        html = self._stage(say, job)
        return (
            job.id,
            "",
            html,
            gr.Button(visible=True),
            gr.Timer(RUNNING_S),
            {**seen, "stage": html, "pace": RUNNING_S},
        )

    def cancel(self, job_id: str | None, seen: Seen, request: gr.Request) -> tuple[Any, ...]:
        """Stop the shown job; returns when it has stopped. -> notice, stage, cancel button, seen."""
        say = speaker(language(request))
        try:
            job = self.queue.cancel(job_id or "")
        except Conflict:  # it ended by itself meanwhile
            return "", gr.skip(), gr.Button(visible=False), seen
        except I2VError as error:
            return hint.notice(told(say, error)), gr.skip(), gr.Button(visible=False), seen
        html = self._stage(say, job)
        return "", html, gr.Button(visible=False), {**seen, "stage": html}

    def look(self, job_id: str | None, seen: Seen, request: gr.Request) -> tuple[Any, ...]:
        """The timer's event. -> banner, stage, cancel button, timer, seen, then `greeting`."""
        say = speaker(language(request))
        job = self._find(job_id)
        running = job is not None and not job.is_final
        pace = RUNNING_S if running or self.queue.state == "loading" else IDLE_S
        shown = self._stage(say, job) if job else (stage.gone(say) if job_id else stage.empty(say))
        now: Seen = {
            "banner": banner(say, self.queue),
            "stage": shown,
            "cancel": running,
            "pace": pace,
            "model": self.queue.model.name if self.queue.model else None,
        }
        greeting = self._greeting(say) if now["model"] != seen.get("model") else [gr.skip()] * 6
        if now == seen:
            return tuple([gr.skip()] * 11)
        return (
            _changed(now, seen, "banner", now["banner"]),
            _changed(now, seen, "stage", shown),
            _changed(now, seen, "cancel", gr.Button(visible=running)),
            _changed(now, seen, "pace", gr.Timer(pace)),
            now,
            *greeting,
        )

    def open(self, kept: str | None, linked: str | None, request: gr.Request) -> tuple[Any, ...]:
        """A page load: the linked job, or the one this browser looked at last. -> job id, then as `look`."""
        job_id = linked or kept
        if not linked and self._find(kept) is None:
            job_id = None
        return (job_id, *self.look(job_id, {}, request))

    def look_at_photo(self, path: str | None, request: gr.Request) -> tuple[Any, ...]:
        """A photo was chosen or removed. -> its size or None, notice."""
        say = speaker(language(request))
        try:
            photo = read_photo(path, self.settings.max_image_pixels)
        except I2VError as error:
            return None, hint.notice(told(say, error))
        return (None if photo is None else photo.size), ""

    def foresee(self, photo_size: Any, path: str | None, *rest: Any) -> tuple[str, str]:
        """Any field changed. -> the crop on the photo, the estimate with what the prompt lacks."""
        *values, request = rest
        say = speaker(language(request))
        named = dict(zip(create.Form.names()[1:], values, strict=True))
        crop = ""
        lines = [hint.about_prompt(say, str(named["prompt"] or ""))]
        try:
            size = tuple(photo_size) if photo_size else (640, 480)
            named = {**named, "prompt": named["prompt"] or "-"}
            width, height = create.size_of(named, size, self.settings.limits, self.queue.model)
            if photo_size and path:
                crop = hint.crop(say, place(size, (width, height), named["fit"]))
            job_request = create.request_of(named, width, height)
            lines.append(hint.estimate(say, self.queue, job_request))
        except I2VError as error:
            lines.append(told(say, error))
        return crop, "".join(f"<p>{line}</p>" for line in lines if line)

    def quality(self, name: str) -> int:
        """-> steps"""
        return create.quality_steps(self.queue.model, name)

    def new_seed(self) -> int:
        return draw_seed()

    def same_seed(self, job_id: str | None) -> Any:
        """-> the seed of the shown job"""
        job = self._find(job_id)
        return gr.skip() if job is None else job.request.seed

    def _find(self, job_id: str | None) -> Job | None:
        try:
            return self.queue.get(job_id) if job_id else None
        except NotFound:
            return None

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
            return [gr.skip()] * 6
        values = create.defaults(model)
        words = [[phrase] for phrase in model.vocabulary]
        guidance: dict[str, Any] = {"value": values["guidance_scale"]}
        if model.guidance_range is not None:
            low, high = model.guidance_range
            guidance["info"] = say("guidance_kept", low=f"{low:g}", high=f"{high:g}")
        return [
            gr.Dataset(samples=words, visible=bool(words)),
            values["size"],
            values["num_frames"],
            values["fps"],
            values["steps"],
            gr.Slider(**guidance),
        ]


def told(say: Say, error: I2VError) -> str:
    """The error's own sentence, and for a job that does not fit, what would."""
    largest = getattr(error, "largest", None)
    if not largest:
        return error.message
    what = ", ".join(f"{name} {value}" for name, value in largest.items())
    return f"{error.message}. {say('fits', what=what)}"


def _changed(now: Seen, seen: Seen, key: str, update: Any) -> Any:
    return gr.skip() if now[key] == seen.get(key) else update
