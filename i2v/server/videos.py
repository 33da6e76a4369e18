"""`/v1/videos` in OpenAI's shape: create, watch, fetch, list, cancel, remix, extend, delete.

Every route reads its request, asks the queue and answers at once; only `sync`, `cancel` and `delete` wait.
"""

from functools import partial
from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from i2v.errors import I2VError, InvalidRequest, NotFound, PreconditionFailed
from i2v.jobs.job import Job
from i2v.jobs.photo import as_taken
from i2v.server import openapi
from i2v.server.answers import Answer, JSONAnswer
from i2v.server.context import Context, context_of
from i2v.server.files import ANOTHER_VERSION, in_memory, is_wanted, open_video, ranged, video_answer
from i2v.server.predict import CLIENT_GONE, error_answer_for, error_of, job_headers, outcome
from i2v.server.submission import REPLAYED, idempotency_key, submit
from i2v.server.video_events import stream
from i2v.server.video_extension import source_of
from i2v.server.video_object import (
    DeletedVideo,
    ShownStatus,
    VideoList,
    VideoObject,
    poll_after_ms,
    shown,
    video_object,
)
from i2v.server.video_request import (
    CREATE_VIDEO,
    ExtendVideo,
    RemixVideo,
    check_model,
    frames_for,
    parse,
    photo_of,
    placement_note,
    receive,
    request_of,
)
from i2v.server.video_variants import VARIANTS, file_name, media_type

router = APIRouter(prefix="/v1", tags=["videos"])

_CONTENT = openapi.files("video/mp4", "image/jpeg", "image/gif", "image/webp", statuses=(404, 409, 412, 416, 422))
_EVENTS = openapi.files("text/event-stream", statuses=(404, 422))
_QUEUED = openapi.new_job(VideoObject)
_NEW = openapi.takes("CreateVideo", form=True)


class ModelObject(Answer):
    """The model that is loaded: OpenAI's four fields, and what this server knows beyond them."""

    id: str = Field(validation_alias="name")
    object: Literal["model"] = "model"
    created: Literal[0] = 0
    owned_by: Literal["i2v"] = "i2v"
    kind: str = Field(description="real, demo or fake")
    title: str
    device: str
    dtype: str
    note: str = Field(description="what callers should know of a model that is no full one; may be empty")
    vocabulary: list[str] = Field(description="prompts that a small model was trained on; empty for a full one")
    guidance_range: list[float] | None = Field(description="what guidance_scale is kept within, both ends included")


class ModelList(Answer):
    """The model that is loaded, or nothing while it loads."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


@router.post("/videos", responses=_QUEUED, openapi_extra=_NEW)
async def create(request: Request) -> Response:
    """Queue a video. The answer is its object; ask for it again, or listen to its events, until it is final."""
    job, note = await _create(request)
    notes = {} if job.result else {"notes": [note]}
    return await _object_answer(context_of(request), job, **notes)


@router.post("/videos/sync", response_class=Response, responses=openapi.MP4_FOR_NEW_JOB, openapi_extra=_NEW)
async def create_and_wait(request: Request) -> Response:
    """Queue a video, wait for it, and answer the MP4. A caller that goes away frees its place."""
    context = context_of(request)
    job, _ = await _create(request)
    try:
        finished = await outcome(request, context.queue, job)
        if finished is None:
            return Response(status_code=CLIENT_GONE)
        if finished.result is None:
            raise error_of(finished)
        path = await run_in_threadpool(context.queue.video_path, finished)
        answer = await video_answer(request, path, download=True)
    except I2VError as error:
        return error_answer_for(error, request, job)
    answer.headers.update(job_headers(job))
    return answer


@router.post("/videos/extensions", responses=_QUEUED, openapi_extra=openapi.takes("ExtendVideo", form=True))
async def extend(request: Request) -> Response:
    """Continue a finished video from its last frame; the result is the whole clip, old part and new."""
    context = context_of(request)
    received = await receive(request, "video")
    body = parse(ExtendVideo, received)
    await run_in_threadpool(context.queue.check_room, idempotency_key(request))
    async with context.rendering:  # it decodes a whole video
        source, last_frame = await run_in_threadpool(source_of, context.queue, body, received.file)
    frames = frames_for(body.seconds, source.request.fps)
    limits = context.settings.limits
    generate = limits.changed(source.request, prompt=body.prompt, num_frames=frames, seed=None)
    job, _ = await submit(request, generate, partial(as_taken, last_frame), door="videos", extends=source.id)
    return await _object_answer(context, job)


@router.get("/videos", responses=openapi.answer(VideoList, 404, 422))
async def list_videos(
    request: Request,
    after: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    status: ShownStatus | None = None,
    search: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """A page of all jobs, whichever door they came through, by time of arrival."""
    context = context_of(request)
    asked = partial(context.queue.list, after=after, limit=limit + 1, order=order, status=status, search=search)
    found = await run_in_threadpool(asked)
    page = await run_in_threadpool(
        lambda: [video_object(job, context.queue, context.settings) for job in found[:limit]]
    )
    first, last = (page[0].id, page[-1].id) if page else (None, None)
    answer = VideoList(data=page, first_id=first, last_id=last, has_more=len(found) > limit)
    return JSONAnswer(answer.model_dump())


@router.get("/videos/{video_id}", responses=openapi.answer(VideoObject, 404, 422))
async def retrieve(request: Request, video_id: str) -> Response:
    """One video's object, with its progress."""
    context = context_of(request)
    job = context.queue.running(video_id)
    if job is None:
        job = await run_in_threadpool(context.queue.get, video_id)
    return await _object_answer(context, job)


