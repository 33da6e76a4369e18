"""`/v1/videos` in OpenAI's shape: every route, its errors, idempotency, events, extensions."""

import asyncio
import gc
import io
import json
import re
import threading

import pytest
from fastapi import Request
from PIL import Image

from i2v.errors import BadRequest
from i2v.jobs.job import FINAL
from i2v.notes import say
from i2v.server.video_events import stream
from i2v.server.video_object import VideoObject
from i2v.server.video_request import receive
from i2v.server.video_variants import Variants
from i2v.video import probe

CREATE = {"prompt": "the scene at sunset", "size": "256x256", "num_frames": 8, "steps": 10}


@pytest.fixture
def create(client, small_url):
    async def post(headers=None, **body):
        body = {**CREATE, "input_reference": {"image_url": small_url}, **body}
        return await client.post("/v1/videos", json=body, headers=headers or {})

    return post


@pytest.fixture
def finished(create, queue):
    async def make(**body):
        answer = await create(**body)
        assert answer.status_code == 200, answer.text
        return await queue.wait(answer.json()["id"])

    return make


@pytest.fixture
def gate(engine):
    """The engine waits at its second step until the test lets it go on."""
    gate = threading.Event()
    gate.reached = threading.Event()

    def fault(stage, step):
        if (stage, step) == ("denoise", 2):
            gate.reached.set()
            gate.wait(60)

    engine.fault = fault
    yield gate
    gate.set()


async def test_a_created_video_is_queued_and_then_completed(create, client, queue):
    answer = await create()
    video = answer.json()
    assert answer.status_code == 200
    assert re.fullmatch(r"video_[0-9a-f]{24}", video["id"])
    assert video["object"] == "video"
    assert video["status"] in ("queued", "in_progress")
    assert 250 <= int(answer.headers["openai-poll-after-ms"]) <= 5000
    await queue.wait(video["id"])
    answer = await client.get(f"/v1/videos/{video['id']}")
    assert "openai-poll-after-ms" not in answer.headers
    video = answer.json()
    assert (video["status"], video["progress"], video["error"]) == ("completed", 100, None)
    assert (video["size"], video["seconds"], video["model"]) == ("256x256", "1", "fake")
    assert video["completed_at"] >= video["created_at"]
    assert set(video["stage_seconds"]) >= {"denoise", "decode", "write"}


async def test_a_form_with_a_file_makes_the_same_job_as_json(client, small_url, queue, data_url):
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 120, 40)).save(file, "PNG")
    form = {name: str(value) for name, value in {**CREATE, "seed": 5, "guidance_scale": 7.5}.items()}
    answer = await client.post("/v1/videos", data=form, files={"input_reference": ("a.png", file.getvalue())})
    assert answer.status_code == 200, answer.text
    body = {**CREATE, "seed": 5, "guidance_scale": 7.5, "input_reference": {"image_url": small_url}}
    other = await client.post("/v1/videos", json=body)
    assert queue.get(answer.json()["id"]).request == queue.get(other.json()["id"]).request


async def test_a_form_may_hold_the_photo_as_a_data_url(client, small_url):
    form = {name: str(value) for name, value in CREATE.items()} | {"input_reference[image_url]": small_url}
    answer = await client.post("/v1/videos", data=form, files={"x": ("", b"")})
    assert answer.status_code == 422  # a file under another name is no photo
    parts = [(name, (None, value)) for name, value in form.items()]
    answer = await client.post("/v1/videos", files=parts)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("body", "frames", "fps"),
    [
        ({"seconds": "4"}, 32, 8),
        ({"seconds": "8"}, 32, 4),
        ({"seconds": "1.5"}, 12, 8),
        ({"seconds": "6.4"}, 32, 5),  # 32 // 6.4 is 4
        ({"seconds": 2}, 16, 8),
        ({"seconds": "2", "fps": 12}, 24, 12),
        ({"fps": 10}, 16, 10),
        ({"num_frames": 20, "fps": 10}, 20, 10),
        ({"seconds": "2", "num_frames": 16}, 16, 8),
        ({}, 16, 8),
    ],
)
async def test_seconds_times_fps_gives_the_frames(client, small_url, queue, body, frames, fps):
    base = {"prompt": "x", "size": "256x256", "steps": 10, "input_reference": {"image_url": small_url}}
    answer = await client.post("/v1/videos", json={**base, **body})
    assert answer.status_code == 200, answer.text
    request = queue.get(answer.json()["id"]).request
    assert (request.num_frames, request.fps) == (frames, fps)
    assert float(answer.json()["seconds"]) == pytest.approx(frames / fps, rel=1e-4)


