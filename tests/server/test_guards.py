"""Who may ask: token, Host, origin, body size; and what every answer carries, the mounted page's included."""

import asyncio
import base64
import json
import re

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.responses import PlainTextResponse

from i2v.engine.fake import FakeEngine
from i2v.jobs.queue import JobQueue
from i2v.mutex import GpuMutex
from i2v.server import clients
from i2v.server.app import create_app
from i2v.server.clients import FREE_TRIES, KNOWN_CLIENTS, WAIT_AT_ONCE, WAIT_S, WrongTokens
from i2v.settings import Settings

TOKEN = "correct horse battery staple"


@pytest.fixture
def serve(tmp_path):
    """`async with serve(setting=value) as client`: a server with another page mounted at `/`, as the web page is."""

    class Running:
        def __init__(self, **settings):
            settings = Settings(outputs=tmp_path / "outputs", model="fake", min_free_mb=0, **settings)
            queue = JobQueue(settings)
            queue.attach(FakeEngine(), GpuMutex())
            self.app = create_app(settings, queue)
            page = FastAPI()
            page.add_api_route("/", lambda: {"page": True})
            page.add_api_route("/upload", echo, methods=["POST"])
            page.add_api_route("/broken", broken)
            self.app.mount("/", page)

        async def __aenter__(self):
            self.lifespan = self.app.router.lifespan_context(self.app)
            await self.lifespan.__aenter__()
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=("127.0.0.1", 1))
            self.client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7860")
            return self.client

        async def __aexit__(self, *error):
            await self.client.aclose()
            await self.lifespan.__aexit__(*error)

    return Running


async def echo(request: Request):
    return PlainTextResponse(str(len(await request.body())))


async def broken():
    raise RuntimeError("/secret/path exploded")


