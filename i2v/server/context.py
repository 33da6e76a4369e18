"""What the routes share: one frozen object in `app.state`, made by `create_app`. Nothing here does any work."""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
from fastapi import Request

from i2v import decoding_room
from i2v.jobs.webhooks import Webhooks
from i2v.server.clients import client_of
from i2v.server.metrics import Metrics
from i2v.server.video_variants import Variants
from i2v.settings import Settings

if TYPE_CHECKING:
    from i2v.jobs.queue import JobQueue

# Callers whose photo is decoded and packed; the others wait here, and not on the threads that every route needs.
DECODERS = decoding_room.PLACES

# JSON of megabytes that is parsed: its text stands in memory twice meanwhile.
PARSERS = 2

# Pictures made from finished videos: their own place, because a GIF of a large clip takes many seconds, in which
# uploads must still be decoded.
RENDERERS = 1

# Threads that wait for a running job to stop (cancel, delete): their own, so that they take none from other routes.
WAITERS = 64

# Threads that queue and drop jobs: their own, so that reads do not wait behind a job table which takes no change.
WRITERS = 40


@dataclass(frozen=True, slots=True)
class Context:
    """`stopping` is set when the process was asked to end: routes that wait answer their callers then."""

    settings: Settings
    queue: "JobQueue"
    metrics: Metrics
    webhooks: Webhooks
    variants: Variants = field(default_factory=Variants)
    decoding: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(DECODERS))
    parsing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PARSERS))
    rendering: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(RENDERERS))
    waiting: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(WAITERS))
    writing: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(WRITERS))
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


def context_of(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


def caller_of(request: Request) -> str | None:
    """Who counts as one caller for shares of the queue."""
    return client_of(request.scope) or None


def public_base(request: Request) -> str:
    """Scheme and host that clients reach this server under, without a final slash."""
    return context_of(request).settings.base_of(str(request.base_url))
