"""`/livez`, `/readyz` and `/metrics`, for whoever watches the server. None of them enqueues work."""

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from i2v.errors import Unavailable
from i2v.jobs.phase import not_loaded
from i2v.notes import say
from i2v.server.answers import JSONAnswer
from i2v.server.context import context_of
from i2v.server.metrics import CONTENT_TYPE
from i2v.server.openapi import errors

if TYPE_CHECKING:
    from i2v.jobs.queue import JobQueue

router = APIRouter(tags=["operations"])

_RETRY_AFTER = {"Retry-After": "5"}


@router.get("/livez", responses=errors(403))
@router.head("/livez", include_in_schema=False)
async def livez() -> Response:
    """200 while the process answers at all."""
    return JSONAnswer({"status": "alive"})


@router.get("/readyz", responses=errors(403, 503))
@router.head("/readyz", include_in_schema=False)
async def readyz(request: Request) -> Response:
    """200 when the engine is loaded, the storage can be written and the queue is open; else 503 and what is missing."""
    queue = context_of(request).queue
    status, why = await run_in_threadpool(readiness, queue)
    waiting = await run_in_threadpool(_queue_length, queue)
    content: dict[str, Any] = {"status": status, "queue_length": waiting, "model": describe_model(queue)}
    if why is None:
        return JSONAnswer(content)
    if status == "loading":
        what, fraction = queue.loading
        content["loading"] = {"what": say(what), "fraction": fraction}
    content |= {"error": why, "detail": [{"loc": [status], "msg": why, "type": "not_ready"}]}
    return JSONAnswer(content, status_code=503, headers=_RETRY_AFTER)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **errors(401, 403)})
async def metrics(request: Request) -> Response:
    """Measurements in Prometheus' text format."""
    return Response(await run_in_threadpool(context_of(request).metrics.render), media_type=CONTENT_TYPE)


def _queue_length(queue: "JobQueue") -> int | None:
    """None while the table, which may have to be asked, does not answer."""
    try:
        return queue.queue_length
    except Unavailable:
        return None


def readiness(queue: "JobQueue") -> tuple[str, str | None]:
    """A word for the state, and a sentence on what is missing (None when jobs can run)."""
    if queue.state == "loading":
        return "loading", say(not_loaded(*queue.loading))
    if queue.state != "ready":
        return queue.state, queue.failure or f"the server is {queue.state}"
    problem = queue.storage_problem()
    return ("ready", None) if problem is None else ("storage", problem)


def describe_model(queue: "JobQueue") -> dict[str, Any] | None:
    """What is loaded, as every surface shows it."""
    model = queue.model
    shown = ("name", "kind", "title", "device", "dtype", "note")
    return None if model is None else {name: getattr(model, name) for name in shown}