ROUTES = [
    ("GET", "/"),
    ("POST", "/upload"),
    ("GET", "/nothing/here"),
    ("POST", "/api/predict/"),
    ("GET", "/api/predict/"),
    ("POST", "/run/predict"),
    ("GET", "/metrics"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/outputs/video_20260101_000000_abcdef.mp4"),
    ("GET", "/v1/videos"),
    ("POST", "/v1/videos"),
    ("POST", "/v1/videos/sync"),
    ("POST", "/v1/videos/extensions"),
    ("GET", "/v1/videos/x"),
    ("DELETE", "/v1/videos/x"),
    ("GET", "/v1/videos/x/content"),
    ("GET", "/v1/videos/x/events"),
    ("POST", "/v1/videos/x/cancel"),
    ("POST", "/v1/videos/x/remix"),
    ("GET", "/v1/models"),
    ("OPTIONS", "/v1/videos"),
    ("GET", "/generate/video"),
]


def basic(password, user="anyone"):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


class TestToken:
    @pytest.mark.parametrize(("method", "path"), ROUTES)
    async def test_no_route_but_the_probes_answers_without_it(self, serve, method, path):
        async with serve(api_token=TOKEN) as client:
            answer = await client.request(method, path)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
            allowed = await client.request(method, path, headers={"authorization": f"Bearer {TOKEN}"})
            assert allowed.status_code != 401

    async def test_every_declared_route_is_in_the_walk_above(self, serve):
        async with serve() as client:
            declared = (await client.get("/openapi.json")).json()["paths"]
            walked = {re.sub(r"(?<=/videos/)x", "{video_id}", path) for _, path in ROUTES}
            walked |= {"/outputs/{name}", "/v1/models/{model_id}"}
            assert set(declared) <= walked | {"/livez", "/readyz"}

    @pytest.mark.parametrize("path", ["/livez", "/readyz"])
    async def test_the_probes_answer_without_it(self, serve, path):
        async with serve(api_token=TOKEN) as client:
            assert (await client.get(path)).status_code == 200

    @pytest.mark.parametrize(
        "header",
        [
            "",
            "Bearer",
            "Bearer ",
            "Bearer wrong",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            f"bearer{TOKEN}",
            TOKEN,
            "Bearer " + "x" * 60_000,
            "Bearer tökén",
            "Basic",
            "Basic ====",
            basic("wrong"),
            basic("", user=TOKEN),
            f"Digest {TOKEN}",
        ],
        ids=lambda header: header[:30],
    )
    async def test_a_wrong_one_is_refused_without_being_repeated(self, serve, header):
        async with serve(api_token=TOKEN) as client:
            answer = await client.get("/v1/videos", headers={"authorization": header.encode("utf-8")})
            assert answer.status_code == 401
            assert answer.json()["error"]["type"] == "authentication_error"
            assert "wrong" not in answer.text

    @pytest.mark.parametrize("query", [f"token={TOKEN}", f"api_key={TOKEN}", f"access_token={TOKEN}"])
    async def test_it_is_not_taken_from_the_address(self, serve, query):
        async with serve(api_token=TOKEN) as client:
            assert (await client.get(f"/v1/videos?{query}")).status_code == 401

    async def test_a_browser_is_asked_to_log_in_and_may_send_it_as_password(self, serve):
        async with serve(api_token=TOKEN) as client:
            answer = await client.get("/", headers={"accept": "text/html,*/*"})
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Basic")
            answer = await client.get("/", headers={"authorization": basic(TOKEN)})
            assert answer.json() == {"page": True}

    async def test_a_token_beyond_ascii_works(self, serve):
        async with serve(api_token="пароль-日本") as client:
            answer = await client.get("/v1/videos", headers={"authorization": "Bearer пароль-日本".encode()})
            assert answer.status_code == 200

    async def test_guessing_gets_nowhere_and_locks_nobody_out(self, serve):
        async with serve(api_token=TOKEN) as client:
            guesses = (client.get("/v1/videos", headers={"authorization": f"Bearer guess{n}"}) for n in range(300))
            assert {answer.status_code for answer in await asyncio.gather(*guesses)} == {401}
            right = await client.get("/v1/videos", headers={"authorization": f"Bearer {TOKEN}"})
            assert right.status_code == 200


class TestHost:
    @pytest.mark.parametrize(
        "host",
        ["127.0.0.1", "127.0.0.1:7860", "localhost", "LOCALHOST:1", "[::1]:7860", "192.168.1.7:80", "gpu.lan"],
    )
    async def test_own_names_are_served(self, serve, host):
        async with serve(allowed_hosts=("gpu.lan",)) as client:
            assert (await client.get("/livez", headers={"host": host})).status_code == 200

    @pytest.mark.parametrize(
        "host",
        [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.example:7860",
            "[evil]",
            "gpu.lan.",
            "a b",
        ],
    )
    async def test_other_names_are_refused(self, serve, host):
        async with serve() as client:
            answer = await client.get("/readyz", headers={"host": host})
            assert answer.status_code == 403
            assert "evil" not in answer.text

    async def test_the_public_address_is_an_own_name(self, serve):
        async with serve(public_url="https://video.example.org/") as client:
            assert (await client.get("/livez", headers={"host": "video.example.org"})).status_code == 200


FOREIGN = [
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:8000"},
    {"origin": "http://127.0.0.1:7860.evil.example"},
    {"origin": "é"},
    {"origin": "http://["},
    {"origin": "http://[evil]"},
    {"origin": ""},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1:7860"},
]


class TestOrigin:
    @pytest.mark.parametrize("headers", FOREIGN, ids=str)
    @pytest.mark.parametrize("path", ["/api/predict/", "/v1/videos", "/upload"])
    async def test_a_foreign_page_cannot_post(self, serve, path, headers):
        async with serve() as client:
            encoded = {name: value.encode() for name, value in headers.items()}
            answer = await client.post(path, content=b"{}", headers=encoded)
            assert answer.status_code == 403

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"origin": "http://127.0.0.1:7860"},
            {"sec-fetch-site": "same-origin"},
            {"sec-fetch-site": "none"},
            {"sec-fetch-site": "same-origin", "origin": "https://video.example.org"},
            {"origin": "https://video.example.org"},
        ],
        ids=str,
    )
    async def test_our_own_page_and_programs_can(self, serve, headers):
        async with serve(public_url="https://video.example.org") as client:
            assert (await client.post("/upload", content=b"abc", headers=headers)).text == "3"

    async def test_a_foreign_page_cannot_delete(self, serve):
        async with serve() as client:
            answer = await client.delete("/v1/videos/x", headers={"origin": "http://evil.example"})
            assert answer.status_code == 403

    async def test_a_preflight_is_not_granted(self, serve):
        async with serve() as client:
            headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
            for path in ("/api/predict/", "/v1/videos"):
                answer = await client.options(path, headers=headers)
                assert answer.status_code == 405
                assert not any(name.startswith("access-control") for name in answer.headers)


