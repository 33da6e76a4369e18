"""The form: its fields, what they start with for a model, and how they become a photo and a `GenerateRequest`.

The photo is an uploaded file that `i2v.images` reads, with all its limits, and nothing else opens. Gradio's own reading
of images would open any format and any size, so events take the field's raw value: a dictionary whose `path` Gradio has
checked to lie in its upload folder.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast, get_args

import gradio as gr
from gradio.i18n import I18nData
from PIL import Image

from i2v.engine.interface import ModelInfo
from i2v.errors import InvalidImage, InvalidRequest
from i2v.images import decode
from i2v.request import GenerateRequest, Preset, PublicLimits, default_of, parse_size, plain_type
from i2v.ui.mount.upload_total import note_use
from i2v.ui.texts import PageRefusal, Say, label

# Steps a quality stands for. The demo model takes three at most, whatever it is asked for (its card's max_steps).
QUALITY_STEPS = {
    "real": {"fast": 25, "standard": 50, "high": 80},
    "demo": {"fast": 10, "standard": 20, "high": 40},
    "fake": {"fast": 10, "standard": 20, "high": 40},
}
QUALITIES = ("fast", "standard", "high")
PRESETS: tuple[Preset, ...] = get_args(Preset)
AS_PHOTO = "photo"  # the choice of the size list that keeps the photo's shape
WIDE = ((1280, 704), (704, 1280))  # the two sizes of the model's own training
SIDE_STEP = 64  # the published UNet halves the latents three times; every part of it then sees whole pixels
SIZE = re.compile(r"([1-9][0-9]{0,6})x([1-9][0-9]{0,6})")
GREETED = ("size", "num_frames", "fps", "steps", "guidance_scale")  # fields that are made ready for a model


@dataclass(frozen=True, slots=True)
class Form:
    """The components whose values make a request, in the order in which events receive them."""

    photo: gr.Image
    prompt: gr.Textbox
    negative_prompt: gr.Textbox
    size: gr.Dropdown
    fit: gr.Radio
    num_frames: gr.Slider
    fps: gr.Slider
    motion_fps: gr.Slider
    steps: gr.Slider
    guidance_scale: gr.Slider
    preset: gr.Radio
    seed: gr.Textbox

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    def components(self) -> list[gr.components.Component]:
        return [getattr(self, name) for name in self.names()]


@dataclass(frozen=True, slots=True)
class SeedControls:
    """What stands beside the seed."""

    lock: gr.Checkbox
    new: gr.Button
    same: gr.Button


@dataclass(frozen=True, slots=True)
class Controls:
    """The rest of the left half: what is not a value of the request."""

    photo_notice: gr.HTML
    crop: gr.HTML
    prompt_notice: gr.HTML
    examples: gr.Dataset
    quality: gr.Radio
    seed: SeedControls


def defaults(model: ModelInfo | None) -> dict[str, Any]:
    """What the form starts with: the contract's 512 / 16 / 8 / 50 / 9.0, or what a small model is good at."""
    kind = "real" if model is None else model.kind
    values: dict[str, Any] = {name: default_of(name) for name in GREETED if name != "size"}
    values["size"] = size_text(default_of("width"), default_of("height"))
    if kind != "real":
        values |= {"size": "256x256", "steps": QUALITY_STEPS[kind]["standard"]}
    values["guidance_scale"] = within(model, values["guidance_scale"])
    return values


def within(model: ModelInfo | None, guidance: float) -> float:
    """The guidance scale that the engine would use."""
    if model is None or model.guidance_range is None:
        return guidance
    low, high = model.guidance_range
    return max(low, min(high, guidance))


def ends(guidance_range: tuple[float, float]) -> dict[str, str]:
    """The two numbers of the sentence `guidance_kept`."""
    return {"low": f"{guidance_range[0]:g}", "high": f"{guidance_range[1]:g}"}


def examples(model: ModelInfo) -> list[list[str]]:
    """The rows of the examples: what the model is known to do."""
    return [[phrase] for phrase in model.vocabulary]


def quality_steps(model: ModelInfo | None, quality: str) -> int:
    return QUALITY_STEPS["real" if model is None else model.kind][quality]


def quality_of(model: ModelInfo | None, steps: Any) -> str | None:
    """The quality with this number of steps; None where no quality has it."""
    table = QUALITY_STEPS["real" if model is None else model.kind]
    return next((name for name in QUALITIES if table[name] == steps), None)


