"""`POST /api/predict/` as existing scripts use it: what it answers, what it refuses, and in which words."""

import asyncio
import json
import re
import threading
from pathlib import Path

import pytest

from i2v.errors import OutOfMemory
from i2v.video import probe, read_frames

PATHS = ("/api/predict/", "/api/predict", "/run/predict/", "/run/predict")


@pytest.mark.parametrize("path", PATHS)
async def test_every_spelling_of_the_path_makes_a_video(client, small_url, path):
    answer = await client.post(path, json={"data": [small_url, "the scene at sunset", 256, 8, 8, 10, 7.5]})
    assert answer.status_code == 200
    assert set(answer.json()) == {"data", "is_generating", "duration", "average_duration"}


async def test_the_success_body_is_exactly_what_scripts_expect(predict, data_url, settings):
    answer = await predict([data_url, "the scene at sunset", 256, 8, 8, 10, 7.5, 42])
    body = answer.json()
    path, summary, seconds = body["data"]
    assert body["is_generating"] is False
    assert body["duration"] > 0
    assert body["average_duration"] > 0
    assert re.fullmatch(r"\d+\.\d+s", seconds)
    assert "42" in summary
    assert "the scene at sunset" in summary
    video = Path(path)
    assert video.is_absolute()
    assert video.parent == settings.outputs.resolve()
    assert re.fullmatch(r"video_\d{8}_\d{6}_[a-z0-9]{6}\.mp4", video.name)
    facts = probe(video)
    assert (facts.frames, facts.width, facts.height, facts.fps) == (8, 256, 256, 8)
    frames = read_frames(video)
    assert (frames[0] != frames[-1]).any()
    assert video.stat().st_mode & 0o777 == 0o644


async def test_the_headers_lead_to_the_job_and_its_file(client, predict, small_url):
    answer = await predict([small_url, "x", 256, 8, 8, 10, 7.5])
    assert re.fullmatch(r"video_[0-9a-f]{24}", answer.headers["x-job-id"])
    video = await client.get(answer.headers["x-video-url"])
    assert video.status_code == 200
    assert video.headers["content-type"] == "video/mp4"
    assert video.content == Path(answer.json()["data"][0]).read_bytes()


async def test_a_script_that_names_no_preset_gets_the_exact_one(predict, small_url, queue):
    answer = await predict([small_url, "x", 256, 8, 8, 10, 7.5])
    assert queue.get(answer.headers["x-job-id"]).request.preset == "exact"


async def test_seed_and_negative_prompt_may_follow(predict, small_url, queue):
    answer = await predict([small_url, "x", 256, 8, 8, 10, 7.5, 7, "blurry"])
    request = queue.get(answer.headers["x-job-id"]).request
    assert (request.seed, request.negative_prompt) == (7, "blurry")
    answer = await predict([small_url, "x", 256, 8, 8, 10, 7.5, None, None])
    request = queue.get(answer.headers["x-job-id"]).request
    assert request.seed is not None
    assert request.negative_prompt is None


async def test_integral_floats_are_integers_and_an_integer_is_a_float(predict, small_url, queue):
    answer = await predict([small_url, "x", 256.0, 8.0, 8.0, 10.0, 7])
    request = queue.get(answer.headers["x-job-id"]).request
    assert (request.width, request.num_frames, request.guidance_scale) == (256, 8, 7.0)


@pytest.mark.parametrize(
    "more", [{"fn_index": None}, {"fn_index": 0}, {"fn_index": "0"}, {"session_hash": "a"}, {"x": 1}]
)
async def test_the_other_keys_of_old_clients_are_ignored(predict, small_url, more):
    assert (await predict([small_url, "x", 256, 8, 8, 10, 7.5], **more)).status_code == 200


@pytest.mark.parametrize("fn_index", [1, "1", True, False, [], {}, -1, 1.5])
async def test_another_function_is_not_found(predict, small_url, fn_index):
    assert (await predict([small_url, "x", 256, 8, 8, 10, 7.5], fn_index=fn_index)).status_code == 404


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "nonsense"])
async def test_the_body_is_json_whatever_its_content_type_says(client, small_url, content_type):
    body = json.dumps({"data": [small_url, "x", 256, 8, 8, 10, 7.5]})
    headers = {} if content_type is None else {"content-type": content_type}
    request = client.build_request("POST", "/api/predict/", content=body, headers=headers)
    if content_type is None:
        request.headers.pop("content-type", None)
    assert (await client.send(request)).status_code == 200


FIELD_CASES = [
    (1, "prompt", [7, 1.5, True, None, {}, []], "a string"),
    (2, "resolution", ["512", 512.5, True, None, {}, []], "an integer"),
    (3, "num_frames", ["8", 8.5, False, None, {}, []], "an integer"),
    (4, "fps", ["8", 8.1, True, None, {}, []], "an integer"),
    (5, "steps", ["20", 20.2, True, None, {}, []], "an integer"),
    (6, "guidance_scale", ["7.5", True, None, {}, []], "a number"),
    (7, "seed", ["1", 1.5, True, {}, []], "an integer or null"),
    (8, "negative_prompt", [1, True, {}, []], "a string or null"),
]