async def test_a_photo_of_another_shape_is_cropped_or_padded_and_the_answer_says_how(create):
    answer = await create(size="512x256")
    assert "cropped" in answer.json()["notes"][0]
    answer = await create(size="512x256", fit="pad")
    assert "borders" in answer.json()["notes"][0]


REFUSED = {
    "no prompt": ({"prompt": None}, "prompt"),
    "empty prompt": ({"prompt": "  "}, "prompt"),
    "long prompt": ({"prompt": "x" * 2001}, "prompt"),
    "control in prompt": ({"prompt": "a\x00b"}, "prompt"),
    "no photo": ({"input_reference": None}, "input_reference"),
    "photo of junk": ({"input_reference": {"image_url": "data:image/png;base64,AAAA"}}, "input_reference"),
    "photo by address": ({"input_reference": {"image_url": "http://127.0.0.1:9/x.png"}}, "input_reference"),
    "photo by path": ({"input_reference": {"image_url": "/etc/passwd"}}, "input_reference"),
    "photo by file id": ({"input_reference": {"file_id": "x"}}, "input_reference"),
    "photo as text": ({"input_reference": "x"}, "input_reference"),
    "unknown key": ({"colour": 1}, "colour"),
    "number as text": ({"num_frames": "8"}, "num_frames"),
    "fraction": ({"num_frames": 8.5}, "num_frames"),
    "boolean": ({"steps": True}, "steps"),
    "few frames": ({"num_frames": 7}, "num_frames"),
    "many frames": ({"num_frames": 10**6}, "num_frames"),
    "huge": ({"num_frames": 10**4000}, "num_frames"),
    "few steps": ({"steps": 1}, "steps"),
    "guidance": ({"guidance_scale": 0.5}, "guidance_scale"),
    "seed": ({"seed": -1}, "seed"),
    "preset": ({"preset": "best"}, "preset"),
    "fit": ({"fit": "stretch"}, "fit"),
    "size in words": ({"size": "big"}, "size"),
    "size not in eights": ({"size": "257x256"}, "size"),
    "size too large": ({"size": "4096x4096"}, "size"),
    "size far too large": ({"size": "65536x65536"}, "size"),
    "size too small": ({"size": "8x8"}, "size"),
    "long": ({"num_frames": None, "seconds": "12"}, "seconds"),
    "no seconds": ({"num_frames": None, "seconds": "0"}, "seconds"),
    "seconds as a boolean": ({"num_frames": None, "seconds": True}, "seconds"),
    "seconds in words": ({"num_frames": None, "seconds": "four"}, "seconds"),
    "both lengths": ({"num_frames": 9, "seconds": "1"}, "num_frames"),
    "seconds at no fps": ({"num_frames": None, "seconds": "2", "fps": 0}, "fps"),
    "seconds at fewer fps than none": ({"num_frames": None, "seconds": "2", "fps": -4}, "fps"),
    "another model": ({"model": "sora-2"}, "model"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_refusal_names_its_field_in_openais_form(create, case):
    body, field = REFUSED[case]
    answer = await create(**body)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"].split(".")[0] == field
    assert field != "seconds" or error["param"] == field  # it was told as `seconds.str`
    assert error["type"] == "invalid_request_error"
    assert len(answer.content) < 600
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"prompt": NaN}', b"{", b'{"prompt": "\\ud800"}', b"\xff"])
async def test_a_body_that_is_no_object_is_refused(client, body):
    answer = await client.post("/v1/videos", content=body)
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"junk", b"--x\r\n", b"--x\r\nContent-Disposition: form-data\r\n\r\n\r\n--x--"])
async def test_a_broken_form_is_a_400(client, body):
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = await client.post("/v1/videos", content=body, headers=headers)
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["message"]


