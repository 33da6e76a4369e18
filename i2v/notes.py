"""What the engine noticed, as values, and the one place where they become words: `Note`, and `say`.

The engine makes notes, rows keep them as JSON, and each door says them in its reader's language by the
sentences of `notes.yaml`. Nothing reads a sentence back. Knows no torch, no web framework and no jobs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any, Literal, Union

import yaml

Language = Literal["en", "zh"]
Value = Union[str, int, float, "Note", Sequence["Value"]]


@dataclass(frozen=True, slots=True)
class Note:
    """One fact: its `code`, a key of `WORDS`, and the numbers, strings, lists and notes that its sentence names."""

    code: str
    values: Mapping[str, Value] = field(default_factory=dict)


def read_table(path: Path) -> Mapping[str, tuple[str, str]]:
    """The English and the Chinese text of each key of a file of this package, as `str.format` takes them."""
    return {key: (texts["en"], texts["zh"]) for key, texts in yaml.safe_load(path.read_text(encoding="utf-8")).items()}


WORDS = read_table(Path(__file__).with_suffix(".yaml"))


def say(note: Note | str, language: Language = "en") -> str:
    """The note's sentence. Text is said as it is: rows of older versions hold sentences in English."""
    if isinstance(note, str):
        return note
    return _Words(language).format(WORDS[note.code][language == "zh"], **note.values)


def read(kept: Any) -> Note | str:
    """A note from its JSON, `{"code": ..., "values": {...}}`. A kept sentence stays text.

    So does a code that this version does not know: a newer version may have kept it.
    """
    if isinstance(kept, str):
        return kept
    if kept["code"] not in WORDS:
        return str(kept["code"])
    return Note(kept["code"], {name: _read_value(value) for name, value in kept["values"].items()})


def _read_value(kept: Any) -> Value:
    if isinstance(kept, list):
        return tuple(map(_read_value, kept))
    return read(kept) if isinstance(kept, dict) else kept


class _Words(Formatter):
    """`str.format` that says notes inside notes, and joins lists by what stands after the colon."""

    def __init__(self, language: Language) -> None:
        self.language = language

    def format_field(self, value: Any, spec: str) -> Any:
        if isinstance(value, Note):
            return say(value, self.language)
        if isinstance(value, (list, tuple)):
            return spec.join(self.format_field(part, "") for part in value)
        return format(value, spec)
