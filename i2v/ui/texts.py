"""Every word of the page, in English and Chinese, from the table of `texts.yaml`.

Labels go to Gradio's I18n, which translates in the browser; sentences with numbers in them are written on the server
by `say`, in the language that the browser asks for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from gradio.i18n import I18nData

from i2v import notes
from i2v.engine.interface import ModelInfo
from i2v.errors import DoesNotFit, I2VError, InvalidRequest
from i2v.notes import Language, Note

TABLE = notes.read_table(Path(__file__).with_suffix(".yaml"))


def translations(written: Mapping[str, tuple[str, str]]) -> gr.I18n:
    """Gradio's table, with what is `written` for this server; both Chinese codes, because browsers send either."""
    table = {**TABLE, **written}
    en = {key: pair[0] for key, pair in table.items()}
    zh = {key: pair[1] for key, pair in table.items()}
    return gr.I18n(**{"en": en, "zh": zh, "zh-CN": zh, "zh-TW": zh})


def label(key: str) -> I18nData:
    """A label that the browser translates; a key that is not in the table is a programmer's error."""
    if key not in TABLE:
        raise KeyError(key)
    return I18nData(key)


def language(request: gr.Request | None) -> Language:
    """The first language of `Accept-Language` decides, as the browser's own labels do."""
    accepted = "" if request is None else str(request.headers.get("accept-language", ""))
    return "zh" if accepted.lstrip().lower().startswith("zh") else "en"


@dataclass(frozen=True, slots=True)
class Say:
    """Says texts of the table, and the engine's notes, in one language."""

    language: Language

    def __call__(self, key: str, **values: object) -> str:
        return TABLE[key][self.language == "zh"].format(**values)

    def note(self, note: Note | str) -> str:
        return notes.say(note, self.language)


class PageRefusal(InvalidRequest):
    """What the page itself refuses, in the reader's language."""


def explained(say: Say, code: str, message: str) -> str:
    """An error's own sentence; in Chinese what kind of error it is before it."""
    key = f"error_{code}"
    return say(key, message=message) if key in TABLE else message


def told(say: Say, error: I2VError) -> str:
    """Why something was refused, in the reader's language; for a job that does not fit, what would."""
    if isinstance(error, DoesNotFit) and error.largest:
        return say("fits", **error.largest)
    if error.note is not None:
        return say.note(error.note)
    return error.message if isinstance(error, PageRefusal) else explained(say, error.code, error.message)


def titled(say: Say, kind: str, title: str) -> str:
    """A model's title; that of the demo model and of the fake engine in the reader's language."""
    return title if kind == "real" or say.language == "en" else say(f"title_{kind}")


def about(say: Say, model: ModelInfo) -> str:
    """What a model is not, in a sentence; empty where there is nothing to say."""
    if model.kind == "fake":
        return say.note(Note("fake_engine"))
    return say(f"note_{model.kind}", note=model.note) if model.note else ""


def duration(say: Say, seconds: float) -> str:
    """8 s, 2 min 5 s, 1 h 4 min: never more digits than the estimate deserves."""
    whole = max(1, round(seconds))
    if whole < 60:
        return say("seconds", n=whole)
    if whole < 3600:
        return say("minutes", m=whole // 60, s=whole % 60)
    return say("hours", h=whole // 3600, m=whole % 3600 // 60)