async def test_a_client_that_goes_away_within_its_form_is_no_unexpected_error():
    """It used to be logged as a defect of the server, with a traceback, and counted as a 500."""
    headers = [(b"content-type", b"multipart/form-data; boundary=x")]
    scope = {"type": "http", "method": "POST", "path": "/v1/videos", "query_string": b"", "headers": headers}
    messages = iter([{"type": "http.request", "body": b"--x\r\n", "more_body": True}, {"type": "http.disconnect"}])

    async def arrive():
        return next(messages)

    with pytest.raises(BadRequest, match="connection closed"):
        await receive(Request(scope, arrive), "input_reference")


async def test_a_model_may_be_named_as_it_is_loaded(create):
    assert (await create(model="fake")).status_code == 200


async def test_sync_answers_the_video_itself(client, small_url, tmp_path):
    body = {**CREATE, "input_reference": {"image_url": small_url}}
    answer = await client.post("/v1/videos/sync", json=body)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["x-job-id"].startswith("video_")
    file = tmp_path / "answer.mp4"
    file.write_bytes(answer.content)
    assert probe(file).frames == 8


async def test_sync_gives_the_error_of_a_failed_job(client, small_url, engine):
    def fault(stage, step):
        raise RuntimeError("boom")

    engine.fault = fault
    answer = await client.post("/v1/videos/sync", json={**CREATE, "input_reference": {"image_url": small_url}})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "generation_failed"
    failed = (await client.get(f"/v1/videos/{answer.headers['x-job-id']}")).json()
    assert failed["status"] == "failed"


async def test_a_failed_job_says_so_in_its_object(finished, engine, client):
    def fault(stage, step):
        raise RuntimeError("boom")

    engine.fault = fault
    job = await finished()
    video = (await client.get(f"/v1/videos/{job.id}")).json()
    assert video["status"] == "failed"
    assert video["error"]["code"] == "generation_failed"
    assert "boom" not in json.dumps(video)


async def test_listing_pages_through_everything_both_ways(client, finished):
    made = [(await finished()).id for _ in range(5)]
    for order, wanted in (("asc", made), ("desc", made[::-1])):
        seen, after = [], None
        while True:
            params = {"limit": 2, "order": order} | ({"after": after} if after else {})
            page = (await client.get("/v1/videos", params=params)).json()
            assert page["object"] == "list"
            seen += [video["id"] for video in page["data"]]
            assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
            if not page["has_more"]:
                break
            after = page["last_id"]
        assert seen == wanted


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "order=up", "status=done", "after=video_0"])
async def test_a_listing_that_makes_no_sense_is_refused(client, query):
    answer = await client.get(f"/v1/videos?{query}")
    assert answer.status_code in (404, 422)
    assert answer.json()["error"]["message"]


async def test_an_empty_list_has_no_ids(client):
    page = (await client.get("/v1/videos")).json()
    assert page == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


CONTENT = {
    "video": ("video/mp4", b"ftyp", 4),
    "thumbnail": ("image/jpeg", b"\xff\xd8", 0),
    "spritesheet": ("image/jpeg", b"\xff\xd8", 0),
    "gif": ("image/gif", b"GIF89a", 0),
    "webp": ("image/webp", b"RIFF", 0),
}


