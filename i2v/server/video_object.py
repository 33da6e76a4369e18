"""A job as `/v1/videos` shows it: OpenAI's video object, and what this server knows beyond it."""

from datetime import timedelta
from typing import Any

from starlette.concurrency import run_in_threadpool

from i2v.errors import I2VError
from i2v.jobs.job import Job
from i2v.jobs.queue import JobQueue
from i2v.settings import Settings

POLL_MS = (250, 5000)  # polling costs little; the first value is kept by the client for the whole job
_STITCHES = 50  # how many extensions of extensions are counted


def video_object(job: Job, queue: JobQueue, settings: Settings) -> dict[str, Any]:
    """The object; `seconds` of an extension is the length of the stitched clip."""
    request, result = job.request, job.result
    frames = stitched_frames(job, queue)
    expires = None
    if settings.retention.days and job.completed_at is not None:
        expires = int((job.completed_at + timedelta(days=settings.retention.days)).timestamp())
    return {
        "id": job.id,
        "object": "video",
        "created_at": int(job.created_at.timestamp()),
        "completed_at": int(job.completed_at.timestamp()) if job.completed_at else None,
        "expires_at": expires,
        "status": "failed" if job.status == "interrupted" else job.status,
        "progress": job.progress,
        "error": _error(job),
        "model": result.model if result else queue.model.name if queue.model else None,
        "prompt": request.prompt,
        "seconds": f"{frames / request.fps:g}",
        "size": f"{request.width}x{request.height}",
        "num_frames": frames,
        "fps": request.fps,
        "steps": request.steps,
        "guidance_scale": result.guidance_scale if result else request.guidance_scale,
        "seed": request.seed,
        "preset": request.preset,
        "fit": request.fit,
        "extends": job.extends,
        "stage": job.stage,
        "position": job.position,
        "eta_s": job.eta_s,
        "stage_seconds": result.stage_seconds if result else None,
        "peak_memory_mb": result.peak_memory_mb if result else None,
        "notes": list(result.notes) if result else [],
        "warnings": list(result.warnings) if result else [],
    }


async def shown(job: Job, queue: JobQueue, settings: Settings) -> dict[str, Any]:
    """`video_object` for coroutines: on a thread where the table is asked how long the videos before it are."""
    if job.extends is None:
        return video_object(job, queue, settings)
    return await run_in_threadpool(video_object, job, queue, settings)


def stitched_frames(job: Job, queue: JobQueue) -> int:
    """Frames of the finished file: those of the videos it continues count too, less the one each seam shares."""
    frames, source = job.request.num_frames, job.extends
    for _ in range(_STITCHES):
        if source is None:
            break
        try:
            earlier = queue.get(source)
        except I2VError:  # deleted since
            break
        frames, source = frames + earlier.request.num_frames - 1, earlier.extends
    return frames


def poll_after_ms(job: Job) -> int:
    """When to ask again: twenty times over the time that is left, a second where that is unknown."""
    low, high = POLL_MS
    return 1000 if job.eta_s is None else int(min(high, max(low, job.eta_s * 1000 / 20)))


def _error(job: Job) -> dict[str, str] | None:
    if job.status == "interrupted":
        return {"code": "interrupted", "message": job.error_message or "the job was interrupted"}
    if job.status != "failed":
        return None
    return {"code": job.error_code or "job_failed", "message": job.error_message or "the job failed"}
