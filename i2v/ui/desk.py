"""What the events of the create tab do: submit, watch and cancel jobs, through `JobQueue` and nothing else.

Every event is short: none waits for a job. The page polls: `look` is called by its timer, and at once when another job
is shown. So a closed tab, a reload and a restarted server all come back to the same picture, and the server keeps
nothing for a tab.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
from PIL import Image

from i2v.decoding_room import DECODING
from i2v.errors import Conflict, I2VError, NotFound
from i2v.images import jpeg_url, place
from i2v.jobs.job import Job
from i2v.request import GenerateRequest, draw_seed
from i2v.server.clients import client_at
from i2v.server.video_extension import last_frame
from i2v.settings import Settings
from i2v.ui import form, hint, history, sheet, stage
from i2v.ui.banner import banner
from i2v.ui.form import GREETED
from i2v.ui.sweep import Shown, drafts, in_full
from i2v.ui.texts import PageRefusal, Say, language, told

if TYPE_CHECKING:
    from i2v.jobs.queue import JobQueue

RUNNING_S = 0.5  # seconds between two looks at a running job
IDLE_S = 3.0

# What a look tells: the name of the model and the pace of this machine, then what stands on the page. Few parts: the
# framework builds each output anew at every look.
LOOKED = ("model", "pace", "banner", "stage", "line", "timer")
PHOTO_SIDE = 256  # pixels of the small photo beside a video


@dataclass(frozen=True, slots=True)
class Desk:
    """The events' functions. Each receives plain values and returns updates in the order that its docstring lists."""

    settings: Settings
    queue: "JobQueue"

    def submit(self, upload: Any, *rest: Any) -> tuple[Any, Any]:
        """Queue the form's job. -> job id, notice"""
        *values, request = rest
        say = Say(language(request))
        try:
            self.queue.check_room(None)  # before anything is decoded
            with DECODING:
                job_request, photo = self.read(say, upload, values)
                new = self.queue.prepare(job_request, photo, door="ui", caller=caller_of(request))
            del photo
            job = self.queue.enter(new)  # outside of the room, which a table that is locked must not fill
        except I2VError as error:
            return gr.skip(), hint.notice(told(say, error))
        return job.id, ""

    def read(self, say: Say, upload: Any, values: Any) -> tuple[GenerateRequest, Image.Image]:
        """The form's job and its photo. Raises `PageRefusal`, `InvalidRequest` and `InvalidImage`."""
        named = dict(zip(form.Form.names()[1:], values, strict=True))
        photo = form.read_photo(upload, self.settings.max_image_pixels)
        if photo is None:
            raise PageRefusal(say("needs_photo"), field="image")
        return form.read_request(say, named, photo.size, self.settings.limits, self.queue.model), photo

    def sweep(self, upload: Any, *rest: Any) -> tuple[Any, str]:
        """Queue four drafts of the form's job. -> what is shown, notice"""
        *values, request = rest
        say = Say(language(request))
        queued: list[str] = []
        notice = ""
        try:
            self.queue.check_room(None)
            with DECODING:
                job_request, photo = self.read(say, upload, values)
                wanted = drafts(job_request, self.settings.limits)
                new = [self.queue.prepare(draft, photo, door="ui", caller=caller_of(request)) for draft in wanted]
            del photo
            for draft in new:
                queued.append(self.queue.enter(draft).id)
        except I2VError as error:  # a full queue may have taken some of them
            notice = hint.notice(told(say, error))
        return Shown(sheet=tuple(queued)).sheet_text() if queued else gr.skip(), notice

    def pick(self, steps: Any, shown: str | None, event: gr.EventData, request: gr.Request) -> tuple[Any, Any]:
        """A click on the stage: look at one of the four, at all again, or run one in full. -> what is shown, notice"""
        data = event._data if isinstance(event._data, dict) else {}
        if isinstance(data.get("job"), str):
            return data["job"], gr.skip()
        say = Say(language(request))
        try:
            draft = history.find(self.queue, data.get("full"))
            if draft is None:
                return gr.skip(), gr.skip()
            standard = form.quality_steps(self.queue.model, "standard")
            full = in_full(draft.request, steps, standard, self.settings.limits)
            photo = self.queue.input_image(draft.id)
            job = self.queue.submit(full, photo, door="ui", caller=caller_of(request))
        except I2VError as error:
            return gr.skip(), hint.notice(told(say, error))
        return Shown.read(shown).one(job.id), ""

    def extend(self, job_id: str | None, request: gr.Request) -> tuple[Any, str]:
        """Go on from the last frame of the shown video, with its own settings and a new seed. -> job id, notice"""
        say = Say(language(request))
        try:
            job = history.find(self.queue, job_id)
            if job is None or job.result is None:
                raise PageRefusal(say("nothing_chosen"))
            self.queue.check_room(None)
            last = last_frame(self.queue, job)
            again = job.request.model_copy(update={"seed": None})
            longer = self.queue.submit(again, last, door="ui", caller=caller_of(request), extends=job.id)
        except I2VError as error:
            return gr.skip(), hint.notice(told(say, error))
        return longer.id, ""

    def cancel(self, shown: str | None, request: gr.Request) -> str:
        """Ask what is shown to stop, the last in the queue first; the next looks show when it has stopped. -> notice"""
        for job_id in reversed(Shown.read(shown).ids()):
            try:
                self.queue.cancel(job_id, wait=False)
            except (Conflict, NotFound):  # it ended by itself meanwhile, or was deleted
                continue
            except I2VError as error:
                return hint.notice(told(Say(language(request)), error))
        return ""

    def look(self, shown: str | None, seen: str, request: gr.Request) -> tuple[Any, ...]:
        """What has changed since the look that returned `seen`; "" for the first one. -> seen, `LOOKED`"""
        say = Say(language(request))
        try:
            now = self._now(say, Shown.read(shown))
        except I2VError as error:  # the job table does not answer now, or the server is stopping: the rest stays
            now = {"banner": banner(say, self.queue, told(say, error))} | ({} if seen else {"stage": stage.empty(say)})
        return changes(seen, now)

    def _now(self, say: Say, what: Shown) -> dict[str, str]:
        """The parts as they are now; without a model while none is there, so that the name of the last one stays."""
        jobs = [job for job_id in what.ids() if (job := history.find(self.queue, job_id)) is not None]
        is_moving = self.queue.state == "loading" or any(not job.is_final for job in jobs)
        now = {
            "pace": f"{self.queue.average_duration} {self.queue.queue_length}",
            "banner": banner(say, self.queue),
            "stage": self._stage(say, what, jobs),
            "line": history.line(say, self.queue, what.ids()),
            "timer": str(RUNNING_S if is_moving else IDLE_S),
        }
        return now if self.queue.model is None else now | {"model": self.queue.model.name}

    def open(self, kept: str | None, linked: str | None, request: gr.Request) -> tuple[Any, ...]:
        """A page load: the linked job, or the one this browser looked at last. -> job id, then as `look`"""
        try:
            known = any(history.find(self.queue, job_id) for job_id in Shown.read(kept).ids())
        except I2VError:  # nobody knows now; `look` says why
            known = True
        shown = linked or (kept if known else None)
        # What is shown already is not said again: a job that was sent before this answer came stays.
        return (gr.skip() if shown == kept else shown, *self.look(shown, "", request))

    def greet(self, name: str, greeted: str, prompt: str | None, *rest: Any) -> list[Any]:
        """A model is there: `name` now, `greeted` the one that this tab's form was made ready for. `rest`: `GREETED`.

        The browser holds both names, so a restart of the server changes nothing. What somebody has changed stays,
        unless another model than before is there. -> greeted, examples, what the prompt lacks of this
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
            say = Say(language(request))
            fields["guidance_scale"] |= {"minimum": low, "maximum": high}
            fields["guidance_scale"]["info"] = say("guidance_kept", **form.ends(model.guidance_range))
        updates = [gr.update(**change) if change else gr.skip() for change in fields.values()]
        about = self.about(prompt, request) if prompt else gr.skip()
        steps = fields["steps"].get("value", values[GREETED.index("steps")])
        quality = form.quality_of(model, steps)
        examples = gr.Dataset(samples=form.examples(model), visible=bool(model.vocabulary))
        return [name, examples, about, quality, *updates]

    def look_at_photo(self, upload: Any, request: gr.Request) -> tuple[str, str]:
        """A photo was chosen or removed. -> its size, empty where there is none, notice under the photo"""
        try:
            photo = form.read_photo(upload, self.settings.max_image_pixels)
        except I2VError as error:
            return "", hint.notice(told(Say(language(request)), error))
        return ("" if photo is None else form.size_text(*photo.size)), ""

    def foresee(self, photo_size: Any, upload: Any, *rest: Any) -> tuple[str, str]:
        """Any field changed; `photo_size` as `look_at_photo` returned it. -> the crop on the photo, the estimate"""
        *values, request = rest
        say = Say(language(request))
        named = dict(zip(form.Form.names()[1:], values, strict=True))
        lines: list[str] = []
        crop = refusal = ""
        try:
            photo, limits = form.read_photo_size(photo_size), self.settings.limits
            width, height = form.size_of(named, photo or (640, 480), limits, self.queue.model)
            job_request = form.request_of(say, {**named, "prompt": named["prompt"] or "-"}, width, height, limits)
            if photo and upload:
                crop = hint.crop(say, place(photo, (width, height), named["fit"]))
            lines = self._estimate(say, job_request)
        except I2VError as error:
            refusal = hint.notice(told(say, error))
        words = " ".join(line for line in lines if line)
        return crop, refusal or (f"<p>{hint.escape(words)}</p>" if words else "")

    def _estimate(self, say: Say, request: GenerateRequest) -> list[str]:
        """Raises `DoesNotFit`."""
        need = self.queue.memory_need(request)
        seconds, waiting = self.queue.average_seconds(request), self.queue.queue_length
        return hint.estimate(say, seconds, waiting, need, is_ready=self.queue.state == "ready")

    def about(self, prompt: str, request: gr.Request) -> str:
        """The prompt was changed; nobody is told that it is empty before that. -> what it lacks"""
        return hint.notice(hint.about_prompt(Say(language(request)), prompt or "", self.queue.model), "mild")

    def quality(self, name: str | None) -> Any:
        """-> steps"""
        return gr.skip() if name is None else form.quality_steps(self.queue.model, name)

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
        """The seed was changed: it is locked when there is one. -> lock"""
        return bool(seed)

    def _found(self, job_id: str | None) -> Job | None:
        """As `history.find`, and None while the job table does not answer."""
        try:
            return history.find(self.queue, job_id)
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


def changes(seen: str, now: Mapping[str, str]) -> tuple[Any, ...]:
    """What is new of `now` to a tab that has `seen` a look before; parts that are not in `now` stay. -> seen, `LOOKED`

    `seen` holds a checksum for each part. It comes from the browser: whatever it is, the worst is a part sent twice.
    """
    known = dict(zip(LOOKED, str(seen or "").split(" "), strict=False))
    marks = {part: f"{zlib.crc32(now[part].encode()):x}" if part in now else known.get(part, "-") for part in LOOKED}
    updates = {part: gr.Timer(float(text)) if part == "timer" else text for part, text in now.items()}
    changed = [updates[part] if marks[part] != known.get(part) and part in now else gr.skip() for part in LOOKED]
    text = " ".join(marks.values())
    return text if text != seen else gr.skip(), *changed


@lru_cache(maxsize=64)
def photo_url(queue: "JobQueue", job_id: str) -> str:
    """A job's photo, small, as a data URL. Raises as `JobQueue.input_image`: a failure is not remembered."""
    photo = queue.input_image(job_id)
    photo.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
    return jpeg_url(np.asarray(photo))


def caller_of(request: gr.Request | None) -> str | None:
    """Who counts as one caller, as at the routes."""
    return client_at(request.client.host) if request is not None and request.client else None