@pytest.mark.parametrize("variant", CONTENT)
async def test_every_variant_is_served_with_ranges_and_conditions(client, finished, variant):
    media_type, magic, offset = CONTENT[variant]
    url = f"/v1/videos/{(await finished()).id}/content?variant={variant}"
    whole = await client.get(url)
    assert whole.status_code == 200
    assert whole.headers["content-type"] == media_type
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert whole.content[offset:].startswith(magic)
    part = await client.get(url, headers={"range": "bytes=2-9"})
    assert (part.status_code, part.content) == (206, whole.content[2:10])
    same = await client.get(url, headers={"if-none-match": whole.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")


async def test_pictures_show_the_frames_of_the_video(client, finished):
    url = f"/v1/videos/{(await finished()).id}/content"
    for variant, frames in (("gif", 8), ("webp", 8), ("thumbnail", 1)):
        data = (await client.get(url, params={"variant": variant})).content
        with Image.open(io.BytesIO(data)) as picture:
            assert getattr(picture, "n_frames", 1) == frames
            assert picture.size == (256, 256)


async def test_an_unknown_variant_is_refused(client, finished):
    answer = await client.get(f"/v1/videos/{(await finished()).id}/content?variant=mov")
    assert answer.status_code == 422
    assert "thumbnail" in answer.json()["error"]["message"]


async def test_content_that_is_not_ready_is_a_conflict_with_the_status(client, create, gate):
    job = (await create()).json()["id"]
    assert await asyncio.to_thread(gate.reached.wait, 60)
    answer = await client.get(f"/v1/videos/{job}/content")
    assert answer.status_code == 409
    assert "in_progress" in answer.json()["error"]["message"]


async def test_cancelling_stops_a_running_job_within_one_step(client, create, queue, gate, engine):
    job = (await create(steps=100)).json()["id"]
    assert await asyncio.to_thread(gate.reached.wait, 60)
    cancelling = asyncio.create_task(client.post(f"/v1/videos/{job}/cancel"))
    gate.set()
    answer = await cancelling
    assert answer.status_code == 200
    assert answer.json()["status"] == "cancelled"
    assert answer.json()["error"] is None
    assert (await client.post(f"/v1/videos/{job}/cancel")).json()["status"] == "cancelled"


async def test_a_finished_job_cannot_be_cancelled(client, finished):
    answer = await client.post(f"/v1/videos/{(await finished()).id}/cancel")
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "conflict"


async def test_a_remix_keeps_everything_but_the_prompt(client, finished, queue):
    first = await finished(seed=11, guidance_scale=3.5)
    answer = await client.post(f"/v1/videos/{first.id}/remix", json={"prompt": "night falls"})
    assert answer.status_code == 200
    request = queue.get(answer.json()["id"]).request
    assert request.prompt == "night falls"
    assert request.model_copy(update={"prompt": first.request.prompt}) == first.request
    assert queue.input_image(answer.json()["id"]).tobytes() == queue.input_image(first.id).tobytes()


@pytest.mark.parametrize("body", [{}, {"prompt": ""}, {"prompt": 1}, {"prompt": "x", "seed": 1}, []])
async def test_a_remix_without_a_prompt_is_refused(client, finished, body):
    answer = await client.post(f"/v1/videos/{(await finished()).id}/remix", json=body)
    assert answer.status_code == 422


@pytest.mark.parametrize("name", ["input_reference", "video"])
async def test_a_file_sent_to_a_remix_is_refused_as_an_unknown_field(client, finished, queue, name):
    """It was read and ignored: the caller got a video of the old photo."""
    first = await finished()
    files = {name: ("p.png", b"any", "image/png")}
    answer = await client.post(f"/v1/videos/{first.id}/remix", data={"prompt": "night falls"}, files=files)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == name
    assert answer.json()["error"]["message"] == f"{name} is not a known field"
    assert [job.id for job in queue.list()] == [first.id]
    assert (await client.post(f"/v1/videos/{first.id}/remix", files={"prompt": (None, "x")})).status_code == 200


class TestExtensions:
    async def test_the_result_is_the_stitched_clip(self, client, finished, queue):
        first = await finished()
        body = {"prompt": "more", "seconds": "1", "video": {"id": first.id}}
        answer = await client.post("/v1/videos/extensions", json=body)
        assert answer.status_code == 200, answer.text
        job = await queue.wait(answer.json()["id"])
        assert probe(queue.video_path(job)).frames == 8 + 8 - 1
        video = (await client.get(f"/v1/videos/{job.id}")).json()
        assert (video["seconds"], video["num_frames"], video["extends"]) == ("1.875", 15, first.id)

    async def test_a_file_made_here_is_recognised(self, client, finished, queue):
        first = await finished()
        files = {"video": ("v.mp4", queue.video_path(first).read_bytes(), "video/mp4")}
        answer = await client.post("/v1/videos/extensions", data={"prompt": "more", "seconds": "1"}, files=files)
        assert answer.status_code == 200, answer.text
        assert queue.get(answer.json()["id"]).extends == first.id

    async def test_its_events_never_read_the_table_on_the_event_loop(self, client, finished, queue, monkeypatch):
        """A table that is slow for a moment held up every other caller."""
        first = await finished()
        body = {"prompt": "more", "seconds": "1", "video": {"id": first.id}}
        job = await queue.wait((await client.post("/v1/videos/extensions", json=body)).json()["id"])
        get, threads = queue.get, set()

        def noted(id):
            threads.add(threading.get_ident())
            return get(id)

        monkeypatch.setattr(queue, "get", noted)
        answer = await client.get(f"/v1/videos/{job.id}/events")
        (name, data), *rest = parse_events(answer.text)
        assert (name, data["num_frames"], rest) == ("done", 15, [])
        assert threads
        assert threading.get_ident() not in threads

    async def test_a_file_beside_an_id_is_refused(self, client, finished, queue):
        first = await finished()
        files = {"video": ("v.mp4", queue.video_path(first).read_bytes(), "video/mp4")}
        data = {"prompt": "more", "seconds": "1", "video[id]": first.id}
        answer = await client.post("/v1/videos/extensions", data=data, files=files)
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "video")

    @pytest.mark.parametrize("file", [b"", b"junk", b"\x00\x00\x00\x18ftypmp42" + b"\x00" * 100])
    async def test_another_file_is_refused(self, client, file):
        answer = await client.post(
            "/v1/videos/extensions", data={"prompt": "more", "seconds": "1"}, files={"video": ("v.mp4", file)}
        )
        assert answer.status_code == 422
        assert answer.json()["error"]["param"] == "video"

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ({"prompt": "x", "seconds": "1"}, 422),
            ({"prompt": "x", "seconds": "1", "video": {"id": "video_0"}}, 404),
            ({"prompt": "x", "seconds": "100", "video": {"id": "video_0"}}, 404),
            ({"prompt": "x", "video": {"id": "video_0"}}, 422),
            ({"prompt": "x", "seconds": "1", "video": "video_0"}, 422),
        ],
    )
    async def test_an_extension_of_nothing_is_refused(self, client, body, status):
        assert (await client.post("/v1/videos/extensions", json=body)).status_code == status

    async def test_a_clip_that_has_grown_too_long_is_refused_whole(self, client, finished, queue, monkeypatch):
        """Reading stopped silently at a bound: a long chain lost its end and went on from a frame in its middle."""
        first = await finished()
        body = {"prompt": "more", "seconds": "1", "video": {"id": first.id}}
        monkeypatch.setattr("i2v.server.video_extension.MAX_FRAMES", 7)
        answer = await client.post("/v1/videos/extensions", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "video")
        monkeypatch.setattr("i2v.server.video_extension.MAX_FRAMES", 8)
        assert (await client.post("/v1/videos/extensions", json=body)).status_code == 200

    async def test_a_video_that_is_not_ready_cannot_be_continued(self, client, create, gate):
        job = (await create()).json()["id"]
        body = {"prompt": "more", "seconds": "1", "video": {"id": job}}
        assert (await client.post("/v1/videos/extensions", json=body)).status_code == 409