class TestBodySize:
    async def test_the_largest_body_is_taken_and_one_byte_more_is_not(self, serve):
        async with serve(max_body_mb=0.1) as client:
            assert (await client.post("/upload", content=b"x" * 100_000)).text == "100000"
            answer = await client.post("/upload", content=b"x" * 100_001)
            assert answer.status_code == 413
            assert "0.1 MB" in answer.json()["error"]

    @pytest.mark.parametrize("path", ["/upload", "/api/predict/", "/v1/videos"])
    async def test_a_chunked_body_is_cut_off_at_the_same_size(self, serve, path):
        async def chunks():
            for _ in range(11):
                yield b" " * 10_000

        async with serve(max_body_mb=0.1) as client:
            answer = await client.post(path, content=chunks())
            assert answer.status_code == 413
            assert "0.1 MB" in json.dumps(answer.json())

    @pytest.mark.parametrize("length", ["9" * 400, "-1", "x", "1e9", "100001"])
    async def test_a_lying_length_is_refused(self, serve, length):
        async with serve(max_body_mb=0.1) as client:
            answer = await client.post("/api/predict/", content=b"{}", headers={"content-length": length})
            assert answer.status_code in (400, 413)


class TestEveryAnswer:
    @pytest.mark.parametrize(("method", "path"), [*ROUTES, ("GET", "/livez"), ("GET", "/broken")])
    async def test_carries_a_request_id_and_the_fixed_headers(self, serve, method, path):
        async with serve() as client:
            answer = await client.request(method, path)
            assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["x-request-id"])
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["x-frame-options"] == "SAMEORIGIN"
            assert "server" not in answer.headers

    async def test_keeps_the_callers_request_id_when_it_is_a_plain_word(self, serve):
        async with serve() as client:
            answer = await client.get("/livez", headers={"x-request-id": "abc-1"})
            assert answer.headers["x-request-id"] == "abc-1"
            answer = await client.get("/livez", headers={"x-request-id": "a b\tc"})
            assert answer.headers["x-request-id"].startswith("req_")

    async def test_says_nothing_of_an_unexpected_error_but_its_request_id(self, serve, caplog):
        async with serve() as client:
            answer = await client.get("/broken")
            assert answer.status_code == 500
            assert answer.json()["error"]
            assert "secret" not in answer.text
            assert "Traceback" not in answer.text
            assert any(record.request == answer.headers["x-request-id"] for record in caplog.records if record.exc_info)

    async def test_is_json_even_for_what_the_mounted_page_does_not_know(self, serve):
        async with serve() as client:
            answer = await client.get("/nothing/here")
            assert answer.status_code == 404
            assert "/api/predict/" in answer.json()["error"]


class TestWrongTokens:
    @pytest.mark.fault("brute force", "thousands of wrong tokens", before="no line, no pause")
    async def test_they_are_counted_by_address_and_slowed_down(self, serve, caplog, monkeypatch, record_property):
        waits, loop = [], asyncio.get_running_loop()
        later = []
        sleep = asyncio.sleep

        async def wait(seconds):
            waits.append(seconds)
            await sleep(0)

        async with serve(api_token=TOKEN) as client:
            monkeypatch.setattr(clients.asyncio, "sleep", wait)
            monkeypatch.setattr(loop, "call_later", lambda seconds, call: later.append((seconds, call)))
            wrong = {"authorization": "Bearer wrong"}
            tries = [await client.get("/metrics", headers=wrong) for _ in range(FREE_TRIES + 40)]
            assert (await client.get("/metrics")).status_code == 401  # none at all is no wrong one
            assert (await client.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"})).status_code == 200
        assert {answer.status_code for answer in tries} == {401}
        assert waits.count(WAIT_S) == 40
        lines = [record.getMessage() for record in caplog.records if "wrong token" in record.getMessage()]
        assert lines == ["a wrong token came from 127.0.0.1"]
        ((seconds, report),) = later
        assert seconds == 60
        report()
        said = caplog.records[-1].getMessage()
        assert said == "50 wrong tokens in a minute: 50 from 127.0.0.1"
        record_property("after", f"{said!r}, {len(waits)} of them after {WAIT_S} s")

    async def test_what_is_remembered_and_who_waits_is_bounded(self, caplog, monkeypatch):
        go_on, waiting = asyncio.Event(), []

        async def wait(seconds):
            waiting.append(seconds)
            await go_on.wait()

        monkeypatch.setattr(clients.asyncio, "sleep", wait)
        wrong = WrongTokens()
        for number in range(KNOWN_CLIENTS):
            await wrong.noted(f"client {number}")
        tries = [asyncio.create_task(wrong.noted(f"new {number}")) for number in range(100)]
        while not all(one.done() for one in tries[WAIT_AT_ONCE + FREE_TRIES :]):
            await asyncio.wait(tries, timeout=0.01)
        assert len(waiting) == WAIT_AT_ONCE
        go_on.set()
        await asyncio.gather(*tries)
        wrong.report()
        assert (
            caplog.records[-1]
            .getMessage()
            .startswith("1100 wrong tokens in a minute: 100 from other addresses, 1 from")
        )
        assert len(caplog.records[-1].getMessage()) < 400