@router.get("/videos/{video_id}/content", response_class=Response, responses=_CONTENT)
@router.head("/videos/{video_id}/content", include_in_schema=False)
async def content(request: Request, video_id: str, variant: Annotated[str, Query(max_length=20)] = "video") -> Response:
    """The finished MP4, or a picture made from it; whole or in ranges."""
    context = context_of(request)
    if variant not in VARIANTS:
        raise InvalidRequest(f"variant must be one of {', '.join(VARIANTS)}", field="variant")
    job = await run_in_threadpool(context.queue.get, video_id)
    path = await run_in_threadpool(context.queue.video_path, job)
    if variant == "video":
        return await video_answer(request, path, download=True)
    data = context.variants.known(path, variant)
    if data is None:
        async with context.rendering:
            data = await run_in_threadpool(context.variants.get, path, job.request.fps, variant)
    disposition = f'inline; filename="{file_name(path, variant)}"'
    return ranged(request, in_memory(data), {"Content-Type": media_type(variant), "Content-Disposition": disposition})


@router.get("/videos/{video_id}/events", response_class=Response, responses=_EVENTS)
async def events(request: Request, video_id: str) -> Response:
    """Server-sent events: `status` when the state changes, `progress` with a preview, `done` with the final object."""
    context = context_of(request)
    await run_in_threadpool(context.queue.get, video_id)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream(context, video_id), media_type="text/event-stream", headers=headers)


@router.post("/videos/{video_id}/cancel", responses=openapi.answer(VideoObject, 404, 409, 422))
async def cancel(request: Request, video_id: str) -> Response:
    """Stop a job within one step; answers when it has stopped."""
    context = context_of(request)
    job = await anyio.to_thread.run_sync(context.queue.cancel, video_id, limiter=context.waiting)
    return await _object_answer(context, job)


@router.post("/videos/{video_id}/remix", responses=_QUEUED, openapi_extra=openapi.takes("RemixVideo"))
async def remix(request: Request, video_id: str) -> Response:
    """A new job with the same photo, settings and seed, and another prompt."""
    context = context_of(request)
    body = parse(RemixVideo, await receive(request, None))
    source = await run_in_threadpool(context.queue.get, video_id)
    generate = context.settings.limits.changed(source.request, prompt=body.prompt)
    job, _ = await submit(request, generate, lambda: as_taken(context.queue.input_image(video_id)), door="videos")
    return await _object_answer(context, job)


@router.delete("/videos/{video_id}", responses=openapi.answer(DeletedVideo, 404, 412, 422))
async def delete(request: Request, video_id: str) -> Response:
    """Cancel the job if it runs, and remove its video and its record."""
    context = context_of(request)
    if "if-match" in request.headers and not await run_in_threadpool(_is_wanted, request, video_id):
        raise PreconditionFailed(ANOTHER_VERSION)
    await anyio.to_thread.run_sync(context.queue.delete, video_id, limiter=context.waiting)
    return JSONAnswer(DeletedVideo(id=video_id).model_dump())


@router.get("/models", responses=openapi.answer(ModelList))
async def models(request: Request) -> Response:
    """The model that is loaded; the list is empty while it loads."""
    found = _model(context_of(request))
    return JSONAnswer(ModelList(data=[found] if found else []).model_dump())


@router.get("/models/{model_id:path}", responses=openapi.answer(ModelObject, 404, 422))
async def model(request: Request, model_id: str) -> Response:
    """One model by its name."""
    found = _model(context_of(request))
    if found is None or found.id != model_id:
        raise NotFound("that model is not loaded here; see /v1/models")
    return JSONAnswer(found.model_dump())


def _is_wanted(request: Request, video_id: str) -> bool:
    """Whether the job has a video, of the version that the request names. Raises `NotFound` for an unknown job."""
    queue = context_of(request).queue
    job = queue.get(video_id)
    if job.result is None:
        return False
    source = open_video(queue.video_path(job))
    source.close()
    return is_wanted(request, source.etag)


async def _create(request: Request) -> tuple[Job, str]:
    """The queued job, and how its photo was fitted."""
    context = context_of(request)
    received = await receive(request, "input_reference")
    body = parse(CREATE_VIDEO, received)
    context.webhooks.check(body.webhook)
    loaded = context.queue.model
    check_model(body.model, loaded.name if loaded else None)
    generate = request_of(body, context.settings)
    photo = partial(photo_of, received, body, context.settings)
    job, size = await submit(request, generate, photo, door="videos", webhook=body.webhook)
    return job, placement_note(size, generate)


async def _object_answer(context: Context, job: Job, **changed: Any) -> Response:
    headers = {} if job.is_final else {"openai-poll-after-ms": str(poll_after_ms(job))}
    if job.replayed:
        headers |= REPLAYED
    found = await shown(job, context.queue, context.settings)
    return JSONAnswer(found.model_dump() | changed, headers=headers)


def _model(context: Context) -> ModelObject | None:
    model = context.queue.model
    return None if model is None else ModelObject.model_validate(model, from_attributes=True)