async def test_deleting_removes_the_record_and_the_file(client, finished, queue):
    job = await finished()
    path = queue.video_path(job)
    answer = await client.delete(f"/v1/videos/{job.id}")
    assert answer.json() == {"id": job.id, "object": "video.deleted", "deleted": True}
    assert not path.exists()
    for method, url in (("GET", ""), ("GET", "/content"), ("GET", "/events"), ("POST", "/cancel"), ("DELETE", "")):
        answer = await client.request(method, f"/v1/videos/{job.id}{url}")
        assert answer.status_code == 404


async def test_deleting_a_running_job_stops_it_first(client, create, gate, queue):
    job = (await create(steps=100)).json()["id"]
    assert await asyncio.to_thread(gate.reached.wait, 60)
    deleting = asyncio.create_task(client.delete(f"/v1/videos/{job}"))
    gate.set()
    assert (await deleting).status_code == 200
    assert queue.list() == []


@pytest.mark.parametrize(
    "name", ["video_0", "x", "video_" + "0" * 24, "'; DROP TABLE", "%00", "x" * 10_000, "..%2f..%2f"]
)
async def test_an_unknown_id_is_a_404_that_does_not_repeat_it(client, name):
    answer = await client.get(f"/v1/videos/{name}")
    assert answer.status_code == 404
    assert len(answer.content) < 300
    assert "DROP" not in answer.text


