"""The probes, the metrics and the documentation: what they say in each state, and that they cost no job."""

import re

import httpx
import pytest

from i2v.engine.fake import FakeEngine
from i2v.engine.interface import DeviceMemory
from i2v.errors import OutOfMemory
from i2v.jobs.queue import JobQueue
from i2v.mutex import GpuMutex
from i2v.notes import Note
from i2v.server.app import create_app


@pytest.fixture
async def starting(settings):
    """A server whose engine is not there yet: (client, queue)."""
    queue = JobQueue(settings)
    app = create_app(settings, queue)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield client, queue


async def test_a_loading_server_is_alive_but_not_ready_and_says_how_far_it_is(starting):
    client, queue = starting
    queue.report_loading(Note("loading", {"part": Note("text_encoder")}), 0.42)
    assert (await client.get("/livez")).status_code == 200
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    body = answer.json()
    assert body["loading"] == {"what": "loading text encoder", "fraction": 0.42}
    assert body["error"] == "the model is not loaded yet: loading text encoder (42%)"
    assert body["model"] is None


async def test_a_loading_server_refuses_jobs_with_a_time_to_ask_again(starting, small_url):
    client, _queue = starting
    answer = await client.post("/api/predict/", json={"data": [small_url, "x", 256, 8, 8, 10, 7.5]})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert (await client.get("/v1/models")).json()["data"] == []


async def test_it_is_ready_once_the_engine_is_there(starting):
    client, queue = starting
    queue.attach(FakeEngine(), GpuMutex())
    answer = await client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["model"]["name"] == "fake"
    assert "not a model" in answer.json()["model"]["note"]


async def test_a_model_that_cannot_be_loaded_is_named_by_the_probe(starting):
    client, queue = starting
    queue.fail_loading("the weights are not there")
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert "the weights are not there" in answer.json()["error"]


async def test_it_is_not_ready_when_the_folder_cannot_be_written(client, settings):
    moved = settings.outputs.with_name("moved")
    settings.outputs.rename(moved)
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["status"] == "storage"
    assert str(settings.outputs) not in answer.text
    moved.rename(settings.outputs)
    assert (await client.get("/readyz")).status_code == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/docs", "/openapi.json"])
async def test_asking_costs_no_job(client, queue, path):
    assert (await client.get(path)).status_code == 200
    assert queue.list() == []


async def test_probes_may_be_asked_with_head(client):
    for path in ("/livez", "/readyz"):
        answer = await client.head(path)
        assert answer.status_code == 200


async def test_metrics_count_requests_by_route_and_jobs_by_state(client, predict, small_url):
    await predict([small_url, "x", 256, 8, 8, 10, 7.5])
    await client.get("/v1/videos/some-id-that-must-not-become-a-label")
    text = (await client.get("/metrics")).text
    assert 'i2v_jobs{status="completed"} 1.0' in text
    assert "i2v_queue_length 0.0" in text
    assert "i2v_ready 1.0" in text
    assert re.search(r'i2v_http_requests_total\{method="POST",route="/api/predict/",status="200"\} 1\.0', text)
    assert "some-id" not in text


async def test_metrics_tell_how_jobs_ended_and_where_their_time_went(client, predict, small_url, engine):
    await predict([small_url, "x", 256, 8, 8, 10, 7.5])

    def fault(stage, step):
        raise OutOfMemory("not enough")

    engine.fault = fault
    await predict([small_url, "x", 256, 8, 8, 10, 7.5])
    text = (await client.get("/metrics")).text
    assert 'i2v_jobs_finished_total{code="none",status="completed"} 1.0' in text
    assert 'i2v_jobs_finished_total{code="out_of_memory",status="failed"} 1.0' in text
    assert 'i2v_job_stage_seconds_count{stage="denoise"} 1.0' in text
    assert "process_resident_memory_bytes" in text


async def test_metrics_tell_memory_that_ran_out_and_memory_as_it_is(client, predict, small_url, engine):
    text = (await client.get("/metrics")).text
    assert "i2v_out_of_memory_total 0.0" in text, "an alert on its rate needs the zero before the first one"
    assert "i2v_device_memory_bytes" not in text, "no GPU, no figure"
    engine.memory = DeviceMemory(held=5_000, free=3_000, total=8_000)

    def fault(stage, step):
        raise OutOfMemory("not enough")

    engine.fault = fault
    await predict([small_url, "x", 256, 8, 8, 10, 7.5])
    text = (await client.get("/metrics")).text
    assert "i2v_out_of_memory_total 1.0" in text
    for kind, size in (("held", "5000.0"), ("free", "3000.0"), ("total", "8000.0")):
        assert f'i2v_device_memory_bytes{{kind="{kind}"}} {size}' in text


async def test_metrics_answer_while_the_engine_loads(starting):
    client, _queue = starting
    assert "i2v_ready 0.0" in (await client.get("/metrics")).text


async def test_the_documentation_names_every_route_and_loads_nothing(client):
    page = await client.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"<script|<link|<img|src=", page.text)
    links = set(re.findall(r'href="(.*?)"', page.text))
    assert {link for link in links if not link.startswith("#")} == {"/openapi.json"}
    assert {link[1:] for link in links if link.startswith("#")} <= set(re.findall(r'id="(.*?)"', page.text))
    for path in (await client.get("/openapi.json")).json()["paths"]:
        assert path.replace("{", "{") in page.text
