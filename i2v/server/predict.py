"""`POST /api/predict/`: the positional dialect of existing scripts, answered when the video is there.

The handler only waits: reading, decoding and queueing run in threads, the job on the queue's worker. A caller that
goes away frees its place.
"""

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import anyio.to_thread
from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from i2v.errors import I2VError, JobFailed, NotReady, error_from_code
from i2v.jobs.job import Job
from i2v.jobs.summary import summary
from i2v.server import openapi
from i2v.server.answers import Answer, JSONAnswer, error_answer
from i2v.server.body import read_json
from i2v.server.body_limit import let_go
from i2v.server.context import context_of, public_base
from i2v.server.predict_request import data_of, read_image, read_parameters
from i2v.server.submission import REPLAYED, idempotency_key, submit

if TYPE_CHECKING:
    from i2v.jobs.queue import JobQueue

router = APIRouter()

CLIENT_GONE = 499  # never read by anyone; logs and metrics tell it from a success


class PredictAnswer(Answer):
    """The success of `/api/predict/`, exactly as existing scripts expect it."""

    model_config = ConfigDict(extra="forbid")

    data: list[str] = Field(
        min_length=3, max_length=3, description="path of the MP4 on the server, readable summary, inference time"
    )
    is_generating: Literal[False] = False
    duration: float = Field(description="seconds that the job's stages took, writing included")
    average_duration: float = Field(description="mean seconds of the last jobs")


_ANSWERS: openapi.Responses = {
    200: {
        "description": "the finished video",
        "model": PredictAnswer,
        "headers": {
            "X-Job-Id": {"schema": {"type": "string"}, "description": "the job, as in /v1/videos"},
            "X-Video-Url": {"schema": {"type": "string"}, "description": "where the MP4 can be fetched"},
        },
    },
    **openapi.errors(400, 401, 403, 404, 409, 413, 422, 429, 500, 503, 507),
}


@router.post(
    "/api/predict/",
    tags=["predict"],
    operation_id="predict",
    responses=_ANSWERS,
    openapi_extra=openapi.takes("PredictBody"),
)
@router.post("/api/predict", include_in_schema=False)
@router.post("/run/predict/", include_in_schema=False)
@router.post("/run/predict", include_in_schema=False)
async def predict(request: Request) -> Response:
    """Make one video and answer when it is finished."""
    context = context_of(request)
    job = await _queued(request)
    try:
        finished = await outcome(request, context.queue, job)
        if finished is None:
            return Response(status_code=CLIENT_GONE)
        return await run_in_threadpool(answer_for, finished, context.queue, public_base(request), job_headers(job))
    except I2VError as error:
        return error_answer_for(error, request, job)


async def _queued(request: Request) -> Job:
    """The job of a request, of whose body nothing is kept."""
    settings = context_of(request).settings
    data = data_of(await read_json(request))
    generate = read_parameters(data, settings)
    job, _ = await submit(request, generate, partial(read_image, data, settings), door="predict")
    return job


async def outcome(request: Request, queue: "JobQueue", job: Job) -> Job | None:
    """The finished job, or None when its caller went away first, which frees the job's place; not that of a job with an
    idempotency key, for which its caller may come again, or another one waits.

    The request's body has been let go. Raises `NotReady` when the server stops while the job waits or runs.
    """
    let_go(request.scope)
    stopping = context_of(request).stopping
    waiting = asyncio.ensure_future(queue.wait(job.id))
    others = [asyncio.ensure_future(_gone(request)), asyncio.ensure_future(stopping.wait())]
    try:
        await asyncio.wait({waiting, *others}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        if stopping.is_set():
            raise NotReady(f"the server is stopping; the job {job.id} continues when it runs again", retry_after=10)
        if idempotency_key(request) is None:
            await anyio.to_thread.run_sync(queue.abandon, job.id, limiter=context_of(request).writing)
        return None
    finally:
        await cancel(waiting, *others)


def answer_for(job: Job, queue: "JobQueue", base: str, headers: dict[str, str]) -> Response:
    """The success body of the dialect; raises the error that a job ended with."""
    if job.result is None:
        raise error_of(job)
    content = PredictAnswer(
        data=[str(queue.video_path(job).resolve()), summary(job), f"{job.result.seconds:.1f}s"],
        duration=sum(job.result.stage_seconds.values()),
        average_duration=queue.average_duration,
    )
    address = {"X-Video-Url": f"{base}/outputs/{job.result.file}"}
    return JSONAnswer(content.model_dump(), headers=headers | address)


def job_headers(job: Job) -> dict[str, str]:
    """What names the job of a call that waits, and says whether it was there already."""
    return {"X-Job-Id": job.id} | (REPLAYED if job.replayed else {})


def error_answer_for(error: I2VError, request: Request, job: Job) -> Response:
    """The answer to an error after the job was taken: it names the job, which may still run or be looked at."""
    return error_answer(error, request.url.path, job_headers(job))


def error_of(job: Job) -> I2VError:
    """The error a job that is final and not completed ended with."""
    return error_from_code(job.error_code or JobFailed.code, job.error_message or f"the job ended as {job.status}")


async def _gone(request: Request) -> None:
    """Returns when the client has closed its connection; the body has been read, so nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """End each of them, and wait until it has; whatever it ends with."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task
