"""The client against a small real HTTP server whose answers are written down beforehand."""

import ast
import base64
import inspect
import io
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from i2v import client as client_module
from i2v.client import (
    Busy,
    Client,
    ClientError,
    Conflict,
    ConnectionFailed,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    NotAuthorized,
    NotFound,
    ServerError,
    TimedOut,
    Video,
)
from i2v.request import GenerateRequest, default_of

DROP = "drop the connection without an answer"


@dataclass
class Seen:
    method: str
    path: str
    headers: Message
    body: bytes
    peer: tuple[str, int]


@dataclass
class Server:
    """`answers` are given in order, the last one again and again: (status, body, headers), or DROP."""

    url: str = ""
    answers: list[Any] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    def answer(self, status: int, body: Any = None, **headers: str) -> None:
        self.answers.append((status, body, {name.replace("_", "-"): value for name, value in headers.items()}))

    def next(self) -> Any:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.seen.append(Seen(self.command, self.path, self.headers, body, self.client_address))
            answer = state.next()
            if answer == DROP:
                self.close_connection = True
                return
            status, content, headers = answer
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", headers.pop("claim", str(len(data))))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = respond  # noqa: N815 - the names http.server calls

        def log_message(self, *_: object) -> None:
            """Quiet."""

    class Http(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Quiet: clients that stop listening are part of the tests."""

    http = Http(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    state.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield state
    http.shutdown()
    http.server_close()
    thread.join(10)


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def client(server: Server, pauses: list[float]) -> Iterator[Client]:
    with Client(server.url, sleep=pauses.append) as client:
        yield client


def video(status: str = "completed", **more: Any) -> dict[str, Any]:
    return {
        "id": "video_1",
        "object": "video",
        "status": status,
        "progress": 100 if status == "completed" else 0,
        "created_at": 1_700_000_000,
        "completed_at": 1_700_000_042 if status == "completed" else None,
        "model": "fake",
        "prompt": "sunset",
        "seconds": "2",
        "size": "512x512",
        "seed": 7,
        "stage_seconds": {"denoise": 40.5},
    } | more


def v1_error(code: str, message: str = "no", param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def png(photo: Image.Image) -> bytes:
    out = io.BytesIO()
    photo.resize((64, 48)).save(out, "PNG")
    return out.getvalue()


def fields_of(seen: Seen) -> dict[str, bytes]:
    """The parts of a multipart body by name."""
    boundary = seen.headers["Content-Type"].split("boundary=")[1].encode()
    parts = {}
    for part in seen.body.split(b"--" + boundary)[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        parts[head.split(b'name="')[1].split(b'"')[0].decode()] = content.removesuffix(b"\r\n")
    return parts


def test_the_file_imports_nothing_of_the_package_and_only_httpx() -> None:
    tree = ast.parse(Path(client_module.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) == {"httpx"}


def test_a_copy_of_the_file_works_far_from_the_package(tmp_path: Path) -> None:
    shutil.copy(client_module.__file__, tmp_path / "copied.py")
    code = "import copied, sys; copied.Client().close(); assert 'i2v' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_generate_submits_waits_with_progress_and_returns_the_video(
    server: Server, client: Client, pauses: list[float], photo: Image.Image
) -> None:
    server.answer(200, video("queued", position=2))
    server.answer(200, video("queued", position=1), openai_poll_after_ms="2500")
    server.answer(200, video("in_progress", progress=40, eta_s=9.5), openai_poll_after_ms="700")
    server.answer(200, video("in_progress", progress=40, eta_s=9.5), openai_poll_after_ms="700")
    server.answer(200, video())
    told: list[Video] = []
    result = client.generate(png(photo), "sunset", on_progress=told.append, size="512x512", num_frames=16, seed=7)
    assert (result.status, result.seed, result.size, result.seconds) == ("completed", 7, "512x512", 2.0)
    assert result.completed_at == datetime(2023, 11, 14, 22, 14, 2, tzinfo=UTC)
    assert result.stage_seconds == {"denoise": 40.5}
    assert result.raw["prompt"] == "sunset"
    assert [(one.status, one.progress, one.position) for one in told] == [
        ("queued", 0, 1),
        ("in_progress", 40, None),
        ("completed", 100, None),
    ]
    assert pauses == [2.5, 0.7, 0.7]
    posted, *polls = server.seen
    assert (posted.method, posted.path) == ("POST", "/v1/videos")
    parts = fields_of(posted)
    assert parts.pop("input_reference") == png(photo)
    assert parts == {"prompt": b"sunset", "size": b"512x512", "num_frames": b"16", "seed": b"7"}
    assert len(posted.headers["Idempotency-Key"]) == 32
    assert {(poll.method, poll.path) for poll in polls} == {("GET", "/v1/videos/video_1")}


def test_one_connection_serves_all_requests(server: Server, client: Client) -> None:
    server.answer(200, video())
    for _ in range(5):
        client.get("video_1")
    assert len({seen.peer for seen in server.seen}) == 1


def test_a_photo_may_be_a_path_bytes_a_data_url_or_a_pil_image(
    server: Server, client: Client, photo: Image.Image, tmp_path: Path
) -> None:
    server.answer(200, video("queued"))
    data = png(photo)
    (tmp_path / "photo.png").write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for image in (data, tmp_path / "photo.png", str(tmp_path / "photo.png"), url):
        client.submit(image, "x")
    assert [fields_of(seen)["input_reference"] for seen in server.seen] == [data] * 4
    client.submit(photo, "x")
    sent = Image.open(io.BytesIO(fields_of(server.seen[-1])["input_reference"]))
    assert (sent.format, sent.size) == ("PNG", photo.size)


@pytest.mark.parametrize("image", ["http://127.0.0.1/x.png", "/no/such/photo.png"])
def test_a_photo_that_cannot_be_read_is_refused_before_anything_is_sent(
    server: Server, client: Client, image: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.submit(image, "x")
    assert caught.value.field == "image"
    assert client.predict(image, "x")["field"] == "image"
    assert server.seen == []


def test_a_broken_data_url_is_refused_before_anything_is_sent(server: Server, client: Client) -> None:
    with pytest.raises(InvalidRequest, match="not valid base64"):
        client.submit("data:image/png;base64,A", "x")
    assert server.seen == []


def test_width_and_height_make_the_size(server: Server, client: Client) -> None:
    server.answer(200, video("queued"))
    client.submit(b"x", "x", width=640, height=384)
    assert fields_of(server.seen[0])["size"] == b"640x384"
    with pytest.raises(InvalidRequest, match="go together"):
        client.submit(b"x", "x", width=640)


def test_the_token_goes_with_every_request(server: Server) -> None:
    server.answer(200, video())
    with Client(server.url, token="hush") as client:
        client.get("video_1")
    assert server.seen[0].headers["Authorization"] == "Bearer hush"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (401, NotAuthorized),
        (403, NotAuthorized),
        (404, NotFound),
        (409, Conflict),
        (413, InvalidRequest),
        (422, InvalidRequest),
        (500, ServerError),
        (507, ServerError),
    ],
)
def test_a_refusal_is_a_typed_error_and_is_not_repeated(
    server: Server, client: Client, pauses: list[float], status: int, kind: type[ClientError]
) -> None:
    server.answer(status, v1_error("some_code", "steps is 5; 10 to 100 is wanted", "steps"))
    with pytest.raises(kind, match="steps is 5") as caught:
        client.submit(b"x", "x")
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.code, caught.value.field) == (status, "some_code", "steps")
    assert len(server.seen) == 1
    assert pauses == []


@pytest.mark.parametrize("page", [b"<html>Bad gateway</html>", b"", b"[]", b'{"error": null}', b'{"error": {}}'])
def test_a_page_that_is_not_ours_is_still_a_typed_error(server: Server, client: Client, page: bytes) -> None:
    server.answer(500, page)
    with pytest.raises(ServerError, match="answered 500"):
        client.get("video_1")


def test_a_success_that_is_not_json_says_so(server: Server, client: Client) -> None:
    server.answer(200, b"<html>router login</html>")
    with pytest.raises(ServerError, match="is this an i2v server"):
        client.get("video_1")


def test_retry_after_is_honoured_until_the_queue_has_room(server: Server, client: Client, pauses: list[float]) -> None:
    server.answer(503, v1_error("queue_full"), Retry_After="7")
    server.answer(429, v1_error("too_many_jobs"), Retry_After="3")
    server.answer(503, v1_error("not_ready"), Retry_After=format_datetime(datetime.now(UTC) + timedelta(seconds=30)))
    server.answer(200, video("queued"))
    assert client.submit(b"x", "x").status == "queued"
    assert pauses[:2] == [7, 3]
    assert 20 < pauses[2] <= 30
    assert len({seen.headers["Idempotency-Key"] for seen in server.seen}) == 1


def test_attempts_are_bounded(server: Server, client: Client, pauses: list[float]) -> None:
    server.answer(503, v1_error("queue_full", "the queue is full"), Retry_After="2")
    with pytest.raises(Busy, match="the queue is full") as caught:
        client.submit(b"x", "x")
    assert caught.value.retry_after == 2
    assert len(server.seen) == 5
    assert pauses == [2, 2, 2, 2]


def test_a_server_that_asks_for_an_hour_is_not_waited_for(server: Server, client: Client, pauses: list[float]) -> None:
    server.answer(503, v1_error("not_ready"), Retry_After="3600")
    with pytest.raises(Busy):
        client.submit(b"x", "x")
    assert pauses == []


@pytest.mark.parametrize("failure", [DROP, 502, 504])
def test_a_submit_whose_answer_was_lost_is_repeated_with_the_same_key(
    server: Server, client: Client, failure: Any
) -> None:
    server.answers = [DROP if failure == DROP else (failure, b"", {})]
    server.answer(200, video("queued"))
    client.submit(b"x", "x")
    assert len(server.seen) == 2
    assert len({seen.headers["Idempotency-Key"] for seen in server.seen}) == 1


def test_the_pause_grows_without_retry_after(server: Server, client: Client, pauses: list[float]) -> None:
    server.answers = [DROP]
    with pytest.raises(ConnectionFailed, match="was lost"):
        client.get("video_1")
    assert len(pauses) == 4
    assert all(0.8 * 0.5 * 2**n <= pause <= 1.2 * 0.5 * 2**n for n, pause in enumerate(pauses))


def test_no_server_is_one_readable_sentence(pauses: list[float]) -> None:
    with Client("http://127.0.0.1:9", attempts=2, sleep=pauses.append) as client:
        assert client.ready() is False
        with pytest.raises(ConnectionFailed, match="no server answers"):
            client.submit(b"x", "x")
    assert len(pauses) == 1


@pytest.mark.parametrize("url", ["127.0.0.1:7860", "localhost", "ftp://x", "http://", ""])
def test_an_address_without_a_scheme_is_refused(url: str) -> None:
    with pytest.raises(ClientError, match="must look like"):
        Client(url)


def test_a_silent_server_is_a_time_out(server: Server) -> None:
    asked, release = threading.Event(), threading.Event()

    class Silent(dict[str, str]):
        def items(self) -> Any:
            asked.set()
            release.wait(20)
            return super().items()

    server.answers = [(200, video(), Silent())]
    with Client(server.url, timeout=(1, 0.2), attempts=1) as client, pytest.raises(TimedOut):
        client.get("video_1")
    assert asked.is_set()
    release.set()


@pytest.mark.parametrize(
    ("final", "kind", "code"),
    [
        (video("failed", error={"code": "out_of_memory", "message": "512x512 would fit"}), JobFailed, "out_of_memory"),
        (video("failed", error={"code": "interrupted", "message": "twice"}), JobFailed, "interrupted"),
        (video("failed"), JobFailed, "failed"),
        (video("cancelled"), JobCancelled, "cancelled"),
    ],
)
def test_a_job_without_a_video_is_a_typed_error(
    server: Server, client: Client, final: dict[str, Any], kind: type[JobFailed], code: str
) -> None:
    server.answer(200, final)
    with pytest.raises(kind) as caught:
        client.wait("video_1")
    assert type(caught.value) is kind
    assert caught.value.code == code


def test_wait_gives_up_after_its_time_out(server: Server, client: Client) -> None:
    server.answer(200, video("in_progress"))
    with pytest.raises(TimedOut, match="in_progress"):
        client.wait("video_1", timeout=0)


def test_wait_outlives_a_restart_of_the_server(server: Server, client: Client) -> None:
    server.answer(200, video("in_progress"))
    server.answers += [DROP, DROP, (503, v1_error("not_ready"), {"Retry-After": "1"})]
    server.answer(200, video())
    assert client.wait("video_1").status == "completed"


def test_control_c_cancels_the_job(server: Server, client: Client) -> None:
    server.answer(200, video("queued"))

    def interrupt(_: Video) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.generate(b"x", "x", on_progress=interrupt)
    assert (server.seen[-1].method, server.seen[-1].path) == ("POST", "/v1/videos/video_1/cancel")


def test_cancel_delete_and_remix_ask_their_routes(server: Server, client: Client) -> None:
    server.answer(200, video("cancelled"))
    assert client.cancel("video_1").status == "cancelled"
    client.delete("video_1")
    client.remix("video_1", "night falls")
    assert [(seen.method, seen.path) for seen in server.seen] == [
        ("POST", "/v1/videos/video_1/cancel"),
        ("DELETE", "/v1/videos/video_1"),
        ("POST", "/v1/videos/video_1/remix"),
    ]
    assert json.loads(server.seen[-1].body) == {"prompt": "night falls"}


def test_an_id_cannot_leave_its_route(server: Server, client: Client) -> None:
    server.answer(404, v1_error("not_found"))
    with pytest.raises(NotFound):
        client.get("../../admin?x=1")
    assert server.seen[0].path == "/v1/videos/..%2F..%2Fadmin%3Fx%3D1"


def test_list_all_walks_every_page(server: Server, client: Client) -> None:
    server.answer(200, {"data": [video(id="a"), video(id="b")]})
    server.answer(200, {"data": [video(id="c")]})
    server.answer(200, {"data": []})
    assert [one.id for one in client.list_all()] == ["a", "b", "c"]
    assert [seen.path.split("?")[1] for seen in server.seen] == [
        "limit=100&order=desc",
        "limit=100&order=desc&after=b",
        "limit=100&order=desc&after=c",
    ]


def test_a_download_is_complete_or_absent(server: Server, client: Client, tmp_path: Path) -> None:
    """A connection lost in the middle left half a video under the name asked for."""
    server.answer(200, b"half", claim="8")
    server.answer(200, b"complete")
    server.answers[0][2]["Connection"] = "close"
    server.answer(200, video())
    assert client.download("video_1", tmp_path / "a.mp4").read_bytes() == b"complete"
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert server.seen[0].path == "/v1/videos/video_1/content"


def test_a_refused_download_leaves_nothing(server: Server, client: Client, tmp_path: Path) -> None:
    server.answer(409, v1_error("conflict", "it is in_progress"))
    with pytest.raises(Conflict, match="in_progress"):
        client.download("video_1", tmp_path / "a.mp4", "thumbnail")
    assert server.seen[0].path == "/v1/videos/video_1/content?variant=thumbnail"
    assert list(tmp_path.iterdir()) == []


def test_a_download_into_a_missing_folder_is_a_readable_error(server: Server, client: Client, tmp_path: Path) -> None:
    server.answer(200, b"complete")
    with pytest.raises(ClientError, match="cannot be written"):
        client.download("video_1", tmp_path / "none" / "a.mp4")


def test_a_video_saves_itself(server: Server, client: Client, tmp_path: Path) -> None:
    server.answer(200, video())
    server.answer(200, b"bytes")
    assert client.get("video_1").save(tmp_path / "a.mp4").read_bytes() == b"bytes"
    with pytest.raises(ClientError, match="belongs to no client"):
        Video(id="x", status="completed", progress=100).save(tmp_path / "b.mp4")


SUCCESS = {
    "data": ["/srv/outputs/video_1.mp4", "Prompt: sunset\nSeed: 7", "42.3s"],
    "is_generating": False,
    "duration": 43.0,
    "average_duration": 40.0,
}


def test_predict_speaks_the_positional_dialect(server: Server, client: Client, photo: Image.Image) -> None:
    server.answer(200, SUCCESS, X_Job_Id="video_1", X_Video_Url="http://elsewhere/outputs/video_1.mp4")
    result = client.predict(png(photo), "sunset", 256, 8, 8, 20, 7.5)
    assert result == {
        "success": True,
        "video_path": "/srv/outputs/video_1.mp4",
        "summary": "Prompt: sunset\nSeed: 7",
        "time": "42.3s",
        "duration": 43.0,
        "average_duration": 40.0,
        "job_id": "video_1",
        "video_url": "http://elsewhere/outputs/video_1.mp4",
    }
    assert (server.seen[0].method, server.seen[0].path) == ("POST", "/api/predict/")
    image, *rest = json.loads(server.seen[0].body)["data"]
    assert rest == ["sunset", 256, 8, 8, 20, 7.5]
    prefix, _, text = image.partition(",")
    assert prefix == "data:image/png;base64"
    assert base64.b64decode(text) == png(photo)


def test_predict_appends_seed_and_negative_prompt_only_when_given(server: Server, client: Client) -> None:
    server.answer(200, SUCCESS)
    client.predict(b"x", "sunset", seed=5)
    client.predict(b"x", "sunset", negative_prompt="blurry")
    assert [json.loads(seen.body)["data"][7:] for seen in server.seen] == [[5, None], [None, "blurry"]]


def test_predict_downloads_from_the_server_it_asked_and_from_no_other(
    server: Server, client: Client, tmp_path: Path
) -> None:
    server.answer(200, SUCCESS, X_Video_Url="http://elsewhere.invalid/outputs/video_1.mp4")
    server.answer(200, b"bytes")
    result = client.predict(b"x", "sunset", save_to=tmp_path / "a.mp4")
    assert result["saved_to"] == str(tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == b"bytes"
    assert server.seen[1].path == "/outputs/video_1.mp4"


@pytest.mark.parametrize(
    ("status", "code"), [(400, "bad_request"), (422, "invalid_request"), (500, "job_failed"), (507, "storage_full")]
)
def test_predict_failures_are_a_dictionary(server: Server, client: Client, status: int, code: str) -> None:
    detail = [{"loc": ["body", "data", "steps"], "msg": "steps is 5", "type": code}]
    server.answer(status, {"error": "steps is 5", "detail": detail})
    assert client.predict(b"x", "sunset") == {
        "success": False,
        "error": "steps is 5",
        "code": code,
        "status": status,
        "field": "steps",
        "job_id": None,
    }
    assert len(server.seen) == 1


def test_predict_without_a_server_is_a_failure_dictionary() -> None:
    with Client("http://127.0.0.1:9", attempts=1) as client:
        result = client.predict(b"x", "sunset")
    assert result["success"] is False
    assert "no server answers" in result["error"]


def test_predict_is_not_repeated_when_its_answer_was_lost(server: Server, client: Client) -> None:
    """Without a key a repeated POST would make a second video."""
    server.answers = [DROP]
    assert client.predict(b"x", "sunset")["code"] == "connection_lost"
    assert len(server.seen) == 1


def test_predict_waits_for_a_place_but_does_not_repeat_a_job_that_ran_out_of_memory(
    server: Server, client: Client, pauses: list[float]
) -> None:
    def refusal(code: str) -> dict[str, Any]:
        return {"error": code, "detail": [{"loc": ["body"], "msg": code, "type": code}]}

    server.answer(503, refusal("queue_full"), Retry_After="4")
    server.answer(503, refusal("out_of_memory"), Retry_After="5")
    result = client.predict(b"x", "sunset")
    assert (result["status"], result["code"]) == (503, "out_of_memory")
    assert pauses == [4]


def test_predict_is_not_repeated_when_the_refusal_names_a_job_that_goes_on(server: Server, client: Client) -> None:
    """A server that stops keeps the job; a repeated POST used to make a second one."""
    body = {"error": "stopping", "detail": [{"loc": ["body"], "msg": "stopping", "type": "not_ready"}]}
    server.answer(503, body, Retry_After="1", X_Job_Id="video_1")
    result = client.predict(b"x", "sunset")
    assert (result["status"], result["job_id"]) == (503, "video_1")
    assert len(server.seen) == 1


def test_predict_downloads_below_the_path_that_a_proxy_adds(server: Server, tmp_path: Path) -> None:
    server.answer(200, SUCCESS, X_Video_Url=f"{server.url}/i2v/outputs/video_1.mp4")
    server.answer(200, b"bytes")
    with Client(f"{server.url}/i2v") as client:
        assert client.predict(b"x", "sunset", save_to=tmp_path / "a.mp4")["success"]
    assert server.seen[1].path == "/i2v/outputs/video_1.mp4"


def test_the_defaults_of_predict_are_those_of_the_server() -> None:
    """The client is one file that can be copied away, so it repeats them."""
    named = {name: value.default for name, value in inspect.signature(Client.predict).parameters.items()}
    assert named.pop("resolution") == default_of("width") == default_of("height")
    shared = named.keys() & GenerateRequest.model_fields.keys() - {"prompt"}
    assert shared == {"num_frames", "fps", "steps", "guidance_scale", "seed", "negative_prompt"}
    assert {name: named[name] for name in shared} == {name: default_of(name) for name in shared}
