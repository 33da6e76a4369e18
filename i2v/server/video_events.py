"""Server-sent events of one job: its state, its progress with a preview, its end. Knows no routes."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.concurrency import run_in_threadpool

from i2v.errors import I2VError, NotReady
from i2v.images import jpeg_url
from i2v.jobs.job import Job
from i2v.server.answers import error_body
from i2v.server.context import Context
from i2v.server.predict import cancel
from i2v.server.video_object import shown

KEEP_ALIVE_S = 15.0  # proxies close connections that are silent for a minute
_V1 = "/v1/videos"


async def stream(context: Context, job_id: str) -> AsyncGenerator[bytes]:
    """`status`, `progress` and one `done`; `error` when the server stops before the job has ended."""
    status = None
    try:
        async with aclosing(_with_pauses(context.queue.events(job_id), context.stopping)) as changes:
            async for job in changes:
                if job is None:
                    yield b": still here\n\n"
                elif job.is_final:
                    yield _event("done", (await shown(job, context.queue, context.settings)).model_dump())
                elif job.status != status:
                    status = job.status
                    yield _event("status", (await shown(job, context.queue, context.settings)).model_dump())
                else:
                    yield _event("progress", await run_in_threadpool(_progress, context, job))
    except I2VError as error:
        yield _event("error", error_body(error, _V1))


async def _with_pauses(changes: AsyncGenerator[Job], stopping: asyncio.Event) -> AsyncGenerator[Job | None]:
    """The changes, and None whenever nothing has changed for a while. Raises `NotReady` when the server stops."""
    stopped = asyncio.ensure_future(stopping.wait())
    following = asyncio.ensure_future(_next(changes))
    try:
        while True:
            await asyncio.wait({following, stopped}, timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                job = following.result()
                if job is None:
                    return
                yield job
                following = asyncio.ensure_future(_next(changes))
            elif stopped.done():
                raise NotReady("the server is stopping; the job continues when it runs again", retry_after=10)
            else:
                yield None
    finally:
        await cancel(stopped, following)
        await changes.aclose()  # left to the garbage collector, it would go on watching


async def _next(changes: AsyncGenerator[Job]) -> Job | None:
    return await anext(changes, None)


def _progress(context: Context, job: Job) -> dict[str, Any]:
    picture = context.queue.preview(job.id)
    return {
        "id": job.id,
        "status": job.status,
        "progress": job.progress,
        "stage": job.stage,
        "step": job.step,
        "steps": job.request.steps,
        "eta_s": job.eta_s,
        "preview": None if picture is None else jpeg_url(picture),
    }


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode("ascii")
