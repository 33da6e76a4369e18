"""`/openapi.json` and `/docs` are made from the models, within the limits of the operator whose server it is."""

import json
import re
from html import unescape

import httpx
import pytest

from i2v.errors import InvalidRequest
from i2v.jobs.queue import JobQueue
from i2v.request import RANGES, GenerateRequest, PublicLimits
from i2v.server.app import create_app
from i2v.server.predict_request import FIELDS
from i2v.server.video_object import VideoObject
from i2v.server.video_request import CREATE_VIDEO, NewVideo
from i2v.settings import Settings


def document(tmp_path, **more):
    settings = Settings(model="fake", outputs=tmp_path, **more)
    return create_app(settings, JobQueue(settings)).openapi()


def schema(tmp_path, name, **more):
    return document(tmp_path, **more)["components"]["schemas"][name]


def number(found):
    return next((part for part in found.get("anyOf", ()) if part["type"] != "null"), found)


@pytest.mark.parametrize("resolutions", [(256, 512, 768), (256, 512, 768, 1024), (512,), (1536,)])
def test_the_sizes_are_those_that_the_operator_allows(tmp_path, resolutions):
    """The document said 256, 512 and 768 whatever was set."""
    values = schema(tmp_path, "PredictBody", resolutions=resolutions)["properties"]["data"]["prefixItems"]
    assert [value["title"] for value in values] == list(FIELDS)
    assert values[FIELDS.index("resolution")]["enum"] == list(resolutions)
    largest = max(resolutions)
    for name in ("CreateVideo", "CreateVideoForm"):
        size = schema(tmp_path, name, resolutions=resolutions)["properties"]["size"]
        assert f"128 to {max(1280, largest)} each" in size["description"]
        assert f"at most {max(1280 * 768, largest**2)} pixels" in size["description"]
        assert size["default"] == "512x512"


def test_two_servers_in_one_process_have_a_document_each(tmp_path):
    one, other = (json.dumps(document(tmp_path, resolutions=sizes)) for sizes in ((256,), (1024,)))
    assert one != other
    assert one == json.dumps(document(tmp_path, resolutions=(256,)))


@pytest.mark.parametrize("preset", ["exact", "turbo"])
def test_what_a_field_stands_for_when_it_is_left_out_is_told(tmp_path, preset):
    found = schema(tmp_path, "CreateVideo", default_preset=preset)["properties"]
    job = PublicLimits(defaults={"preset": preset}).read({"prompt": "x"})
    assert found["preset"]["default"] == preset
    for name in found.keys() & GenerateRequest.model_fields.keys() - {"prompt"}:
        assert found[name]["default"] == getattr(job, name), name
    assert found["prompt"]["maxLength"] == 2000


@pytest.mark.parametrize("name", RANGES)
def test_the_ranges_of_both_dialects_are_the_ones_that_are_checked(tmp_path, name):
    low, high = RANGES[name]
    places = [schema(tmp_path, "CreateVideo")["properties"][name]]
    if name in FIELDS:
        places.append(schema(tmp_path, "PredictBody")["properties"]["data"]["prefixItems"][FIELDS.index(name)])
    for place in map(number, places):
        assert (place["minimum"], place["maximum"]) == (low, high)
        with pytest.raises(InvalidRequest):
            PublicLimits().read({"prompt": "x", name: place["maximum"] + 1})


def test_the_named_dialect_takes_every_field_of_a_job_with_size_for_its_sides():
    own = set(NewVideo.model_fields)
    assert set(CREATE_VIDEO.model_fields) == own | (set(GenerateRequest.model_fields) - {"width", "height"})
    assert own == {"prompt", "input_reference", "model", "seconds", "size", "webhook"}
    for name in GenerateRequest.model_fields.keys() & CREATE_VIDEO.model_fields.keys():
        assert CREATE_VIDEO.model_fields[name].description == GenerateRequest.model_fields[name].description
        assert CREATE_VIDEO.model_fields[name].description


def test_every_field_of_the_video_object_is_described_with_its_type(tmp_path):
    found = schema(tmp_path, "VideoObject")
    assert list(found["properties"]) == list(VideoObject.model_fields)
    assert found["required"] == list(VideoObject.model_fields)
    for name, field in found["properties"].items():
        assert field.keys() & {"type", "anyOf", "enum", "const", "$ref"}, name
    nullable = {name for name, field in found["properties"].items() if {"type": "null"} in field.get("anyOf", ())}
    assert nullable == {
        *("completed_at", "expires_at", "error", "model", "extends", "stage", "position", "eta_s"),
        *("stage_seconds", "peak_memory_mb"),
    }


def test_every_reference_leads_somewhere_and_no_schema_of_the_framework_is_left(tmp_path):
    """Routes with a parameter promised the framework's own 422, which no client ever got."""
    found = document(tmp_path)
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(found)))
    assert names <= set(found["components"]["schemas"])
    assert "HTTPValidationError" not in found["components"]["schemas"]
    assert not any("$defs" in one for one in found["components"]["schemas"].values())


async def test_docs_show_the_video_object_with_every_field(client):
    page = unescape((await client.get("/docs")).text)
    part = page.partition('<h3 id="VideoObject">')[2].partition("<h3 id=")[0]
    for name, field in VideoObject.model_fields.items():
        assert f"<code>{name}</code>" in part
        assert (field.description or "") in part
    assert "number or null" in part


async def test_docs_escape_what_they_show_and_say_what_may_be_left_out(client):
    page = (await client.get("/docs")).text
    assert "data:image/&lt;type&gt;;base64" in page
    assert "<type>" not in page
    part = page.partition('<h3 id="CreateVideo">')[2].partition("<h3 id=")[0]
    shown = dict(re.findall(r"<dt><code>(\w+)</code>(.*?)</dt>", part))
    assert "may be left out" not in shown["prompt"]
    assert "may be left out" in shown["seed"]


async def test_docs_show_this_operator_s_sizes(tmp_path):
    settings = Settings(model="fake", outputs=tmp_path, resolutions=(256, 1024))
    app = create_app(settings, JobQueue(settings))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        page = unescape((await client.get("/docs")).text)
    assert "1048576 pixels in all" in page
    assert page.count('"the scene at sunset", 256, 16, 8, 50, 9.0]') == 2  # 512 would be refused here
    assert "768" not in page.partition('<h3 id="PredictBody">')[2].partition("<h3 id=")[0]
