"""The page as it is sent once a model is there: its form holds that model's settings from the start.

A page that was opened while the model loaded is greeted by an event instead, see `i2v.ui.desk.Desk.greet`; for all
others that event, and those that its answer set off, took most of what a visit costs.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from i2v.engine.interface import ModelInfo
from i2v.ui.form import GREETED, Controls, Form, defaults, ends, examples, quality_of
from i2v.ui.texts import Say, label

if TYPE_CHECKING:
    from i2v.jobs.queue import JobQueue


@dataclass(slots=True)
class Welcome:
    """Called before a page is sent; the framework writes its pages from `blocks.config`."""

    blocks: gr.Blocks
    form: Form
    controls: Controls
    names: tuple[gr.Textbox, ...]  # where the tab holds the name of the model
    words: gr.I18n
    queue: "JobQueue"
    model: ModelInfo | None = None  # the one that the page is written for

    def __call__(self) -> str | None:
        """The name of the model that the page is written for; None before there is one."""
        model = self.queue.model
        if model is not None and model != self.model:
            self._write(model)
            self.model = model
        return None if self.model is None else self.model.name

    def _write(self, model: ModelInfo) -> None:
        form, controls, values = self.form, self.controls, defaults(model)
        for name in GREETED:
            getattr(form, name).value = values[name]
        controls.quality.value = quality_of(model, values["steps"])
        guidance: Any = form.guidance_scale
        if model.guidance_range is not None:
            guidance.minimum, guidance.maximum = model.guidance_range
            guidance.info = label("guidance_kept")
            self._tell("guidance_kept", ends(model.guidance_range))
        controls.examples.samples = controls.examples.raw_samples = examples(model)
        controls.examples.visible = bool(model.vocabulary)
        for holder in self.names:
            holder.value = model.name
        self.blocks.config = self.blocks.get_config_file()

    def _tell(self, key: str, values: dict[str, str]) -> None:
        """Fill in the numbers of a sentence that the browser translates."""
        for language, table in self.words.translations.items():
            table[key] = Say("en" if language == "en" else "zh")(key, **values)
