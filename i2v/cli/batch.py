"""A table of jobs -> rows to run: CSV with a heading line, or one JSON object a line.

The whole table is checked before the first job runs. A row's video has a fixed name, so what is there is done.
"""

import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from i2v.cli.inputs import sized
from i2v.cli.options import field_type
from i2v.client import ClientError
from i2v.errors import I2VError, InvalidRequest
from i2v.request import GenerateRequest

ROW_ERRORS = (I2VError, ClientError)  # end one row; anything else ends the run


@dataclass(frozen=True, slots=True)
class Row:
    """One job: line `number` of the table, the photo, what was asked for, and where the video goes."""

    number: int
    image: Path
    out: Path
    asked: dict[str, Any]
    request: GenerateRequest


def read_rows(table: Path, folder: Path, check: Callable[[dict[str, Any]], GenerateRequest]) -> list[Row]:
    """All rows of a table. `image` counts from the table's own folder, `out` (default: `<line>.mp4`) from `folder`.

    `check` is called with the fields of each row. Raises `InvalidRequest` that names the first bad line.
    """
    try:
        text = table.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidRequest(f"the table {table} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"the table {table} is not UTF-8 text") from None
    rows: list[Row] = []
    for number, fields in _json_lines(text) if table.suffix.lower() in (".jsonl", ".ndjson") else _csv_lines(text):
        try:
            rows.append(_row(number, fields, table.parent, folder, check))
        except InvalidRequest as error:
            raise InvalidRequest(f"{table}, line {number}: {error.message}", field=error.field) from None
    names = [row.out for row in rows]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidRequest(f"{table}: two rows write {twice}", field="out")
    return rows


def _row(
    number: int,
    fields: dict[str, Any],
    base: Path,
    folder: Path,
    check: Callable[[dict[str, Any]], GenerateRequest],
) -> Row:
    asked = {name: value for name, value in fields.items() if value is not None and value != ""}
    image, out = asked.pop("image", None), asked.pop("out", f"{number:04d}.mp4")
    if not isinstance(image, str) or not isinstance(out, str):
        raise InvalidRequest("image (and out) must be the name of a file", field="image")
    width, height = sized(asked.pop("size", None), asked.get("width"), asked.get("height"))
    if width is not None:
        asked |= {"width": width, "height": height}
    if "prompt" not in asked:
        raise InvalidRequest("prompt is missing", field="prompt")
    return Row(number, base / image, folder / out, asked, check(asked))


def _json_lines(text: str) -> Iterable[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise InvalidRequest(f"line {number} is not a JSON object")
        yield number, fields


def _csv_lines(text: str) -> Iterable[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(text.splitlines(), restkey="")
    for fields in reader:
        if "" in fields:
            raise InvalidRequest(f"line {reader.line_num} has more values than the heading has names")
        yield reader.line_num, {name: _number(name, value) for name, value in fields.items()}


def _number(name: str, value: str | None) -> Any:
    """CSV holds text only; what is no number stays text, and is refused with its field's name."""
    if not value or name not in GenerateRequest.model_fields:
        return value
    kind, _ = field_type(name)
    try:
        return kind(value)
    except ValueError:
        return value
