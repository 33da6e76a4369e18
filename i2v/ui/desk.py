"""What the events of the create tab do: submit, watch and cancel jobs, through `JobQueue` and nothing else.

Every event is short: nothing here waits for a job. The page asks again by its timer, so a closed tab, a reload and a
restarted server all come back to the same picture.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import gradio as gr
import numpy as np
from anyio import CapacityLimiter, to_thread
from PIL import Image

from i2v.errors import Conflict, DoesNotFit, I2VError, InvalidRequest, NotFound
from i2v.images import place
from i2v.jobs.job import Job
from i2v.jobs.queue import JobQueue
from i2v.request import GenerateRequest, draw_seed
from i2v.settings import Settings
from i2v.ui import form, hint, history, sheet, stage
from i2v.ui.banner import banner
from i2v.ui.form import GREETED
from i2v.ui.sweep import Shown, drafts, in_full
from i2v.ui.texts import Say, explained, language, speaker

RUNNING_S = 0.5  # seconds between two looks at a running job
IDLE_S = 3.0

Seen = dict[str, Any]  # what this tab shows already, so that unchanged parts are left alone
WATCHED = ("banner", "stage", "line", "pace")  # few: the framework builds each one anew at every look
WAITERS = 16  # events at once that wait for a job to stop
PHOTO_SIDE = 256  # pixels of the small photo beside a video


def waiters() -> CapacityLimiter:
    """Threads for events that wait for a job's end: they take none from the routes and from the page's own events."""
    return CapacityLimiter(WAITERS)


@dataclass(frozen=True, slots=True)
class Desk:
    """The events' functions. Each receives plain values and returns updates in the order that its docstring lists."""

    settings: Settings
    queue: JobQueue
    waiting: CapacityLimiter = field(default_factory=waiters)

    def submit(self, upload: Any, *rest: Any) -> tuple[Any, Any]:
        """Queue the form's job. -> job id, notice"""
        *values, request = rest
        say = speaker(language(request))
        try:
            job_request, photo = self.read(say, upload, values)
            job = self.queue.submit(job_request, photo, door="ui", caller=caller_of(request))
        except I2VError as error:
            return gr.skip(), hint.notice(told(say, error))
        return job.id, ""

    def read(self, say: Say, upload: Any, values: Any) -> tuple[GenerateRequest, Image.Image]:
        """The form's job and its photo. Raises `InvalidRequest` and `InvalidImage` in words."""
        named = dict(zip(form.Form.names()[1:], values, strict=True))
        photo = form.read_photo(upload, self.settings.max_image_pixels)
        if photo is None:
            raise InvalidRequest(say("needs_photo"), field="image")
        return form.read_request(say, named, photo.size, self.settings.limits, self.queue.model), photo

    def sweep(self, upload: Any, *rest: Any) -> tuple[Any, str]:
        """Queue four drafts of the form's job. -> what is shown, notice"""
        *values, request = rest
        say = speaker(language(request))
        queued: list[str] = []
        notice = ""
        try:
            job_request, photo = self.read(say, upload, values)
            for draft in drafts(job_request, self.settings.limits):
                queued.append(self.queue.submit(draft, photo, door="ui", caller=caller_of(request)).id)
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
            draft = find(self.queue, data.get("full"))
            if draft is None:
                return gr.skip(), gr.skip()
            standard = form.quality_steps(self.queue.model, "standard")
            full = in_full(draft.request, steps, standard, self.settings.limits)
            photo = self.queue.input_image(draft.id)
            job = self.queue.submit(full, photo, door="ui", caller=caller_of(request))
        except I2VError as error:
            return gr.skip(), hint.notice(told(say, error))
        return Shown.read(shown).one(job.id), ""

    async def cancel(self, shown: str | None, request: gr.Request) -> str:
        """Stop what is shown, the last in the queue first; returns when it has stopped. -> notice"""
        for job_id in reversed(Shown.read(shown).ids()):
            try:
                await to_thread.run_sync(self.queue.cancel, job_id, limiter=self.waiting)
            except Conflict:  # it ended by itself meanwhile
                continue
            except I2VError as error:
                return hint.notice(told(speaker(language(request)), error))
        return ""

    def look(self, shown: str | None, seen: Seen, request: gr.Request) -> tuple[Any, ...]:
        """What has changed since `seen`. -> seen, pace of this machine, name of the model, `WATCHED`"""
        say = speaker(language(request))
        try:
            return self._look(say, Shown.read(shown), seen)
        except I2VError as error:  # the job table does not answer now, or the server is stopping
            return self._trouble(say, seen, told(say, error))

    def _look(self, say: Say, what: Shown, seen: Seen) -> tuple[Any, ...]:
        jobs = [job for job_id in what.ids() if (job := find(self.queue, job_id)) is not None]
        running = any(not job.is_final for job in jobs)
        now: Seen = {
            "banner": banner(say, self.queue),
            "stage": self._stage(say, what, jobs),
            "line": history.line(say, self.queue, what.ids()),
            "pace": RUNNING_S if running or self.queue.state == "loading" else IDLE_S,
            "model": self.queue.model.name if self.queue.model else None,
            "average": f"{self.queue.average_duration} {self.queue.queue_length}",
        }
        updates = {**now, "pace": gr.Timer(now["pace"])}
        changed = [updates[key] if now[key] != seen.get(key) else gr.skip() for key in WATCHED]
        average = now["average"] if now["average"] != seen.get("average") else gr.skip()
        # A server that starts again has no model for a while: the name of the last one stays.
        model = now["model"] if now["model"] and now["model"] != seen.get("model") else gr.skip()
        return now if now != seen else gr.skip(), average, model, *changed

    def _trouble(self, say: Say, seen: Seen, words: str) -> tuple[Any, ...]:
        """As `look`: what was there stays, and the banner says why it is not the present state."""
        now = {"stage": stage.empty(say), **seen, "banner": banner(say, self.queue, words)}
        changed = [now[key] if key in now and now[key] != seen.get(key) else gr.skip() for key in WATCHED]
        return now if now != seen else gr.skip(), gr.skip(), gr.skip(), *changed

    def open(self, kept: str | None, linked: str | None, request: gr.Request) -> tuple[Any, ...]:
        """A page load: the linked job, or the one this browser looked at last. -> job id, then as `look`"""
        try:
            known = any(find(self.queue, job_id) for job_id in Shown.read(kept).ids())
        except I2VError:  # nobody knows now; `look` says why
            known = True
        shown = linked or (kept if known else None)
        # What is shown already is not said again: a job that was sent before this answer came stays.
        return (gr.skip() if shown == kept else shown, *self.look(shown, {}, request))

    def greet(self, name: str, greeted: str, prompt: str | None, *rest: Any) -> list[Any]:
        """A model is there: `name` now, `greeted` the one that this tab's form was made ready for. `rest`: `GREETED`.

        The browser holds both names, since a restarted server has forgotten what a tab has seen. What somebody has
        changed stays, unless another model than before is there. -> greeted, examples, what the prompt lacks of this
        model's words, quality, `GREETED`
        """
        *values, request = rest
        model = self.queue.model
        if model is None or model.name != name:
            return [gr.skip()] * (4 + len(GREETED))
        fresh, plain = form.defaults(model), form.defaults(None)
        fields: dict[str, dict[str, Any]] = {key: {} for key in GREETED}
        for key, value in zip(GREETED, values, strict=True):
            is_ours = greeted not in ("", name) or (not greeted and value == plain[key])
            if is_ours and value != fresh[key]:  # the same again would undo what is typed until it arrives
                fields[key]["value"] = fresh[key]
            elif key == "guidance_scale" and value != form.within(model, value):  # the slider refuses what is beyond
                fields[key]["value"] = form.within(model, value)
        if model.guidance_range is not None:
            low, high = model.guidance_range
            say = speaker(language(request))
            fields["guidance_scale"] |= {"minimum": low, "maximum": high}
            fields["guidance_scale"]["info"] = say("guidance_kept", **form.ends(model.guidance_range))
        updates = [gr.update(**change) if change else gr.skip() for change in fields.values()]
        about = self.about(prompt, request) if prompt else gr.skip()
        steps = fields["steps"].get("value", values[GREETED.index("steps")])
        quality = form.quality_of(model, steps)
        examples = gr.Dataset(samples=form.examples(model), visible=bool(model.vocabulary))
        return [name, examples, about, quality, *updates]

    def look_at_photo(self, upload: Any, request: gr.Request) -> tuple[Any, str]:
        """A photo was chosen or removed. -> its size or None, notice under the photo"""
        try:
            photo = form.read_photo(upload, self.settings.max_image_pixels)
        except I2VError as error:
            return None, hint.notice(told(speaker(language(request)), error))
        return (None if photo is None else photo.size), ""

    def foresee(self, photo_size: Any, upload: Any, *rest: Any) -> tuple[str, str]:
        """Any field changed. -> the crop on the photo, the estimate"""
        *values, request = rest
        say = speaker(language(request))
        named = dict(zip(form.Form.names()[1:], values, strict=True))
        lines: list[str] = []
        crop = refusal = ""
        try:
            photo = tuple(photo_size) if photo_size else (640, 480)
            width, height = form.size_of(named, photo, self.settings.limits, self.queue.model)
            job_request = form.request_of(say, {**named, "prompt": named["prompt"] or "-"}, width, height)
            self.settings.limits.check(job_request)
            if photo_size and upload:
                crop = hint.crop(say, place(photo, (width, height), named["fit"]))
            lines = hint.estimate(say, self.queue, job_request)
        except I2VError as error:
            refusal = hint.notice(told(say, error))
        words = " ".join(line for line in lines if line)
        return crop, refusal or (f"<p>{hint.escape(words)}</p>" if words else "")

    def about(self, prompt: str, request: gr.Request) -> str:
        """The prompt was changed: an empty one is no fault before that. -> what it lacks"""
        return hint.notice(hint.about_prompt(speaker(language(request)), prompt or "", self.queue.model), "mild")

    def quality(self, name: str) -> int:
        """-> steps"""
        return form.quality_steps(self.queue.model, name)

    def quality_of(self, steps: Any) -> str | None:
        """-> quality"""
        return form.quality_of(self.queue.model, steps)

    def new_seed(self) -> str:
        """-> seed"""
        return str(draw_seed())

    def same_seed(self, job_id: str | None) -> Any:
        """-> the seed of the shown job"""
        job = self._found(job_id)
        return gr.skip() if job is None else str(job.request.seed)

    def lock(self, locked: bool, job_id: str | None) -> Any:
        """Keep one seed, that of the shown job or a new one; or let every video draw its own. -> seed"""
        if not locked:
            return ""
        job = self._found(job_id)
        return str(draw_seed() if job is None else job.request.seed)

    def locked(self, seed: Any) -> bool:
        """A seed in its field is a seed that stays. -> lock"""
        return bool(seed)

    def _found(self, job_id: str | None) -> Job | None:
        """As `find`, and None while the job table does not answer."""
        try:
            return find(self.queue, job_id)
        except I2VError:
            return None

    def _stage(self, say: Say, shown: Shown, jobs: list[Job]) -> str:
        if not jobs:
            return stage.gone(say) if shown.ids() else stage.empty(say)
        if not shown.is_sheet:
            return (sheet.back(say, shown) if shown.sheet else "") + self._one(say, jobs[0])
        previews = (self.queue.preview(job.id) for job in jobs if job.status == "in_progress")
        return sheet.sheet(say, shown, jobs, next(previews, None), self.queue.state == "loading")

    def _one(self, say: Say, job: Job) -> str:
        preview = self.queue.preview(job.id) if job.status == "in_progress" else None
        file = job.result.file if job.result else ""
        return stage.job(
            say,
            job,
            path=str(self.settings.outputs.resolve() / file),
            url=f"/outputs/{file}",
            photo=self._photo(job.id) if job.is_final else "",
            preview=preview,
            waiting_for_model=self.queue.state == "loading",
        )

    def _photo(self, job_id: str) -> str:
        """A job's photo, small, as a data URL; empty where it is gone or cannot be read now."""
        try:
            return photo_url(self.queue, job_id)
        except I2VError:
            return ""


@lru_cache(maxsize=64)
def photo_url(queue: JobQueue, job_id: str) -> str:
    """A job's photo, small, as a data URL. Raises as `JobQueue.input_image`: a failure is not remembered."""
    photo = queue.input_image(job_id)
    photo.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
    return stage.jpeg_url(np.asarray(photo))


def find(queue: JobQueue, shown: str | None) -> Job | None:
    """The one job that is shown; None for nothing, for a contact sheet, and when it is gone.

    Raises `Unavailable` and `NotReady`: the job table does not answer.
    """
    job_id = Shown.read(shown).job
    try:
        return queue.get(job_id) if job_id else None
    except NotFound:
        return None


def caller_of(request: gr.Request | None) -> str | None:
    return request.client.host if request is not None and request.client else None


def told(say: Say, error: I2VError) -> str:
    """The error's own sentence, in the reader's language; for a job that does not fit, what would."""
    if isinstance(error, DoesNotFit) and error.largest:
        return say("fits", **error.largest)
    return explained(say, error.code, error.message)