def build_form(limits: PublicLimits, preset: Preset) -> tuple[Form, Controls]:
    """Draw the fields into the current column; `preset` is the one that the operator chose."""
    photo = _photo()
    photo_notice, crop = gr.HTML(elem_id="photo-notice"), gr.HTML(elem_id="crop")
    prompt = gr.Textbox(
        label=label("prompt"), placeholder=label("prompt_placeholder"), lines=2, max_lines=6, elem_id="prompt"
    )
    prompt_notice = gr.HTML(elem_id="prompt-notice")
    examples = gr.Dataset(
        components=[gr.Textbox(visible=False)],
        samples=[],
        label=label("examples"),
        visible=False,
        elem_id="examples",
        type="values",
        samples_per_page=100,  # all of them: nobody turns a page for two more words
    )
    quality = _segments("quality", [(f"quality_{name}", name) for name in QUALITIES], "standard")
    with gr.Row(equal_height=True):
        size = gr.Dropdown(
            choices=size_choices(limits),
            value=size_text(default_of("width"), default_of("height")),
            label=label("size"),
            allow_custom_value=True,
            elem_id="size",
            min_width=150,
        )
        fit = _segments("fit", [("fit_crop", "crop"), ("fit_pad", "pad")], default_of("fit"), min_width=190)
    with gr.Accordion(label("advanced"), open=False, elem_id="advanced"):
        advanced, seed = _advanced(limits, preset)
    form = Form(photo=photo, prompt=prompt, size=size, fit=fit, **advanced)
    return form, Controls(photo_notice, crop, prompt_notice, examples, quality, seed)


def _photo() -> gr.Image:
    return gr.Image(
        label=label("photo"),
        sources=["upload", "clipboard", "webcam"],
        format="png",  # a photo that is put back into the form stays exactly what it was
        type="filepath",
        image_mode=None,
        buttons=[],
        elem_id="photo",
        placeholder=label("photo_hint"),
        height=190,
    )


def _segments(name: str, choices: list[tuple[str, str]], value: str, min_width: int = 160) -> gr.Radio:
    """A choice drawn as one bar; `choices` are keys of the texts and values."""
    return gr.Radio(
        choices=[(cast(str, label(key)), choice) for key, choice in choices],
        value=value,
        label=label(name),
        elem_id=name,
        elem_classes="segments",
        min_width=min_width,
    )


def size_choices(limits: PublicLimits) -> list[tuple[str, str]]:
    """(label, value) of each line of the size list."""
    plain = [(f"{w} × {h}", size_text(w, h)) for w, h in offered_sizes(limits)]
    return [*plain, (cast(str, label("size_photo")), AS_PHOTO)]


def offered_sizes(limits: PublicLimits) -> list[tuple[int, int]]:
    """Squares first, then the two sizes of the model's own training, as far as the operator allows them."""
    squares = [(side, side) for side in limits.resolutions]
    wide = [(w, h) for w, h in WIDE if max(w, h) <= limits.side[1] and w * h <= limits.max_pixels]
    return squares + wide


def size_text(width: int, height: int) -> str:
    """As the page writes a size, in pixels."""
    return f"{width}x{height}"


def read_photo_size(text: Any) -> tuple[int, int] | None:
    """Width and height in pixels, both at least 1, of what `size_text` wrote for a photo; None for any other value."""
    found = SIZE.fullmatch(text) if isinstance(text, str) else None
    return None if found is None else (int(found[1]), int(found[2]))


def _advanced(limits: PublicLimits, preset: Preset) -> tuple[dict[str, Any], SeedControls]:
    negative = gr.Textbox(label=label("negative"), info=label("negative_info"), lines=1, elem_id="negative")
    with gr.Row():
        frames = _slider(limits, "num_frames", "frames")
        steps = _slider(limits, "steps", "steps")
    with gr.Row():
        fps = _slider(limits, "fps", "fps")
        motion_fps = _slider(limits, "motion_fps", "motion_fps")
    guidance = _slider(limits, "guidance_scale", "guidance", step=0.1)
    shortcut = gr.Radio(
        choices=[(cast(str, I18nData(f"preset_{name}")), name) for name in PRESETS],
        value=preset,
        label=label("preset"),
        elem_id="preset",
    )
    # A text, because the framework's number field turns "none" into 0: every video then had the same seed.
    seed = gr.Textbox(
        label=label("seed"), info=label("seed_info"), value="", max_length=16, lines=1, max_lines=1, elem_id="seed"
    )
    with gr.Row(elem_id="seed-row"):
        lock = gr.Checkbox(label=label("seed_lock"), container=False, elem_id="seed-lock", min_width=90)
        new_seed = gr.Button(label("seed_dice"), size="sm", elem_id="seed-new", min_width=90)
        same_seed = gr.Button(label("seed_same"), size="sm", elem_id="seed-same", min_width=90)
    values = {
        "negative_prompt": negative,
        "num_frames": frames,
        "steps": steps,
        "fps": fps,
        "motion_fps": motion_fps,
        "guidance_scale": guidance,
        "preset": shortcut,
        "seed": seed,
    }
    return values, SeedControls(lock, new_seed, same_seed)


