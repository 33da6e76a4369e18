"""What an event of the page may look like. Whatever else is posted is refused as at the routes: 4xx, in our own words.

The framework answers such a body with 500 and a traceback, and its answer to a broken one repeats it.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import isfinite
from pathlib import Path
from typing import Any

import gradio as gr
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from i2v.errors import I2VError, InvalidRequest, refusals
from i2v.server.answers import invalid
from i2v.server.body import parse_json

MAX_EVENT = 1_000_000  # bytes: a form with the longest prompt is a hundredth of it, and photos are uploads
NUMBERS = (gr.Slider, gr.Number, gr.Timer)
CLICKED = {"job": str, "full": str, "remove": str, "index": int}  # the last one is the place of a tab
FILES = (gr.Image, gr.File)
# One sentence whatever is wrong with a value: another one for a folder would tell which folders this machine has.
NOT_TAKEN = "a value is not one that this event takes"


class PageEvent(BaseModel):
    """The fields that the page's events need; the framework knows others, which nobody here is to set."""

    model_config = ConfigDict(strict=True)

    fn_index: int
    data: list[Any]
    session_hash: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    event_data: Any = None


def read_event(blocks: gr.Blocks, body: bytes) -> bytes:
    """`body` as the framework may see it: ASCII, without unknown fields. Raises `BadRequest` and `InvalidRequest`."""
    value = parse_json(body)
    if not isinstance(value, dict):
        raise InvalidRequest("an event is a JSON object")
    try:
        event = PageEvent.model_validate(value)
    except ValidationError as error:
        raise invalid(refusals(error)[0]) from None
    function = blocks.fns.get(event.fn_index)
    if function is None or function.fn is None:
        raise InvalidRequest("the page has no such event", field="fn_index")
    if len(event.data) != len(function.inputs):
        raise InvalidRequest(f"this event has {len(function.inputs)} values", field="data")
    if not all(map(fits, function.inputs, event.data)):
        raise InvalidRequest(NOT_TAKEN, field="data")
    event.event_data = clicked(event.event_data)
    try:
        return json.dumps(event.model_dump(), allow_nan=False).encode("ascii")
    except (ValueError, RecursionError):  # NaN, Infinity, a number of thousands of digits
        raise InvalidRequest("a value is no number that can be used", field="data") from None


def clicked(data: Any) -> dict[str, Any] | None:
    """What a click says of itself, as far as a function of the page reads it; a change says the new value again."""
    if not isinstance(data, dict):
        return None
    return {name: data[name] for name, kind in CLICKED.items() if type(data.get(name)) is kind}


def fits(component: Any, value: Any) -> bool:
    """Whether a component of the page can hold this value; most of them hold texts."""
    if isinstance(component, gr.Dataset):
        return type(value) is int
    if value is None:
        return True
    if isinstance(component, gr.Checkbox):
        return isinstance(value, bool)
    if isinstance(component, NUMBERS):
        return type(value) in (int, float) and abs(value) < 2**53 and isfinite(value)
    return is_file(value) if isinstance(component, FILES) else isinstance(value, str)


def is_file(value: Any) -> bool:
    """Whether this names a file by its path. The framework's removal of old uploads stops at a folder among them."""
    path = value.get("path") if isinstance(value, dict) else None
    return isinstance(path, str) and "\0" not in path and len(path) < 4096 and not Path(path).is_dir()


_refused: ContextVar[list[I2VError] | None] = ContextVar("refused", default=None)


@contextmanager
def refusals_noted() -> Iterator[list[I2VError]]:
    """The list in which a value that a component does not take is noted, while the event's request is answered."""
    noted: list[I2VError] = []
    token = _refused.set(noted)
    try:
        yield noted
    finally:
        _refused.reset(token)


def note_what_components_refuse(blocks: gr.Blocks) -> None:
    """A choice that is not offered, a number out of range, a file that nobody uploaded: the caller's error."""
    preprocess: Callable[..., Any] = blocks.preprocess_data

    async def noting(*given: Any, **named: Any) -> Any:
        try:
            return await preprocess(*given, **named)
        except Exception as error:
            noted = _refused.get()
            if noted is None:
                raise
            noted.append(InvalidRequest(NOT_TAKEN, field="data"))
            raise gr.Error("refused", print_exception=False) from error

    blocks.preprocess_data = noting
