"""The request's fields: what the doors take, what is refused in which words, and that each fact stands once."""

from typing import Any

import pytest

from i2v.errors import InvalidRequest
from i2v.request import MAX_SIDE, RANGES, GenerateRequest, PublicLimits, default_of, parse_size, plain_type
from i2v.settings import Settings

LIMITS = PublicLimits()


def refusal(**values: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        LIMITS.read({"prompt": "x"} | values)
    return caught.value


@pytest.mark.parametrize("name", RANGES)
def test_both_ends_of_a_public_range_are_taken_and_nothing_beyond(name: str) -> None:
    low, high = RANGES[name]
    for end in (low, high):
        assert getattr(LIMITS.read({"prompt": "x", name: end}), name) == end
    for beyond in (low - 1, high + 1, -(10**4000), 10**30):
        assert refusal(**{name: beyond}).field == name
    schema = GenerateRequest.model_json_schema()["properties"][name]
    schema = next((part for part in schema.get("anyOf", ()) if part["type"] != "null"), schema)
    assert (schema["minimum"], schema["maximum"]) == (low, high)


@pytest.mark.parametrize("name", [name for name in GenerateRequest.model_fields if name != "prompt"])
def test_every_default_is_within_its_public_range(name: str) -> None:
    assert getattr(LIMITS.read({"prompt": "x"}), name) == default_of(name)


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"steps": 9}, "steps", "steps is 9; 10 to 100 is wanted"),
        ({"steps": 0}, "steps", "steps is 0; 10 to 100 is wanted"),  # beyond what any engine takes
        ({"num_frames": 10**4000}, "num_frames", "an integer of more than 18 digits; 8 to 32 is wanted"),
        ({"num_frames": 8.5}, "num_frames", "num_frames must be an integer; received 8.5"),
        ({"num_frames": True}, "num_frames", "num_frames must be an integer; received a boolean"),
        ({"guidance_scale": float("nan")}, "guidance_scale", "guidance_scale must be a finite number; received NaN"),
        ({"seed": "1"}, "seed", "seed must be an integer or null; received a string"),
        ({"negative_prompt": 1}, "negative_prompt", "negative_prompt must be a string or null; received an integer"),
        ({"prompt": None}, "prompt", "prompt must be a string; received null"),
        ({"prompt": " \n"}, "prompt", "prompt is empty; 1 to 2000 characters are wanted"),
        ({"prompt": "x" * 2001}, "prompt", "prompt has 2001 characters; at most 2000 are taken"),
        ({"negative_prompt": "x" * 2001}, "negative_prompt", "negative_prompt has 2001 characters; at most 2000"),
        ({"num_frames": 8.0}, "num_frames", "num_frames must be an integer; received 8.0"),
        ({"guidance_scale": 10**400}, "guidance_scale", "received an integer of more than 18 digits"),
        ({"negative_prompt": "a\x00"}, "negative_prompt", "must not hold control characters; received a string"),
        ({"prompt": "a\x00"}, "prompt", "prompt: must not hold control characters; received a string"),
        ({"width": 1288}, "size", "width is 1288; 128 to 1280 is wanted"),
        ({"width": MAX_SIDE + 8}, "size", f"width is {MAX_SIDE + 8}; 128 to 1280 is wanted"),
        ({"width": 1280, "height": 1280}, "size", "1280x1280 has 1638400 pixels; at most 983040 are taken"),
        ({"preset": "best"}, "preset", "preset: Input should be 'exact', 'fast' or 'turbo'; received a string"),
        ({"colour": 1}, "colour", "colour is not a known field"),
    ],
)
def test_a_refusal_says_the_field_what_is_wanted_and_what_came(values: dict[str, Any], field: str, words: str) -> None:
    error = refusal(**values)
    assert error.field == field
    assert words in error.message


def test_a_prompt_of_megabytes_is_refused_before_its_characters_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("i2v.request.clean_text", lambda value: pytest.fail("looked at"))
    assert "at most 2000" in refusal(prompt="x" * 2_000_000).message


def test_a_prompt_may_have_its_full_length_and_space_around_it() -> None:
    assert LIMITS.read({"prompt": " " * 5000 + "x" * 2000 + "\n"}).prompt == "x" * 2000


def test_an_operator_s_default_counts_where_a_request_names_none() -> None:
    limits = Settings(default_preset="turbo").limits
    assert limits.read({"prompt": "x"}).preset == "turbo"
    assert limits.read({"prompt": "x", "preset": "fast"}).preset == "fast"


def test_a_changed_request_is_checked_as_a_new_one() -> None:
    old = GenerateRequest(prompt="x", steps=10, seed=1)
    assert LIMITS.changed(old, prompt=" y ") == old.model_copy(update={"prompt": "y"})
    with pytest.raises(InvalidRequest, match="steps is 1;"):
        LIMITS.changed(GenerateRequest(prompt="x", steps=1), prompt="y")


@pytest.mark.parametrize(("text", "size"), [("512x512", (512, 512)), ("1280x704", (1280, 704)), ("8x8", (8, 8))])
def test_a_size_is_width_x_height(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "512", "512x", "0x8", "-8x8", "8x8x8", "8X8", " 8x8", "8x8\n", "٨x٨", "1" * 5000 + "x8"]
)
def test_a_size_in_another_form_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r'^size must be WIDTHxHEIGHT in pixels, such as "1280x720"$'):
        parse_size(text)


@pytest.mark.parametrize(("text", "near"), [("257x256", "256x256"), ("1x1", "8x8"), ("1001x999", "1000x1000")])
def test_a_size_not_in_eights_names_the_nearest(text: str, near: str) -> None:
    with pytest.raises(InvalidRequest, match=f"such as {near}$"):
        parse_size(text)


def test_the_plain_type_of_a_field_is_what_stands_beside_none() -> None:
    kinds = {name: plain_type(field.annotation) for name, field in GenerateRequest.model_fields.items()}
    assert {name for name, kind in kinds.items() if kind is int} == {
        *("width", "height", "num_frames", "fps", "motion_fps", "steps", "seed")
    }
    assert (kinds["guidance_scale"], kinds["prompt"], kinds["negative_prompt"]) == (float, str, str)


def test_every_door_has_every_field_of_a_job() -> None:
    """`/api/predict/` alone has a fixed list, and the page and `/v1/videos` a size for the two sides."""
    from i2v.cli.options import FIELDS as OPTIONS
    from i2v.server.video_request import CREATE_VIDEO
    from i2v.ui.form import Form

    fields = set(GenerateRequest.model_fields)
    sides = {"width", "height"}
    assert set(OPTIONS) == fields - {"prompt"}
    assert fields - sides <= set(CREATE_VIDEO.model_fields)
    assert set(Form.names()) == fields - sides | {"size", "photo"}
