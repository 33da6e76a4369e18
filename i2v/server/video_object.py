"""A job as `/v1/videos` shows it: OpenAI's video object, and what this server knows beyond it.

`VideoObject` is both: the answer, and its description in `/openapi.json` and `/docs`.
"""

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from starlette.concurrency import run_in_threadpool

from i2v.errors import I2VError
from i2v.jobs.job import Job, JobResult
from i2v.notes import say
from i2v.request import Fit, GenerateRequest, Preset
from i2v.server.answers import Answer
from i2v.settings import Settings

if TYPE_CHECKING:
    from i2v.jobs.queue import JobQueue

POLL_MS = (250, 5000)  # polling costs little; the first value is kept by the client for the whole job
_STITCHES = 50  # how many extensions of extensions are counted


# An interrupted job is shown as failed, with its own code.
ShownStatus = Literal["queued", "in_progress", "completed", "failed", "cancelled"]


def _asked(name: str, description: str | None = None) -> Any:
    """A field that repeats the request: described by the request's own words."""
    return Field(description=description or GenerateRequest.model_fields[name].description)


class VideoError(Answer):
    """Why a job has no video."""

    code: str = Field(description="stable: one of the codes of errors, `interrupted` among them")
    message: str = Field(description="for people")


class VideoObject(Answer):
    """One job and its video. Every field is always there; times are whole seconds since 1970."""

    id: str = Field(description="video_ and 24 hexadecimal digits")
    object: Literal["video"] = "video"
    created_at: int
    completed_at: int | None = Field(description="null until the job has ended")
    expires_at: int | None = Field(description="when the video is removed, where videos are kept for some days only")
    status: ShownStatus
    progress: int = Field(ge=0, le=100, description="percent of the job's time; 100 only when completed")
    error: VideoError | None = Field(description="null unless the status is failed")
    model: str | None = Field(description="the model that made it, or the loaded one; null while it loads")
    prompt: str = _asked("prompt")
    seconds: str = Field(description='length of the clip, such as "2" or "1.875"; with what an extension continues')
    size: str = Field(description="WIDTHxHEIGHT in pixels")
    num_frames: int = Field(description="frames of the clip, with those that an extension continues")
    fps: int = _asked("fps")
    steps: int = _asked("steps")
    guidance_scale: float = _asked("guidance_scale", "what was asked for; the one that was used, once completed")
    seed: int = _asked("seed", "the same request with the same seed gives the same video")
    preset: Preset = _asked("preset")
    fit: Fit = _asked("fit")
    extends: str | None = Field(description="id of the video that this one continues")
    stage: str | None = Field(description="encode, denoise, decode or write, while in progress")
    position: int | None = Field(description="place in the queue, 0 is next; null unless queued")
    eta_s: float | None = Field(description="seconds left, as far as earlier jobs tell")
    stage_seconds: dict[str, float] | None = Field(
        description="where the time went: encode, denoise, decode, write, and warm_up at a new size"
    )
    peak_memory_mb: float | None = Field(description="most memory in use, where the device counts it")
    notes: list[str] = Field(description="what the engine changed, and how the photo was fitted, in sentences")
    warnings: list[str] = Field(description="what the engine noticed in the result, in sentences")


class VideoList(Answer):
    """A page of jobs; `last_id` is the `after` of the next one."""

    object: Literal["list"] = "list"
    data: list[VideoObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(Answer):
    """What is left of a video that was deleted."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


def video_object(job: Job, queue: "JobQueue", settings: Settings) -> VideoObject:
    """The object; `seconds` of an extension is the length of the stitched clip."""
    request, result = job.request, job.result
    frames = stitched_frames(job, queue)
    expires = None
    if settings.retention.days and job.completed_at is not None:
        expires = int((job.completed_at + timedelta(days=settings.retention.days)).timestamp())
    asked = request.model_dump(include=set(VideoObject.model_fields) & set(GenerateRequest.model_fields))
    return VideoObject(
        **asked
        | {
            "id": job.id,
            "created_at": int(job.created_at.timestamp()),
            "completed_at": int(job.completed_at.timestamp()) if job.completed_at else None,
            "expires_at": expires,
            "status": "failed" if job.status == "interrupted" else job.status,
            "progress": job.progress,
            "error": _error(job),
            "model": result.model if result else queue.model.name if queue.model else None,
            "seconds": f"{frames / request.fps:g}",
            "size": f"{request.width}x{request.height}",
            "num_frames": frames,
            "extends": job.extends,
            "stage": job.stage,
            "position": job.position,
            "eta_s": job.eta_s,
        }
        | _outcome(request, result)
    )


def _outcome(request: GenerateRequest, result: JobResult | None) -> dict[str, Any]:
    """What only a result knows; before there is one, null, empty, or what was asked for."""
    return {
        "guidance_scale": result.guidance_scale if result else request.guidance_scale,
        "stage_seconds": result.stage_seconds if result else None,
        "peak_memory_mb": result.peak_memory_mb if result else None,
        "notes": [say(note) for note in result.notes] if result else [],
        "warnings": [say(warning) for warning in result.warnings] if result else [],
    }


async def shown(job: Job, queue: "JobQueue", settings: Settings) -> VideoObject:
    """`video_object` for coroutines: on a thread where the table is asked how long the videos before it are."""
    if job.extends is None:
        return video_object(job, queue, settings)
    return await run_in_threadpool(video_object, job, queue, settings)


def stitched_frames(job: Job, queue: "JobQueue") -> int:
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


def _error(job: Job) -> VideoError | None:
    if job.status == "interrupted":
        return VideoError(code="interrupted", message=job.error_message or "the job was interrupted")
    if job.status != "failed":
        return None
    return VideoError(code=job.error_code or "job_failed", message=job.error_message or "the job failed")
