"""`/outputs/{file}`: finished videos, and nothing else of that folder. Also how any bytes are answered with ranges.

A file is opened once, without following links, and served from that descriptor: whatever happens to its name
afterwards (deleted, replaced), the answer stays whole.
"""

import hashlib
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from i2v.errors import NotFound, PreconditionFailed, RangeNotSatisfiable
from i2v.server.answers import error_answer
from i2v.server.context import context_of
from i2v.server.openapi import errors

router = APIRouter(tags=["files"])

VIDEO_NAME = re.compile(r"video_[0-9]{8}_[0-9]{6}_[a-z0-9]{6}\.mp4", re.ASCII)
_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{1,18})?|-([0-9]{1,18}))", re.ASCII)
_CHUNK = 256 * 1024

_VIDEO: dict[int | str, dict[str, object]] = {
    200: {"description": "the MP4", "content": {"video/mp4": {}}},
    206: {"description": "the asked part of it", "content": {"video/mp4": {}}},
    **errors(401, 403, 404, 412, 416, 422),
}


@router.get("/outputs/{name:path}", response_class=Response, responses=_VIDEO)
@router.head("/outputs/{name:path}", include_in_schema=False)
async def output(request: Request, name: str) -> Response:
    """A finished video by its file name, whole or in ranges."""
    # The router's pattern takes a line feed at the very end of a path for the end of the path.
    if not VIDEO_NAME.fullmatch(name) or not request.scope["path"].endswith(name):
        raise NotFound("no such video")
    return await video_answer(request, context_of(request).settings.outputs / name)


async def video_answer(request: Request, path: Path, *, download: bool = False) -> Response:
    """The MP4 at `path`, shown in the browser or offered as a download. Raises `NotFound`."""
    source = await run_in_threadpool(open_video, path)
    disposition = f'{"attachment" if download else "inline"}; filename="{path.name}"'
    return ranged(request, source, {"Content-Type": "video/mp4", "Content-Disposition": disposition})


ANOTHER_VERSION = "If-Match names another version of the video than the one that is here"


@dataclass(frozen=True, slots=True)
class Source:
    """Something with a size and an entity tag that is read in pieces; `close` is called once, whatever happens."""

    size: int
    etag: str
    read: Callable[[int, int], bytes]  # offset, count
    close: Callable[[], None]


def open_video(path: Path) -> Source:
    """A regular file; a link, a pipe or a folder of that name does not count. Raises `NotFound`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        raise NotFound("no such video") from None
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode):
        os.close(descriptor)
        raise NotFound("no such video")
    return Source(
        info.st_size,
        f'"{info.st_ino:x}-{info.st_size:x}-{info.st_mtime_ns:x}"',
        lambda offset, count: os.pread(descriptor, count, offset),
        lambda: os.close(descriptor),
    )


def in_memory(data: bytes) -> Source:
    etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    return Source(len(data), etag, lambda offset, count: data[offset : offset + count], lambda: None)


def ranged(request: Request, source: Source, headers: dict[str, str]) -> Response:
    """200, 206, 304, 412 or 416, by the request's conditions and its range. Closes `source` when it is not sent."""
    if not is_wanted(request, source.etag):
        source.close()
        return error_answer(PreconditionFailed(ANOTHER_VERSION), request.url.path, {"ETag": source.etag})
    headers = {**headers, "ETag": source.etag, "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"}
    if _matches(request.headers.get("if-none-match", ""), source.etag):
        source.close()
        return Response(status_code=304, headers=headers)
    start, end, status = 0, source.size, 200
    wanted = request.headers.get("range")
    if wanted is not None and request.headers.get("if-range", source.etag) == source.etag:
        found = parse_range(wanted, source.size)
        if found is not None and found[0] >= found[1]:
            source.close()
            return _outside(request, source.size)
        if found is not None:
            (start, end), status = found, 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{source.size}"
    return _Pieces(source, start, end, status, headers)


def parse_range(value: str, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last; an empty range when it lies outside; None for one to be ignored.

    RFC 9110 lets a server ignore ranges it does not understand, and several at once, and answer with the whole.
    """
    match = _RANGE.fullmatch(value.strip())
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        return max(0, size - int(suffix)), size
    start, end = int(first), size
    if last is not None:
        if int(last) < start:
            return None
        end = min(int(last) + 1, size)
    return start, max(start, end)


class _Pieces(Response):
    """Sends bytes `start` to `end` of a source, and closes it even when nobody reads them."""

    def __init__(self, source: Source, start: int, end: int, status: int, headers: dict[str, str]) -> None:
        super().__init__(status_code=status, headers={**headers, "Content-Length": str(end - start)})
        self.source, self.start, self.end = source, start, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] == "HEAD":
                await send({"type": "http.response.body", "body": b""})
                return
            offset = self.start
            while offset < self.end:
                piece = await run_in_threadpool(self.source.read, offset, min(_CHUNK, self.end - offset))
                if not piece:  # the file became shorter; the connection ends, so that the client notices
                    return
                offset += len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": offset < self.end})
            if self.start == self.end:
                await send({"type": "http.response.body", "body": b""})
        finally:
            self.source.close()


def is_wanted(request: Request, etag: str | None) -> bool:
    """Whether `If-Match`, where there is one, names this version; `*` names any. `etag` is None where nothing is."""
    wanted = request.headers.get("if-match")
    if wanted is None:
        return True
    return etag is not None and (wanted.strip() == "*" or etag in (tag.strip() for tag in wanted.split(",")))


def _outside(request: Request, size: int) -> Response:
    error = RangeNotSatisfiable(f"the range lies outside the {size} bytes of this file")
    return error_answer(error, request.url.path, {"Content-Range": f"bytes */{size}"})


def _matches(condition: str, etag: str) -> bool:
    return condition.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in condition.split(","))
