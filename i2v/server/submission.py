"""How a route queues a job: the queue is looked at first, then the photo is read and packed, two at a time.

What a body held is gone when `submit` returns, so a route that then waits for its job holds no photo. Knows no dialect.
"""

import logging
import re
from collections.abc import Callable

import anyio.to_thread
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from i2v.decoding_room import DECODING
from i2v.errors import InvalidRequest
from i2v.jobs.job import Door, Job, NewJob
from i2v.jobs.photo import TakenPhoto
from i2v.request import GenerateRequest
from i2v.server.context import caller_of, context_of

log = logging.getLogger("i2v.server")

REPLAYED = {"Idempotent-Replayed": "true"}  # the header of an answer about a job that was there already
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


async def submit(
    request: Request,
    generate: GenerateRequest,
    photo: Callable[[], TakenPhoto],
    *,
    door: Door,
    extends: str | None = None,
    webhook: str | None = None,
) -> tuple[Job, tuple[int, int]]:
    """The queued job, and the size of its photo as it came. `photo` reads it, on a thread and in the decoding room.

    Raises as `JobQueue.submit` and as `photo`.
    """
    context, key = context_of(request), idempotency_key(request)
    queue = context.queue

    def check() -> None:
        queue.check(generate, extends=extends, idempotency_key=key)

    def prepare() -> tuple[NewJob, tuple[int, int]]:
        check()  # the queue may have filled while this caller waited for its turn
        with DECODING:
            taken = photo()
            new = queue.prepare(
                generate,
                taken.picture,
                door=door,
                caller=caller_of(request),
                idempotency_key=key,
                extends=extends,
                webhook=webhook,
            )
            return new, taken.size

    await run_in_threadpool(check)
    async with context.decoding:
        new, size = await run_in_threadpool(prepare)
    job = await anyio.to_thread.run_sync(queue.enter, new, limiter=context.writing)
    log.info(
        "asked for again" if job.replayed else "accepted",
        extra={"job": job.id, "request": request.scope["i2v.request_id"]},
    )
    return job, size


def idempotency_key(request: Request) -> str | None:
    """Raises `InvalidRequest` for one that is empty, too long or not printable."""
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise InvalidRequest("Idempotency-Key must be 1 to 255 printable ASCII characters", field="Idempotency-Key")
    return key
