"""What the page reads from the job table: the job of a text, those that run and wait, and the history tab's cards.

Also the settings that an MP4 carries, which the history tab reads back.
"""

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from i2v.errors import NotFound
from i2v.jobs.job import Job
from i2v.request import GenerateRequest
from i2v.ui.sweep import Shown
from i2v.ui.texts import PageRefusal, Say
from i2v.video import read_metadata

if TYPE_CHECKING:
    from i2v.jobs.queue import JobQueue

PAGE = 24  # cards a page: two rows of the widest screen, twice
MOST = 10_000  # cards that one tab may ask for

# A click on a card opens it in this tab; a middle click, or a copied address, opens the same video elsewhere. Deleting
# takes two clicks on the same button, the second one after the words have changed. A share link copies itself where the
# browser lets it (https and this machine), and is an ordinary link elsewhere.
OPEN_CARD = """
element.addEventListener('click', (event) => {
  const copy = event.target.closest('[data-copy]');
  if (copy && navigator.clipboard) {
    event.preventDefault();
    navigator.clipboard.writeText(copy.href).then(() => { copy.textContent = copy.dataset.copy; });
    return;
  }
  const gone = event.target.closest('[data-delete]');
  if (gone && !gone.dataset.asked) {
    gone.setAttribute('aria-label', gone.dataset.sure + ' ' + (gone.getAttribute('aria-label') || ''));
    gone.dataset.asked = 'yes'; gone.textContent = gone.dataset.sure; return;
  }
  if (gone) { gone.disabled = true; trigger('click', {remove: gone.dataset.delete}); return; }
  const full = event.target.closest('[data-full]');
  if (full) { full.disabled = true; trigger('click', {full: full.dataset.full}); return; }
  const card = event.target.closest('[data-job]');
  if (!card || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  trigger('click', {job: card.dataset.job});
});
"""


def find(queue: "JobQueue", shown: str | None) -> Job | None:
    """The one job that is shown; None for nothing, for a contact sheet, and when it is gone.

    Raises `Unavailable` and `NotReady`: the job table does not answer.
    """
    job_id = Shown.read(shown).job
    try:
        return queue.get(job_id) if job_id else None
    except NotFound:
        return None


def cards(say: Say, queue: "JobQueue", search: str, count: int) -> tuple[str, bool]:
    """HTML of the newest `count` finished videos whose prompt holds `search`, and whether there are more."""
    jobs = queue.list(limit=count + 1, status="completed", search=search or None)
    if not jobs:
        text = say("history_none", search=search) if search else say("history_empty")
        return f"<p class='none'>{escape(text)}</p>", False
    return f"<div class='cards'>{''.join(_card(say, job) for job in jobs[:count])}</div>", len(jobs) > count


def count_of(text: Any) -> int:
    """How many cards a tab asks for, `PAGE` to `MOST`; `PAGE` for what is no number."""
    return max(PAGE, min(MOST, int(text))) if isinstance(text, str) and text.isdecimal() and len(text) < 9 else PAGE


def line(say: Say, queue: "JobQueue", shown: tuple[str, ...]) -> str:
    """The jobs that run or wait, without those that are shown; each opens by a click."""
    active = [*queue.list(status="in_progress", limit=2), *queue.list(status="queued", order="asc", limit=8)]
    others = [job for job in active if job.id not in shown]
    if not others:
        return ""
    items = "".join(f"<li>{_link(job)}</li>" for job in others)
    return f"<section class='line'><h4>{escape(say('line_title'))}</h4><ul>{items}</ul></section>"


def _link(job: Job) -> str:
    words = f"<b>{_place(job)}</b> {escape(job.request.prompt[:80])}"
    return f"<a href='?job={job.id}' data-job='{job.id}'>{words}</a>"


def _place(job: Job) -> str:
    return f"{job.progress} %" if job.status == "in_progress" else f"{(job.position or 0) + 1}."


def _card(say: Say, job: Job) -> str:
    prompt = escape(job.request.prompt)
    when = job.created_at.astimezone().strftime("%Y-%m-%d %H:%M")  # of the server's clock
    title = escape(say("history_open", prompt=job.request.prompt))
    remove = (
        f"<button type='button' class='remove' data-delete='{job.id}' data-sure='{escape(say('delete_sure'))}' "
        f"aria-label='{escape(say('card_delete_name', prompt=job.request.prompt))}'>"
        f"{escape(say('card_delete'))}</button>"
    )
    return (
        f"<div class='held'><a class='card' href='?job={job.id}' data-job='{job.id}' aria-label='{title}'>"
        f"<img src='/v1/videos/{job.id}/content?variant=thumbnail' alt='' loading='lazy' "
        f"style='aspect-ratio:{job.request.width}/{job.request.height}'>"
        f"<b>{prompt}</b><small>{when} · {job.request.width} × {job.request.height}</small></a>{remove}</div>"
    )


def settings_of(upload: Any, say: Say) -> tuple[GenerateRequest, str | None]:
    """The request that an uploaded MP4 carries, and the id of its job. Raises `PageRefusal`."""
    path = upload.get("path") if isinstance(upload, dict) else None
    if not isinstance(path, str):
        raise PageRefusal(say("restore_none"), field="video")
    kept = read_metadata(Path(path))
    try:
        return GenerateRequest.model_validate_json(kept["request"], strict=False), kept.get("job")
    except (KeyError, ValidationError):
        raise PageRefusal(say("restore_none"), field="video") from None