class TestIdempotency:
    async def test_the_same_key_and_body_give_the_same_job(self, create, queue, caplog):
        caplog.set_level("INFO", "i2v.server")
        first = await create(headers={"idempotency-key": "k1"})
        second = await create(headers={"idempotency-key": "k1"})
        said = [record.message for record in caplog.records if record.name == "i2v.server"]
        assert said == ["accepted", "asked for again"]
        assert first.json()["id"] == second.json()["id"]
        assert "idempotent-replayed" not in first.headers
        assert second.headers["idempotent-replayed"] == "true"
        assert len(queue.list()) == 1

    async def test_the_same_key_with_another_body_is_a_conflict(self, create):
        await create(headers={"idempotency-key": "k1"})
        answer = await create(headers={"idempotency-key": "k1"}, prompt="another")
        assert answer.status_code == 409

    @pytest.mark.fault(
        "F14", "the same key once more", before="said at POST /v1/videos alone; /api/predict/ made a second job"
    )
    @pytest.mark.parametrize("door", ["predict", "create", "sync", "remix", "extensions"])
    async def test_every_route_that_makes_a_job_makes_one_and_says_so(
        self, client, finished, small_url, queue, door, record_property
    ):
        source = await finished()
        key = {"Idempotency-Key": "k2"}
        new = {**CREATE, "input_reference": {"image_url": small_url}}
        path, body = {
            "predict": ("/api/predict/", {"data": [small_url, "the scene at sunset", 256, 8, 8, 10, 7.5]}),
            "create": ("/v1/videos", new),
            "sync": ("/v1/videos/sync", new),
            "remix": (f"/v1/videos/{source.id}/remix", {"prompt": "snow"}),
            "extensions": ("/v1/videos/extensions", {"prompt": "snow", "seconds": 1, "video": {"id": source.id}}),
        }[door]
        answers = [await client.post(path, json=body, headers=key) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert [answer.headers.get("Idempotent-Replayed") for answer in answers] == [None, "true"]
        assert len(queue.list()) == 2
        record_property("after", f"{path}: one job, Idempotent-Replayed: {answers[1].headers['Idempotent-Replayed']}")

    async def test_a_waiting_call_that_is_lost_keeps_the_job_of_its_key(self, app, client, small_url, queue, gate):
        await client.post("/v1/videos", json={**CREATE, "input_reference": {"image_url": small_url}})
        assert await asyncio.to_thread(gate.reached.wait, 60)
        body = json.dumps({"data": [small_url, "the sea", 256, 8, 8, 10, 7.5]}).encode()
        messages = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]
        scope = {"type": "http", "method": "POST", "path": "/api/predict/", "raw_path": b"", "query_string": b""}
        scope |= {"headers": [(b"idempotency-key", b"k3")], "http_version": "1.1", "client": ("127.0.0.1", 1)}

        async def receive():
            return messages.pop(0)

        async def send(_message):
            pass

        await app(scope, receive, send)
        waiting = queue.list()[0]
        assert waiting.status == "queued"
        gate.set()
        again = await client.post("/api/predict/", content=body, headers={"Idempotency-Key": "k3"})
        assert (again.status_code, again.headers["X-Job-Id"]) == (200, waiting.id)

    async def test_32_callers_with_one_key_make_one_job(self, create, queue):
        answers = await asyncio.gather(*(create(headers={"idempotency-key": "k1"}) for _ in range(32)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert len(queue.list()) == 1

    @pytest.mark.parametrize("key", ["", " ", "x" * 256, "é"])
    async def test_a_key_that_is_none_is_refused(self, create, key):
        answer = await create(headers={"idempotency-key": key.encode()})
        assert answer.status_code == 422


def parse_events(text):
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            yield fields["event"], json.loads(fields["data"])


async def test_events_tell_status_progress_with_preview_and_done(client, create, gate):
    job = (await create()).json()["id"]
    assert await asyncio.to_thread(gate.reached.wait, 60)
    listening = asyncio.create_task(client.get(f"/v1/videos/{job}/events"))
    gate.set()
    answer = await listening
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = list(parse_events(answer.text))
    assert found[0][0] == "status"
    assert [name for name, _ in found].count("done") == 1
    assert found[-1][0] == "done"
    assert found[-1][1]["status"] == "completed"
    for name, data in found[1:-1]:
        assert name in ("status", "progress")
        assert data["id"] == job


async def test_events_of_a_finished_job_are_its_end(client, finished):
    answer = await client.get(f"/v1/videos/{(await finished()).id}/events")
    assert [name for name, _ in parse_events(answer.text)] == ["done"]


async def test_a_stream_that_nobody_reads_any_more_watches_no_longer(app, create, queue, gate):
    """Left to the garbage collector, it ended in whichever thread that ran in."""
    job = (await create()).json()["id"]
    gc.disable()
    try:
        reading = stream(app.state.context, job)
        await anext(reading)
        assert len(queue._watchers) == 1
        await reading.aclose()
        assert len(queue._watchers) == 0
    finally:
        gc.enable()


async def test_events_end_with_an_error_when_the_server_stops(app, client, create, gate):
    job = (await create()).json()["id"]
    assert await asyncio.to_thread(gate.reached.wait, 60)
    app.state.context.stopping.set()
    answer = await client.get(f"/v1/videos/{job}/events")
    name, last = list(parse_events(answer.text))[-1]
    assert name == "error"
    assert last["error"]["code"] == "not_ready"


async def test_a_preview_in_an_event_is_a_picture(app, client, create, queue, engine):
    go_on, shown = threading.Event(), threading.Event()

    def fault(stage, step):
        if (stage, step) == ("denoise", 4):
            shown.set()
            go_on.wait(60)

    engine.fault = fault
    job = (await create()).json()["id"]
    assert await asyncio.to_thread(shown.wait, 60)
    assert queue.preview(job) is not None
    from i2v.server.video_events import _progress

    event = _progress(app.state.context, queue.get(job))
    assert event["preview"].startswith("data:image/jpeg;base64,")
    go_on.set()
    await queue.wait(job)


async def test_models_are_listed_and_found_by_name(client):
    models = (await client.get("/v1/models")).json()
    assert [model["id"] for model in models["data"]] == ["fake"]
    assert "not a model" in models["data"][0]["note"]
    assert (await client.get("/v1/models/fake")).json()["object"] == "model"
    assert (await client.get("/v1/models/other")).status_code == 404


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/chat/completions", "/v1/videos/", "/v1/videos/a/b/c"])
async def test_an_unknown_path_answers_in_openais_form(client, path):
    answer = await client.post(path, json={})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


async def test_every_job_of_every_door_is_in_the_list(client, predict, small_url, finished):
    await finished()
    await predict([small_url, "x", 256, 8, 8, 10, 7.5])
    videos = (await client.get("/v1/videos")).json()["data"]
    assert len(videos) == 2
    assert all(video["status"] in FINAL for video in videos)


async def test_a_photo_sent_in_two_ways_is_refused(client, small_url):
    """The file won without a word."""
    photo = io.BytesIO()
    Image.new("RGB", (32, 32)).save(photo, "PNG")
    answer = await client.post(
        "/v1/videos",
        data={"prompt": "x", "input_reference[image_url]": small_url},
        files={"input_reference": ("a.png", photo.getvalue())},
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "input_reference")


async def test_pictures_that_take_long_hold_up_no_upload(app, client, queue, small_url):
    """Two GIFs of large clips held both places in which photos are decoded, and every upload waited for them."""
    rendering = threading.Event()
    held = threading.Event()

    class Slow(Variants):
        def get(self, path, fps, variant):
            rendering.set()
            assert held.wait(60)
            return super().get(path, fps, variant)

    object.__setattr__(app.state.context, "variants", Slow())
    body = {"prompt": "x", "size": "256x256", "num_frames": 8, "steps": 10, "input_reference": {"image_url": small_url}}
    made = (await client.post("/v1/videos", json=body)).json()["id"]
    await queue.wait(made)
    asked = [asyncio.create_task(client.get(f"/v1/videos/{made}/content?variant={kind}")) for kind in ("gif", "webp")]
    assert await asyncio.to_thread(rendering.wait, 60)
    async with asyncio.timeout(60):
        assert (await client.post("/v1/videos", json=body)).status_code == 200
    assert not any(task.done() for task in asked)
    held.set()
    answers = await asyncio.gather(*asked)
    assert [answer.headers["content-type"] for answer in answers] == ["image/gif", "image/webp"]
    held.clear()  # what was made once is there at once
    assert (await client.get(f"/v1/videos/{made}/content?variant=gif")).content == answers[0].content


async def test_the_object_has_exactly_these_keys_in_this_order_and_numbers_as_before(client, finished):
    """It was a dictionary; its description named half of the keys."""
    job = await finished(seed=7, guidance_scale=3)
    video = (await client.get(f"/v1/videos/{job.id}")).json()
    assert list(video) == list(VideoObject.model_fields)
    assert " ".join(video) == (
        "id object created_at completed_at expires_at status progress error model prompt seconds size num_frames fps "
        "steps guidance_scale seed preset fit extends stage position eta_s stage_seconds peak_memory_mb notes warnings"
    )
    result = job.result
    assert (video["guidance_scale"], video["seed"], video["preset"], video["fit"]) == (3.0, 7, "exact", "crop")
    assert (video["stage_seconds"], video["peak_memory_mb"]) == (result.stage_seconds, result.peak_memory_mb)
    assert video["notes"] == [say(note) for note in result.notes]
    assert video["warnings"] == [say(warning) for warning in result.warnings]
    assert (video["expires_at"], video["error"], video["extends"], video["stage"]) == (None, None, None, None)


@pytest.mark.fault("If-Match", "DELETE and GET with the ETag of another version", before="deleted, sent")
async def test_what_another_version_is_meant_for_is_not_done(client, finished, queue, record_property):
    job = await finished()
    path = f"/v1/videos/{job.id}"
    etag = (await client.get(f"{path}/content")).headers["etag"]
    asked = [("GET", f"{path}/content"), ("GET", f"/outputs/{job.result.file}"), ("DELETE", path)]
    seen = [await client.request(method, where, headers={"If-Match": '"other"'}) for method, where in asked]
    assert [answer.status_code for answer in seen] == [412] * 3
    assert queue.video_path(queue.get(job.id)).exists()
    assert "precondition_failed" in seen[2].text
    for condition in ("*", etag, f'"other", {etag}'):
        assert (await client.get(f"{path}/content", headers={"If-Match": condition})).status_code == 200
    assert (await client.delete(path, headers={"If-Match": f"W/{etag}"})).status_code == 412
    assert (await client.delete(path, headers={"If-Match": etag})).status_code == 200
    assert (await client.delete(path, headers={"If-Match": etag})).status_code == 404
    record_property("after", ", ".join(str(answer.status_code) for answer in seen))
