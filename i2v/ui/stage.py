"""The right half of the page as HTML: nothing yet, waiting, running, the video, or why there is none.

Pure functions from a job to text. Whatever a user or a model wrote passes through `html.escape`.
"""

from html import escape

import numpy as np
from numpy.typing import NDArray

from i2v.images import jpeg_url
from i2v.jobs.job import Job, JobResult
from i2v.ui.texts import Say, duration, explained, titled


def empty(say: Say) -> str:
    return _card("empty", f"<div class='canvas'>{_message(say('empty_title'), say('empty_text'))}</div>")


def gone(say: Say) -> str:
    return _card("empty", f"<div class='canvas'>{_message(say('gone_title'), say('gone_text'))}</div>")


def job(
    say: Say,
    job: Job,
    *,
    path: str,
    url: str,
    photo: str,
    preview: NDArray[np.uint8] | None,
    waiting_for_model: bool,
) -> str:
    """The job as it stands now. `path` and `url` are where its video lies and is served, once there is one; `photo`
    is a small picture of its photo as a data URL, or empty."""
    if job.status == "completed" and job.result is not None:
        return _card(
            "done",
            _video(say, job, url)
            + _advice(say, job.result)
            + _origin(say, job, photo)
            + _downloads(say, job, url)
            + _facts(say, job, job.result, path),
        )
    if job.is_final:
        return _card(job.status, _ended(say, job) + _origin(say, job, photo))
    return _card("running", _running(say, job, preview, waiting_for_model) + _prompt(job))


def now(say: Say, job: Job, waiting_for_model: bool) -> str:
    """What is happening, in a few words."""
    if job.status == "queued":
        if waiting_for_model:
            return say("queued_loading")
        return say("queued_at", n=job.position) if job.position else say("queued_next")
    if job.stage == "denoise" and job.step:
        return say("stage_denoise", step=job.step, steps=job.request.steps)
    if job.stage in ("encode", "decode", "write"):
        return say(f"stage_{job.stage}")
    return say("stage_start")


def _running(say: Say, job: Job, preview: NDArray[np.uint8] | None, waiting_for_model: bool) -> str:
    picture = ""
    if preview is not None:
        picture = f"<img class='preview' src='{jpeg_url(preview)}' alt='{escape(say('preview_alt'))}'>"
    left = "" if job.eta_s is None else f" · {say('eta', time=duration(say, job.eta_s))}"
    words = escape(now(say, job, waiting_for_model) + left)
    still = "" if job.status == "in_progress" else " still"
    return (
        f"<div class='canvas' style='{_shape(job)}'>{picture or '<div class=pulse></div>'}</div>"
        f"<div class='bar{still}' role='progressbar' aria-valuemin='0' aria-valuemax='100' "
        f"aria-valuenow='{job.progress}' aria-label='{words}'><i style='width:{job.progress}%'></i></div>"
        f"<p class='now' data-step='{job.step}' data-status='{job.status}'>{words}</p>"
    )


def _video(say: Say, job: Job, url: str) -> str:
    return (
        f"<div class='canvas' style='{_shape(job)}'>"
        f"<video src='{escape(url)}' aria-label='{escape(say('video_label'))}' width='{job.request.width}' "
        f"height='{job.request.height}' controls loop autoplay muted playsinline></video></div>"
    )


def _downloads(say: Say, job: Job, url: str) -> str:
    content = f"/v1/videos/{job.id}/content?variant="
    links = [("MP4", url), ("GIF", content + "gif"), ("WebP", content + "webp")]
    buttons = "".join(f"<a class='button' href='{escape(href)}' download>{name}</a>" for name, href in links)
    share = (
        f"<a class='button plain' href='?job={job.id}' data-copy='{escape(say('share_copied'))}'>"
        f"{escape(say('share'))}</a>"
    )
    return f"<nav class='downloads' aria-label='{escape(say('download'))}'>{buttons}{share}</nav>"


def _ended(say: Say, job: Job) -> str:
    if job.status == "cancelled":
        return f"<div class='canvas'>{_message(say('cancelled_title'), say('cancelled_text'))}</div>"
    message = _message(say("failed_title"), explained(say, job.error_code or "", job.error_message or ""))
    return f"<div class='canvas' role='alert'>{message}</div>"


def _facts(say: Say, job: Job, result: JobResult, path: str) -> str:
    request = job.request
    stages = ", ".join(
        say(f"took_{name}", n=f"{seconds:.1f}") for name, seconds in result.stage_seconds.items() if seconds >= 0.05
    )
    length = say(
        "frames_at", frames=request.num_frames, fps=request.fps, seconds=f"{request.num_frames / request.fps:.1f}"
    )
    settings = say("steps_guidance", steps=request.steps, guidance=f"{result.guidance_scale:g}", preset=request.preset)
    rows = [
        ("fact_seed", str(result.seed)),
        ("fact_time", duration(say, result.seconds) if result.seconds >= 10 else f"{result.seconds:.1f} s"),
        ("fact_size", f"{request.width} × {request.height}"),
        ("fact_length", length),
        ("fact_settings", settings),
        ("fact_model", f"{titled(say, result.model_kind, result.model_title)}, {result.device}"),
        ("fact_stages", stages),
        ("fact_file", path),
    ]
    if result.peak_memory_mb is not None:
        peak = say("peak_cpu" if result.device == "cpu" else "peak_gpu", n=f"{result.peak_memory_mb:.0f}")
        rows.insert(-1, ("fact_memory", peak))
    if result.plan:
        rows.insert(-1, ("fact_plan", say.note(result.plan)))
    cells = "".join(f"<dt>{escape(say(key))}</dt><dd>{escape(value)}</dd>" for key, value in rows if value)
    notes = "".join(f"<li>{escape(say.note(note))}</li>" for note in result.notes)
    return f"<dl class='facts'>{cells}</dl>" + (f"<ul class='notes'>{notes}</ul>" if notes else "")


def _advice(say: Say, result: JobResult) -> str:
    """What the result check noticed, right under the video: it says what to change."""
    said = "".join(f"<p>{escape(say.note(warning))}</p>" for warning in result.warnings)
    return f"<aside class='advice'><b>{escape(say('advice'))}</b>{said}</aside>" if said else ""


def _prompt(job: Job) -> str:
    return f"<p class='said'>{escape(job.request.prompt)}</p>"


def _origin(say: Say, job: Job, photo: str) -> str:
    """What the video was made from: the photo beside the words."""
    picture = f"<img src='{photo}' alt='{escape(say('photo'))}'>" if photo else ""
    return f"<div class='origin'>{picture}{_prompt(job)}</div>"


def _message(title: str, text: str) -> str:
    return f"<div class='message'><h3>{escape(title)}</h3><p>{escape(text)}</p></div>"


def _shape(job: Job) -> str:
    return f"aspect-ratio:{job.request.width}/{job.request.height}"


def _card(kind: str, inside: str) -> str:
    live = "off" if kind == "running" else "polite"  # a running job changes twice a second: nobody wants that read out
    return f"<section class='stage stage-{kind}' aria-live='{live}'>{inside}</section>"
