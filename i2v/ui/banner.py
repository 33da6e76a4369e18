"""The line under the title: which model runs on what, how far it has loaded, or why there is none."""

from html import escape
from typing import TYPE_CHECKING

from i2v.notes import Note
from i2v.ui.texts import Say, about, titled

if TYPE_CHECKING:
    from i2v.jobs.queue import JobQueue

SCHEMES = ("dark", "light")


def banner(say: Say, queue: "JobQueue", trouble: str = "") -> str:
    """HTML: the name of the page, and the queue's present state or the `trouble` in which it cannot be told."""
    schemes = "".join(
        f"<a class='scheme to-{name}' href='?__theme={name}'>{escape(say(f'scheme_{name}'))}</a>" for name in SCHEMES
    )
    head = f"<header class='top'><h1>i2v</h1><p>{escape(say('tagline'))}</p>{schemes}</header>"
    if trouble and queue.state not in ("stopping", "dead"):
        return head + _line("bad", trouble, "")
    return head + _state(say, queue)


def _state(say: Say, queue: "JobQueue") -> str:
    state, model = queue.state, queue.model
    if state == "loading":
        what, fraction = queue.loading
        return _loading(say, what, fraction)
    if state == "failed":
        return _line("bad", say("model_failed"), say("reason", message=queue.failure))
    if state == "stopping":
        return _line("bad", say("server_stopping"), "")
    if state == "dead":
        return _line("bad", say("server_dead"), "")
    if model is None:
        return ""
    title = f"{titled(say, model.kind, model.title)} · {say('on_device', device=model.device)} · {model.dtype}"
    return _line(f"ready kind-{model.kind}", title, about(say, model))


def _loading(say: Say, what: Note, fraction: float | None) -> str:
    percent = "" if fraction is None else f" {100 * fraction:.0f} %"
    bar = f"<div class='bar'><i style='width:{100 * (fraction or 0):.0f}%'></i></div>"
    return _line("loading", f"{say('loading_model')}: {say.note(what)}{percent}", say("loading_hint"), bar)


def _line(kind: str, title: str, note: str, more: str = "") -> str:
    small = f"<span class='note'>{escape(note)}</span>" if note else ""
    return (
        f"<div class='banner {kind}' role='status'><i class='dot'></i>"
        f"<div><strong>{escape(title)}</strong>{small}{more}</div></div>"
    )
