"""Reads a request body and its JSON, strictly and without ever building more than a request can hold.

What the values mean is for `predict_request.py` and `videos.py` to say.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import Request
from pydantic_core import from_json
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from i2v.errors import BadRequest

# A request has a handful of values. Without this bound, 24 MB of `{"a":1},` keep the parser, and with it the
# interpreter lock, busy for more than two seconds; counting commas costs 10 ms.
MAX_VALUES = 20_000


def refuse_compressed(request: Request) -> None:
    """Raises `BadRequest` for a compressed body: a small one can unpack to any size, and no client needs it."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise BadRequest("compressed request bodies are not taken; send the body without Content-Encoding")


async def read_json(request: Request) -> object:
    """The body's value; the body itself is not kept. Raises `BadRequest` for one that is compressed or no JSON, and for
    a client that stopped sending.
    """
    refuse_compressed(request)
    body = bytearray()
    with whole():
        async for piece in request.stream():
            body += piece
    parsing: asyncio.Semaphore = request.app.state.context.parsing
    async with parsing:
        return await run_in_threadpool(parse_json, body)


@contextmanager
def whole() -> Iterator[None]:
    """Raises `BadRequest` for a client that goes away while its body is read: an expected end, without a traceback."""
    try:
        yield
    except ClientDisconnect:
        raise BadRequest("the connection closed before the whole body had arrived") from None


def parse_json(data: bytes | bytearray) -> object:
    """The value of a JSON text in UTF-8 (a byte order mark is skipped); of two equal keys the last one counts.

    NaN and Infinity come back as floats, so that whoever reads their field can name it. Raises `BadRequest`.
    """
    if data[:2] == b"\x1f\x8b":
        raise BadRequest("the body is gzip data; send it uncompressed")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise BadRequest("the body is UTF-16; JSON is sent as UTF-8")
    if data[:3] == b"\xef\xbb\xbf":
        data = data[3:]
    if not data or data.isspace():
        raise BadRequest("the body is empty; send a JSON object")
    if data.count(b",") > MAX_VALUES:
        raise BadRequest(f"the body holds more than {MAX_VALUES} values")
    try:
        return from_json(data, allow_inf_nan=True, cache_strings="keys")
    except ValueError as error:
        # The parser's own words (what was expected, line and column) hold nothing of the body.
        raise BadRequest(f"the body is not valid JSON: {error}") from None