def _slider(limits: PublicLimits, field: str, name: str, step: float = 1) -> gr.Slider:
    """A number of the request with its public range and its default; `name` is that of its words and its element."""
    return gr.Slider(
        *limits.range(field),
        value=default_of(field),
        step=step,
        label=label(name),
        info=label(f"{name}_info"),
        elem_id=name,
        min_width=200,
    )


def read_photo(value: Any, max_pixels: int) -> Image.Image | None:
    """The chosen photo, upright RGB, or None. Raises `InvalidImage`, also when the uploaded file has been removed."""
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str):
        return None
    try:
        data = Path(path).read_bytes()
        note_use(Path(path))
    except OSError:
        raise InvalidImage("the photo is no longer on the server; choose it again", field="image") from None
    return decode(data, max_pixels=max_pixels)


def read_request(
    say: Say, values: Mapping[str, Any], photo: tuple[int, int], limits: PublicLimits, model: ModelInfo | None
) -> GenerateRequest:
    """The job that the form describes. Raises `PageRefusal` and `InvalidRequest`."""
    prompt = str(values["prompt"] or "").strip()
    if not prompt:
        raise PageRefusal(say("needs_prompt"), field="prompt")
    width, height = size_of(values, photo, limits, model)
    return request_of(say, {**values, "prompt": prompt}, width, height, limits)


def request_of(say: Say, values: Mapping[str, Any], width: int, height: int, limits: PublicLimits) -> GenerateRequest:
    """The fields' values as a request within the public limits. Raises `PageRefusal` and `InvalidRequest`."""
    named = {name: _number(name, value) for name, value in values.items() if name != "size"}
    named |= {"negative_prompt": str(values["negative_prompt"] or "").strip() or None}
    named |= {"seed": seed_of(say, values["seed"]), "width": width, "height": height}
    return limits.read(named)


def _number(name: str, value: Any) -> Any:
    """The value of a slider as the type of number that its field holds. Raises `InvalidRequest` for an empty one."""
    kind = plain_type(GenerateRequest.model_fields[name].annotation)
    if name == "seed" or kind not in (int, float):
        return value
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidRequest("a number is missing or not a number", field=name) from None


def values_of(request: GenerateRequest, model: ModelInfo | None) -> list[Any]:
    """The fields' values for a job that is there, in the order of `Form.names()`, without the photo.

    Guidance comes as the engine would take it: within the range of the model, which is that of the slider.
    """
    seed = "" if request.seed is None else str(request.seed)
    values = {**request.model_dump(), "size": size_text(request.width, request.height), "seed": seed}
    values["guidance_scale"] = within(model, request.guidance_scale)
    return [values[name] for name in Form.names()[1:]]


def seed_of(say: Say, value: Any) -> int | None:
    """None for an empty field. Raises `PageRefusal` for what is no whole number."""
    text = str("" if value is None else value).strip()
    if not text:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise PageRefusal(say("seed_wanted"), field="seed")
    return int(text)


def size_of(
    values: Mapping[str, Any], photo: tuple[int, int], limits: PublicLimits, model: ModelInfo | None
) -> tuple[int, int]:
    """Width and height in pixels for the chosen size; "as the photo" keeps the default size's area.

    Raises `InvalidRequest`.
    """
    if values["size"] == AS_PHOTO:
        side = int(str(defaults(model)["size"]).split("x")[0])
        return as_photo(photo, side * side, limits)
    return parse_size(str(values["size"]).replace(" ", ""))


def as_photo(photo: tuple[int, int], area: int, limits: PublicLimits) -> tuple[int, int]:
    """The photo's shape at about `area` pixels: both sides multiples of 64, within the public limits."""
    width, height = photo
    scale = (area / (width * height)) ** 0.5
    low, high = limits.side
    sides = [min(high, max(low, round(side * scale / SIDE_STEP) * SIDE_STEP)) for side in (width, height)]
    while sides[0] * sides[1] > limits.max_pixels:
        longer = sides.index(max(sides))
        sides[longer] -= SIDE_STEP
    return sides[0], sides[1]