@pytest.mark.parametrize(("position", "name", "values", "wanted"), FIELD_CASES)
async def test_a_wrong_type_is_refused_by_field_expected_and_received_type(
    predict, small_url, position, name, values, wanted, subtests
):
    for value in values:
        with subtests.test(value=value):
            data = [small_url, "x", 256, 8, 8, 10, 7.5, 1, "blurry"]
            data[position] = value
            answer = await predict(data)
            assert answer.status_code == 422
            text = answer.json()["error"]
            assert name in text
            assert wanted in text
            assert "received" in text
            assert answer.json()["detail"][0]["loc"][-1] == name


@pytest.mark.parametrize("value", [7, None, True, {"path": "/etc/passwd"}, ["a"]])
async def test_an_image_that_is_no_string_is_refused(predict, value):
    answer = await predict([value, "x", 256, 8, 8, 10, 7.5])
    assert answer.status_code == 422
    assert "image" in answer.json()["error"]
    assert "etc" not in answer.text


RANGES = {
    2: ("resolution", [-1, 0, 255, 257, 1024, 65536, 2**31, 2**63, 10**400]),
    3: ("num_frames", [-1, 0, 7, 33, 10**6, 2**31, 2**63, 10**4000]),
    4: ("fps", [-1, 0, 3, 25, 2**31]),
    5: ("steps", [-1, 0, 9, 101, 10**9, 10**400]),
    6: ("guidance_scale", [-1, 0, 0.99, 20.01, 1e300, 10**400]),
    7: ("seed", [-1, 2**53, 2**63, 10**400]),
}


async def test_a_value_out_of_range_is_refused_by_name(predict, small_url, subtests):
    cases = [(position, name, value) for position, (name, values) in RANGES.items() for value in values]
    for position, name, value in cases:
        with subtests.test(name, value=value):
            data = [small_url, "x", 256, 8, 8, 10, 7.5, 1]
            data[position] = value
            answer = await predict(data)
            assert answer.status_code == 422
            assert answer.json()["detail"][0]["loc"][-1] == name
            assert len(answer.content) < 600


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
async def test_numbers_that_json_does_not_have_are_refused_by_name(client, small_url, number, subtests):
    names = ["image", "prompt", "resolution", "num_frames", "fps", "steps", "guidance_scale", "seed"]
    for position in range(2, 8):
        with subtests.test(names[position]):
            values = [json.dumps(small_url), '"x"', "256", "8", "8", "10", "7.5", "1"]
            values[position] = number
            answer = await client.post("/api/predict/", content='{"data": [' + ",".join(values) + "]}")
            assert answer.status_code == 422
            assert names[position] in answer.json()["error"]
            assert re.search("NaN|Infinity", answer.json()["error"])


@pytest.mark.parametrize("count", [0, 1, 6, 10, 1000])
async def test_a_wrong_count_of_values_is_refused_by_the_count(predict, count):
    answer = await predict([1] * count)
    assert answer.status_code == 422
    assert str(count) in answer.json()["error"]


@pytest.mark.parametrize("body", ["null", "[]", '"x"', "1", "{}", '{"data": null}', '{"data": "x"}', '{"data": {}}'])
async def test_a_body_of_another_shape_is_refused(client, body):
    answer = await client.post("/api/predict/", content=body)
    assert answer.status_code == 422
    assert "data" in answer.json()["error"]


UNREADABLE = {
    "empty": b"",
    "blank": b" \n",
    "cut off": b'{"data": [1, 2',
    "single quotes": b"{'data': []}",
    "trailing comma": b'{"data": [1,]}',
    "deep": b"[" * 100_000,
    "deep and closed": b'{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "not UTF-8": b'{"data": ["\xff"]}',
    "UTF-16": '{"data": []}'.encode("utf-16"),
    "UTF-16 without mark": '{"data": []}'.encode("utf-16-le"),
    "lone surrogate": b'{"data": ["\\ud800"]}',
    "lone surrogate in a key": b'{"\\udfff": 1}',
    "number of 5000 digits": b'{"data": [' + b"9" * 5000 + b"]}",
    "many values": b'{"data": [' + b"1," * 100_000 + b"1]}",
    "gzip data": b"\x1f\x8b\x08\x00abc",
    "two values": b'{"data": []} {}',
}


@pytest.mark.parametrize("case", UNREADABLE)
async def test_an_unreadable_body_is_a_400_that_says_so(client, case):
    answer = await client.post("/api/predict/", content=UNREADABLE[case])
    assert answer.status_code == 400
    assert "error" in answer.json()
    assert len(answer.content) < 600


async def test_a_byte_order_mark_is_skipped(client, small_url):
    body = json.dumps({"data": [small_url, "x", 256, 8, 8, 10, 7.5]}).encode("utf-8-sig")
    assert (await client.post("/api/predict/", content=body)).status_code == 200


