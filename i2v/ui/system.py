"""The system tab: what runs where, how full the queue is, and the form's job as a program would send it."""

import json
import shlex
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr
import psutil

from i2v.errors import I2VError
from i2v.request import GenerateRequest
from i2v.settings import Settings
from i2v.ui import form, hint
from i2v.ui.hint import gigabytes
from i2v.ui.texts import Say, about, duration, explained, language, titled, told

if TYPE_CHECKING:
    from i2v.jobs.queue import JobQueue


@dataclass(frozen=True, slots=True)
class System:
    """Functions of events, as in `i2v.ui.desk.Desk`."""

    settings: Settings
    queue: "JobQueue"

    def facts(self, request: gr.Request) -> str:
        """The timer of this tab ticked. -> facts"""
        say = Say(language(request))
        try:
            return facts(say, self.settings, self.queue)
        except I2VError as error:
            return hint.notice(told(say, error))

    def tab(self, *values: Any) -> tuple[str, str, str, str]:
        """This tab was opened; `values` are the form's without the photo. -> facts, curl, requests, openai"""
        *fields, request = values
        say = Say(language(request))
        named = dict(zip(form.Form.names()[1:], fields, strict=True))
        return self.facts(request), *self._examples(say, named, self.settings.base_of(str(request.request.base_url)))

    def _examples(self, say: Say, named: dict[str, Any], base: str) -> tuple[str, str, str]:
        named = {**named, "prompt": str(named["prompt"] or "").strip() or "the scene at sunset"}
        try:
            width, height = form.size_of(named, (512, 512), self.settings.limits, self.queue.model)
            request = form.request_of(say, named, width, height, self.settings.limits)
        except I2VError as error:
            words = f"# {told(say, error)}"
            return words, words, words
        guarded = self.settings.api_token is not None
        makers = (curl, positional, openai)
        first, second, third = (make(base, request, guarded) for make in makers)
        return first, second, third


def facts(say: Say, settings: Settings, queue: "JobQueue") -> str:
    """HTML: model, device, queue, memory, storage."""
    model = queue.model
    rows = [("sys_state", say(f"state_{queue.state}"))]
    if model is not None:
        rows += [
            ("fact_model", titled(say, model.kind, model.title)),
            ("sys_device", model.device),
            ("sys_dtype", model.dtype),
        ]
    rows.append(("sys_queue", say("sys_queue_of", n=queue.queue_length, most=settings.queue.length)))
    if queue.average_duration:
        rows.append(("sys_average", duration(say, queue.average_duration)))
    rows.append(("sys_memory", f"{psutil.Process().memory_info().rss / 1e6:.0f} MB"))
    if free := _free(say, queue):
        rows.append(("sys_free", free))
    rows.append(("sys_storage", say("storage_good" if queue.storage_ok() else "storage_bad")))
    if model is not None and model.vocabulary:
        rows.append(("sys_words", " · ".join(model.vocabulary)))
    cells = "".join(f"<dt>{escape(say(key))}</dt><dd>{escape(value)}</dd>" for key, value in rows)
    words = "" if model is None else about(say, model)
    note = f"<p class='none'>{escape(words)}</p>" if words else ""
    return f"<section class='system'><dl class='facts'>{cells}</dl>{note}</section>"


def _free(say: Say, queue: "JobQueue") -> str:
    """The memory that a job can use, or why even a small job does not fit; empty where memory is not counted."""
    try:
        need = queue.memory_need(GenerateRequest(prompt="-", width=256, height=256, num_frames=8, seed=0))
    except I2VError as error:
        return explained(say, error.code, error.message)
    return "" if need is None else gigabytes(need.available)


def curl(base: str, request: GenerateRequest, guarded: bool) -> str:
    """POST /v1/videos with the form's settings, as a shell command; `guarded`: the server wants its token."""
    fields = {"prompt": request.prompt, "size": f"{request.width}x{request.height}", **_extras(request)}
    lines = [f"curl {base}/v1/videos", *(['  -H "Authorization: Bearer $I2V_API_TOKEN"'] if guarded else [])]
    lines += ["  -F input_reference=@photo.jpg"]
    # `-F` would end a text at its first `;`, and read a file for one that begins with `@` or `<`
    lines += [f"  --form-string {shlex.quote(f'{name}={value}')}" for name, value in fields.items()]
    return " \\\n".join(lines)


def positional(base: str, request: GenerateRequest, guarded: bool) -> str:
    """POST /api/predict/ with `requests`; that dialect knows square sizes only, so the width decides."""
    square = request.width == request.height
    note = "" if square else "# this door makes squares; the others keep the size of the form\n"
    head = ', headers={"Authorization": "Bearer " + os.environ["I2V_API_TOKEN"]}' if guarded else ""
    values = [request.prompt, request.width, request.num_frames, request.fps, request.steps, request.guidance_scale]
    if request.seed is not None:
        values.append(request.seed)
    return f'''import base64, {"os, " if guarded else ""}requests

{note}photo = base64.b64encode(open("photo.jpg", "rb").read()).decode()
data = ["data:image/jpeg;base64," + photo, *{_python(values)}]
answer = requests.post("{base}/api/predict/", json={{"data": data}}{head}, timeout=3600)
path, summary, seconds = answer.json()["data"]
print(path, summary, seconds, sep="\\n")'''


def openai(base: str, request: GenerateRequest, guarded: bool) -> str:
    """The `openai` client's videos, waiting until the file is there."""
    key = 'os.environ["I2V_API_TOKEN"]' if guarded else '"none"'
    return f'''import {"os, " if guarded else ""}openai

client = openai.OpenAI(base_url="{base}/v1", api_key={key})
video = client.videos.create_and_poll(
    prompt={_python(request.prompt)},
    size="{request.width}x{request.height}",
    input_reference=open("photo.jpg", "rb"),
    extra_body={_python(_extras(request))},
)
client.videos.download_content(video.id).write_to_file("video.mp4")'''


def _extras(request: GenerateRequest) -> dict[str, object]:
    """What has a value, beside the prompt and the size."""
    return request.model_dump(exclude={"prompt", "width", "height"}, exclude_none=True)


def _python(value: object) -> str:
    """A literal that is the same in JSON and Python: there is no true, false or null among the values."""
    return json.dumps(value, ensure_ascii=False)
