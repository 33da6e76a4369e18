"""The contact sheet of a seed sweep as HTML: four drafts side by side, each with its state, its picture and its seed.

Videos play once all of them are there: a page that changes twice a second would start them again each time.
"""

from html import escape

import numpy as np
from numpy.typing import NDArray

from i2v.images import jpeg_url
from i2v.jobs.job import Job
from i2v.ui.stage import now
from i2v.ui.sweep import Shown
from i2v.ui.texts import Say, explained

Preview = NDArray[np.uint8] | None


def sheet(say: Say, shown: Shown, jobs: list[Job], preview: Preview, waiting_for_model: bool) -> str:
    """`jobs` in the order of the sheet, those deleted meanwhile left out; `preview` of the one that runs."""
    settled = all(job.is_final for job in jobs)
    tiles = "".join(_tile(say, shown, job, preview, settled, waiting_for_model) for job in jobs)
    words = say("sheet_choose") if settled else say("sheet_wait", done=sum(j.is_final for j in jobs), all=len(jobs))
    prompt = f"<p class='said'>{escape(jobs[0].request.prompt)}</p>" if jobs else ""
    kind, live = ("done", "polite") if settled else ("running", "off")  # off: as a running job alone
    return (
        f"<section class='stage stage-sheet stage-{kind}' aria-live='{live}'><p class='now'>{escape(words)}</p>"
        f"<div class='tiles'>{tiles}</div>{prompt}</section>"
    )


def back(say: Say, shown: Shown) -> str:
    """The way from one of the four to all of them."""
    text = escape(shown.sheet_text())
    return f"<a class='back' href='?job={text}' data-job='{text}'>← {escape(say('sheet_back'))}</a>"


def _tile(say: Say, shown: Shown, job: Job, preview: Preview, settled: bool, waiting_for_model: bool) -> str:
    target = escape(shown.one(job.id))
    shape = f"aspect-ratio:{job.request.width}/{job.request.height}"
    name = escape(f"{say('fact_seed')} {job.request.seed}")
    foot = f"<b>{name}</b>"
    if job.status == "completed":
        foot += (
            f"<button type='button' class='button' data-full='{escape(job.id)}'>{escape(say('sheet_full'))}</button>"
        )
    else:
        foot += f"<small>{escape(_state(say, job, waiting_for_model))}</small>"
    return (
        f"<div class='tile' data-status='{job.status}'><a href='?job={target}' data-job='{target}' aria-label='{name}' "
        f"style='{shape}'>{_picture(say, job, preview, settled)}</a><div class='foot'>{foot}</div></div>"
    )


def _picture(say: Say, job: Job, preview: Preview, settled: bool) -> str:
    if job.status == "completed" and job.result is not None:
        if settled:
            return f"<video src='/outputs/{escape(job.result.file)}' loop autoplay muted playsinline></video>"
        return f"<img src='/v1/videos/{escape(job.id)}/content?variant=thumbnail' alt=''>"
    if job.status == "in_progress":
        picture = f"<img src='{jpeg_url(preview)}' alt=''>" if preview is not None else "<i class='pulse'></i>"
        words = escape(now(say, job, waiting_for_model=False))
        return (
            f"{picture}<span class='bar' role='progressbar' aria-valuemin='0' aria-valuemax='100' "
            f"aria-valuenow='{job.progress}' aria-label='{words}'><i style='width:{job.progress}%'></i></span>"
        )
    return "<i class='pulse'></i>" if job.status == "queued" else "<i class='cross'>×</i>"


def _state(say: Say, job: Job, waiting_for_model: bool) -> str:
    if job.status == "cancelled":
        return say("cancelled_title")
    if not job.is_final:
        return now(say, job, waiting_for_model)
    return explained(say, job.error_code or "", job.error_message or "") or say("failed_title")