async def test_a_compressed_body_is_refused_clearly(client):
    answer = await client.post("/api/predict/", content=b"x", headers={"content-encoding": "gzip"})
    assert answer.status_code == 400
    assert "compressed" in answer.json()["error"]


async def test_bare_base64_is_told_which_prefix_to_add(predict, data_url):
    answer = await predict([data_url.split(",")[1], "x", 256, 8, 8, 10, 7.5])
    assert answer.status_code == 422
    assert "Invalid image input" in answer.json()["error"]
    assert "data:image/" in answer.json()["error"]
    assert answer.json()["detail"][0]["loc"][-1] == "image"


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t", "a\x00b", "a\x1b[31m", "a\x7f", "x" * 2001, "x" * 100_000])
async def test_a_prompt_that_is_none_is_refused(predict, small_url, prompt):
    answer = await predict([small_url, prompt, 256, 8, 8, 10, 7.5])
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][-1] == "prompt"


@pytest.mark.parametrize(
    "prompt",
    [
        "x" * 2000,
        "  trimmed  ",
        "👩‍👩‍👧‍👦 on a beach",
        "a" + "\u0301" * 500,
        "\u202egnirts",
        "<script>alert(1)</script>",
        "{0} %s ${x}",
        "'; DROP TABLE i2v_jobs; --",
        "line\r\nbreak",
        "日落时的场景",
    ],
)
async def test_every_other_prompt_is_taken_and_stays_out_of_names_and_headers(predict, small_url, prompt):
    answer = await predict([small_url, prompt, 256, 8, 8, 10, 7.5])
    assert answer.status_code == 200
    assert re.fullmatch(r"video_\d{8}_\d{6}_[a-z0-9]{6}\.mp4", Path(answer.json()["data"][0]).name)
    assert all(value.isascii() for value in answer.headers.values())


@pytest.mark.parametrize("path", PATHS)
async def test_other_methods_are_405_and_say_which_is_wanted(client, path, subtests):
    for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "PROPFIND"):
        with subtests.test(method):
            answer = await client.request(method, path)
            assert answer.status_code == 405
            assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_unknown_path_is_a_404_that_names_the_right_one(client, method, subtests):
    for path in ("/generate/video", "/api/v1/predict", "/api", "/predict", "//api//predict", "/run/x", "/%2e%2e"):
        with subtests.test(path):
            answer = await client.request(method, path)
            assert answer.status_code == 404
            assert "/api/predict/" in answer.json()["error"]
            assert "/docs" in answer.json()["error"]


class TestWhileTheEngineIsBusy:
    """The engine waits at its first step until the test lets it go on."""

    @pytest.fixture
    def gate(self, engine):
        gate = threading.Event()
        gate.started = threading.Event()

        def fault(stage, step):
            gate.started.set()
            gate.wait(60)

        engine.fault = fault
        yield gate
        gate.set()

    async def test_a_waiting_request_does_not_block_the_event_loop(self, client, predict, small_url, gate):
        waiting = asyncio.create_task(predict([small_url, "x", 256, 8, 8, 10, 7.5]))
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        assert not waiting.done()
        gate.set()
        assert (await waiting).status_code == 200

    async def test_a_stopping_server_answers_its_waiting_callers(self, app, predict, small_url, gate, queue):
        waiting = asyncio.create_task(predict([small_url, "x", 256, 8, 8, 10, 7.5]))
        assert await asyncio.to_thread(gate.started.wait, 60)
        app.state.context.stopping.set()
        answer = await waiting
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert queue.list()[0].id in answer.json()["error"]
        assert answer.headers["x-job-id"] == queue.list()[0].id


async def test_a_job_that_ran_out_of_memory_is_a_503_and_the_next_one_succeeds(predict, small_url, engine):
    def fault(stage, step):
        raise OutOfMemory("not enough memory for 8 frames of 256x256")

    engine.fault = fault
    answer = await predict([small_url, "x", 256, 8, 8, 10, 7.5])
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert answer.json()["detail"][0]["type"] == "out_of_memory"
    engine.fault = None
    assert (await predict([small_url, "x", 256, 8, 8, 10, 7.5])).status_code == 200


async def test_a_job_that_cannot_fit_is_refused_with_what_would(predict, small_url, engine):
    engine.max_pixels = 256 * 256 * 10
    answer = await predict([small_url, "x", 256, 16, 8, 10, 7.5])
    assert answer.status_code == 422
    assert "10 frames" in answer.json()["error"]


async def test_an_unexpected_error_shows_no_traceback_and_no_path(predict, small_url, engine):
    def fault(stage, step):
        raise RuntimeError("/secret/path exploded")

    engine.fault = fault
    answer = await predict([small_url, "my secret prompt", 256, 8, 8, 10, 7.5])
    assert answer.status_code == 500
    for word in ("Traceback", "secret", "exploded", "/", "base64"):
        assert word not in answer.json()["error"]
