"""Puts the server together: routes, layers, error handlers, and a lifespan that starts and stops the queue.

Nothing happens at import. The web page is mounted by `i2v.ui` last, because a mount at `/` takes every path that no
route before it has taken.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

import i2v
from i2v.errors import I2VError, MethodNotAllowed, NotFound
from i2v.jobs.webhooks import Webhooks
from i2v.server import docs, files, health, openapi, predict, videos
from i2v.server.answers import (
    UNKNOWN_PATH,
    answer_http_exception,
    answer_i2v_error,
    answer_validation_error,
    error_answer,
)
from i2v.server.body_limit import BodyLimit
from i2v.server.clients import RequestShare
from i2v.server.context import Context
from i2v.server.metrics import Metrics
from i2v.server.middleware import OwnWords, Stamp
from i2v.server.security import HeadGuard
from i2v.settings import Settings

if TYPE_CHECKING:
    from i2v.jobs.queue import JobQueue

STOP_TIMEOUT_S = 5.0  # a job that needs longer goes back to the queue at its next step

_ROUTERS = (predict.router, videos.router, files.router, health.router, docs.router)

# First segments of paths that are ours alone: what no route there takes is a 404 of ours, not of the mounted page.
_OWN_PREFIXES = ("/api", "/run", "/v1", "/outputs", "/generate")


def create_app(settings: Settings, queue: "JobQueue", *, start_queue: bool = True) -> FastAPI:
    """The application around a queue. Serving it starts the queue, unless its owner has, and stops it at the end."""
    metrics, webhooks = Metrics(queue), Webhooks(settings, queue)
    queue.on_final += [metrics.finished, webhooks.finished]
    app = _App(
        title="i2v",
        summary="Image to video with I2VGen-XL",
        version=i2v.__version__,
        lifespan=partial(_lifespan, start_queue=start_queue),
        docs_url=None,  # the framework's own pages load scripts from other machines
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        middleware=[
            Middleware(Stamp, on_answer=metrics.answered),
            Middleware(OwnWords),
            Middleware(HeadGuard, settings=settings),
            Middleware(RequestShare, places=settings.max_connections),
            Middleware(BodyLimit, settings=settings),
        ],
        exception_handlers={
            I2VError: answer_i2v_error,
            RequestValidationError: answer_validation_error,
            HTTPException: answer_http_exception,
        },
    )
    app.state.context = Context(settings, queue, metrics, webhooks)
    for router in _ROUTERS:
        app.include_router(router)
    _refuse_the_rest(app)
    return app


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The framework's document, and the bodies that routes read themselves, as this operator allows them."""
        context: Context = self.state.context
        document = super().openapi()
        document["components"]["schemas"] |= openapi.bodies(context.settings.limits)
        return document


@asynccontextmanager
async def _lifespan(app: FastAPI, *, start_queue: bool) -> AsyncIterator[None]:
    context: Context = app.state.context
    if start_queue:
        await run_in_threadpool(context.queue.start)
    await run_in_threadpool(context.webhooks.start)
    try:
        yield
    finally:
        context.stopping.set()
        context.webhooks.stop()
        await run_in_threadpool(context.queue.stop, STOP_TIMEOUT_S)


def _refuse_the_rest(app: FastAPI) -> None:
    """405 for other methods of known paths and 404 below our own prefixes; without it the mount would answer both."""
    methods: dict[str, set[str]] = {}
    for route in (*app.routes, *(route for router in _ROUTERS for route in router.routes)):
        if isinstance(route, APIRoute | Route):
            methods.setdefault(route.path, set()).update(route.methods or ())
    for path, allowed in methods.items():
        app.router.routes.append(Route(path, _OtherMethod(allowed), include_in_schema=False))
    for prefix in _OWN_PREFIXES:
        for path in (prefix, prefix + "/{rest:path}"):
            app.router.routes.append(Route(path, _Unknown(), include_in_schema=False))


class _OtherMethod:
    """Answers 405 to each method that the routes of a path do not take."""

    def __init__(self, allowed: set[str]) -> None:
        self.allow = ", ".join(sorted(allowed))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = MethodNotAllowed(f"this path takes {self.allow}")
        await error_answer(error, scope["path"], {"Allow": self.allow})(scope, receive, send)


class _Unknown:
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await error_answer(NotFound(UNKNOWN_PATH), scope["path"])(scope, receive, send)
