"""Webhooks: who may be called, how the call is signed, and that it comes in the end."""

import asyncio
import json
import socket
import sqlite3
import ssl
import threading
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import openai
import pytest

from i2v.errors import Unavailable
from i2v.jobs.job import PendingWebhook
from i2v.jobs.queue import JobQueue
from i2v.jobs.webhooks import Refused, Webhooks, post
from i2v.settings import Settings
from tests.conftest import ASSETS

CERTIFICATE = ASSETS / "hook.example.pem"  # of that name, its own authority, valid until 2120
SECRET = "whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQ="


class Receiver(ThreadingHTTPServer):
    """Answers with the given statuses, one after the other, the last one for ever; keeps what came."""

    def __init__(self, *statuses):
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses = list(statuses)
        self.begun = []  # bodies, before they are answered
        self.calls = []
        self.arrived = threading.Condition()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/hook?x=1"

    async def wait_for(self, count):
        def wait():
            with self.arrived:
                return self.arrived.wait_for(lambda: len(self.calls) >= count, 60)

        assert await asyncio.to_thread(wait)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        server = self.server
        server.begun.append(body)
        status = server.statuses.pop(0) if len(server.statuses) > 1 else server.statuses[0]
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("location", "http://169.254.169.254/")
        self.send_header("content-length", "0")
        self.end_headers()
        with server.arrived:
            server.calls.append((self.path, dict(self.headers.items()), body))
            server.arrived.notify_all()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def receiver():
    made = []

    def make(*statuses):
        made.append(Receiver(*(statuses or (200,))))
        return made[-1]

    yield make
    for server in made:
        server.shutdown()
        server.server_close()


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(
        outputs=tmp_path / "outputs",
        model="fake",
        ui=False,
        min_free_mb=0,
        webhook_secret=SECRET,
        webhook_allow_private=True,
    )


@pytest.fixture
def quick(app, queue, settings):
    """The app with webhooks that try again at once."""
    app.state.context.webhooks.stop()
    webhooks = Webhooks(settings, queue, back_off=(0.01,) * 4)
    webhooks.start()
    queue.on_final.append(webhooks.finished)
    object.__setattr__(app.state.context, "webhooks", webhooks)
    yield webhooks
    webhooks.stop()


@pytest.fixture
def create(client, small_url):
    async def post(url, **body):
        body = {"prompt": "x", "size": "256x256", "num_frames": 8, "steps": 10, "webhook": url, **body}
        return await client.post("/v1/videos", json={**body, "input_reference": {"image_url": small_url}})

    return post


async def test_the_end_of_a_job_is_told_once_and_openais_client_verifies_it(create, receiver, quick, queue, settings):
    server = receiver()
    job = (await create(server.url)).json()["id"]
    await server.wait_for(1)
    path, headers, body = server.calls[0]
    assert path == "/hook?x=1"
    event = json.loads(body)
    assert (event["object"], event["type"], event["data"]) == ("event", "video.completed", {"id": job})
    client = openai.OpenAI(api_key="x", webhook_secret=SECRET)
    client.webhooks.verify_signature(body, headers)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.verify_signature(body + b" ", headers)
    await create(server.url)  # the next delivery shows that the first was not repeated
    await server.wait_for(2)
    assert server.calls[1][2] != body


def test_an_https_address_that_drips_is_cut_off_as_any_other():
    """The limit used to close a socket that TLS had taken over."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip():
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.sendall(b"\x16\x03\x03\x40\x00")  # a handshake record of 16 kB, which never ends
                while not over.wait(0.02):
                    connection.sendall(b"\0")

        dripping = threading.Thread(target=drip, daemon=True)
        dripping.start()
        calling = Outcome(f"https://127.0.0.1:{listener.getsockname()[1]}/")
        calling.join(30)
        ended = not calling.is_alive()
        over.set()
        dripping.join(10)
    assert ended
    assert isinstance(calling.error, TimeoutError)  # httpx has another for its limit on silence, which each byte resets


class Outcome(threading.Thread):
    """Calls an address with a limit of 0.2 s in all; keeps what came of it."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.url, self.error = url, None
        self.start()

    def run(self):
        try:
            asyncio.run(post(self.url, b"{}", {}, allow_private=True, total_s=0.2))
        except Exception as error:
            self.error = error


async def test_a_failed_job_is_told_too(create, receiver, quick, engine):
    def fault(stage, step):
        raise RuntimeError("boom")

    engine.fault = fault
    server = receiver()
    await create(server.url)
    await server.wait_for(1)
    assert json.loads(server.calls[0][2])["type"] == "video.failed"


@pytest.mark.parametrize("status", [500, 404, 302])
async def test_an_answer_that_is_no_success_is_tried_again_with_the_same_id(create, receiver, quick, status):
    server = receiver(status, status, 200)
    await create(server.url)
    await server.wait_for(3)
    assert len({call[1]["webhook-id"] for call in server.calls}) == 1


async def test_it_is_given_up_in_the_end_and_forgotten(create, receiver, quick, queue, caplog):
    server = receiver(500)
    await create(server.url)
    await server.wait_for(5)
    await nothing_pending(queue)
    assert len(server.calls) == 5
    assert "given up after 5 attempts" in caplog.text


async def test_a_call_that_is_owed_is_made_after_a_restart(create, receiver, app, queue, settings):
    app.state.context.webhooks.stop()
    server = receiver()
    job = (await create(server.url)).json()["id"]
    await queue.wait(job)
    assert [(pending.job_id, pending.status) for pending in queue.pending_webhooks()] == [(job, "completed")]
    webhooks = Webhooks(settings, queue)
    webhooks.start()
    await server.wait_for(1)
    await nothing_pending(queue)
    webhooks.stop()


async def test_an_address_outlives_a_process_that_dies_right_after_the_job_was_queued(
    create, receiver, app, queue, settings, engine
):
    """The address was stored after the job: a process that died in between had forgotten whom to tell."""
    held = threading.Event()
    engine.fault = lambda stage, step: held.wait(60)
    job = (await create(receiver().url)).json()["id"]
    with sqlite3.connect(settings.outputs / "jobs.sqlite3") as table:  # what another process would find
        urls = table.execute(
            "SELECT url FROM i2v_webhooks JOIN i2v_jobs ON id = job_id WHERE id = ?", (job,)
        ).fetchall()
    assert len(urls) == 1
    held.set()


async def test_one_key_with_another_address_is_a_conflict(create, receiver, client, small_url):
    """The address was not part of what makes two submissions the same: the second one was told nothing."""
    first, second = receiver(), receiver()
    body = {"prompt": "x", "size": "256x256", "num_frames": 8, "steps": 10}
    body["input_reference"] = {"image_url": small_url}

    async def send(url):
        headers = {"Idempotency-Key": "k"}
        return await client.post("/v1/videos", json=body | ({"webhook": url} if url else {}), headers=headers)

    made = await send(first.url)
    again = await send(first.url)
    assert (again.json()["id"], again.headers["idempotent-replayed"]) == (made.json()["id"], "true")
    for url in (second.url, None):
        answer = await send(url)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")


async def test_a_job_that_is_deleted_while_it_runs_is_told_as_cancelled(create, receiver, client, quick, queue, engine):
    begun, held = threading.Event(), threading.Event()

    def fault(stage, step):
        begun.set()
        held.wait(60)

    engine.fault = fault
    server = receiver()
    job = (await create(server.url)).json()["id"]
    assert await asyncio.to_thread(begun.wait, 60)
    deleted = asyncio.create_task(client.delete(f"/v1/videos/{job}"))
    async with asyncio.timeout(60):
        while not any(live.cancelled for live in queue._running.all()):
            await asyncio.sleep(0.01)
    held.set()
    assert (await deleted).status_code == 200
    await server.wait_for(1)
    event = json.loads(server.calls[0][2])
    assert (event["type"], event["data"]) == ("video.cancelled", {"id": job})


async def test_a_job_that_is_gone_at_the_restart_is_told_too(create, receiver, app, queue, settings):
    """DELETE and retention took the row that the event was made from, and the start forgot the address."""
    app.state.context.webhooks.stop()
    server = receiver()
    job = (await create(server.url)).json()["id"]
    ended = await queue.wait(job)
    await asyncio.to_thread(queue.delete, job)
    webhooks = Webhooks(settings, queue)
    webhooks.start()
    await server.wait_for(1)
    event = json.loads(server.calls[0][2])
    assert (event["type"], event["data"]) == ("video.completed", {"id": job})
    assert event["created_at"] == int(ended.completed_at.timestamp())
    await nothing_pending(queue)
    webhooks.stop()


async def nothing_pending(queue):
    async with asyncio.timeout(60):
        while queue.pending_webhooks():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("call", ["pending_webhooks", "forget_webhook"])
async def test_a_table_that_cannot_be_asked_at_the_end_is_asked_again(
    create, receiver, app, queue, settings, monkeypatch, call
):
    """The next try was the next start. One that was told is not told again for it."""
    app.state.context.webhooks.stop()
    works, failures = getattr(queue, call), [Unavailable("not now"), Unavailable("nor now")]

    def at_last(*arguments):
        if failures:
            raise failures.pop()
        return works(*arguments)

    monkeypatch.setattr(queue, call, at_last)
    webhooks = Webhooks(settings, queue, look_again_s=0.02)
    webhooks.start()
    server = receiver()
    await create(server.url)
    await server.wait_for(1)
    await nothing_pending(queue)
    webhooks.stop()
    assert (failures, len(server.calls)) == ([], 1)


INSIDE = [
    "http://127.0.0.1/x",
    "http://localhost/x",
    "https://LOCALHOST:8443/",
    "http://10.0.0.1/",
    "http://192.168.1.1/",
    "http://172.16.0.1/",
    "http://169.254.169.254/latest/meta-data",
    "http://100.64.0.1/",
    "http://0.0.0.0/",
    "http://224.0.0.1/",
    "http://[::1]/",
    "http://[fe80::1]/",
    "http://[fd00::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[2002:7f00:1::]/",
]
NO_ADDRESS = [
    "",
    "x",
    "ftp://example.com/",
    "file:///etc/passwd",
    "http://",
    "http:///x",
    "http://user:password@example.com/",
    "http://example.com:99999/",
    "http://exam ple.com/",
    "http://example.com/\r\nX: y",
    "http://example.com/é",
    "http://[::1",
]


class TestTheDoor:
    @pytest.fixture
    def settings(self, tmp_path):
        return Settings(outputs=tmp_path / "outputs", model="fake", ui=False, min_free_mb=0, webhook_secret=SECRET)

    @pytest.mark.parametrize("url", INSIDE + NO_ADDRESS)
    async def test_an_address_inside_or_none_is_refused(self, create, queue, url):
        answer = await create(url)
        assert answer.status_code == 422
        assert answer.json()["error"]["param"] == "webhook"
        assert queue.list() == []

    @pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "http://localhost:9/", "http://2130706433:9/"])
    async def test_a_name_that_points_inside_is_refused_when_it_is_called(self, url):
        with pytest.raises(Refused):
            await post(url, b"{}", {}, allow_private=False)

    async def test_the_address_that_was_looked_at_is_the_one_that_is_called(self, monkeypatch):
        """A name that points outside when it is checked and inside a moment later leads nowhere inside."""
        answers = ["93.184.216.34", "127.0.0.1"]
        called = []

        def resolve(host, port, *_rest, **_more):
            address = answers.pop(0) if host == "rebind.example" else host
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

        async def connect(_loop, _protocol, host, port, **_more):
            called.append((host, port))
            raise ConnectionRefusedError

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", connect)
        with pytest.raises(httpx.ConnectError):
            await post("http://rebind.example:8080/", b"{}", {}, allow_private=False)
        assert (called, answers) == ([("93.184.216.34", 8080)], ["127.0.0.1"])

    @pytest.mark.parametrize("proxy", ["HTTP_PROXY", "ALL_PROXY"])
    async def test_a_proxy_of_this_machine_plays_no_part(self, receiver, monkeypatch, proxy):
        """A proxy would resolve the name again, and inside."""
        server = receiver()
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
        assert await post(server.url, b"{}", {}, allow_private=True) == 200

    async def test_no_redirect_is_followed(self, receiver):
        assert await post(receiver(307).url, b"{}", {}, allow_private=True) == 307

    def test_public_addresses_pass(self, settings):
        webhooks = Webhooks(settings, JobQueue(settings))
        for url in ("https://example.com/hook", "http://93.184.216.34:8080/", "http://[2606:4700::1111]/"):
            webhooks.check(url)


class TestTheCertificate:
    """The connection goes to an address; the certificate must be that of the name."""

    @pytest.fixture
    def server(self, receiver, monkeypatch):
        server = receiver()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(CERTIFICATE)
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        resolve = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: resolve("127.0.0.1", *rest, **more))
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        return server

    async def test_that_of_the_name_is_taken(self, server):
        port = server.server_address[1]
        assert await post(f"https://hook.example:{port}/x", b"{}", {}, allow_private=True) == 200
        assert server.calls[0][1]["Host"] == f"hook.example:{port}"

    @pytest.mark.parametrize("name", ["other.example", "127.0.0.1"])
    async def test_that_of_another_name_is_not(self, server, name):
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await post(f"https://{name}:{server.server_address[1]}/", b"{}", {}, allow_private=True)
        assert server.calls == []

    async def test_one_that_nobody_vouches_for_is_not(self, server, monkeypatch):
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await post(f"https://hook.example:{server.server_address[1]}/", b"{}", {}, allow_private=True)


async def test_a_slow_address_does_not_delay_another(create, receiver, quick):
    """One thread called them one after the other, up to 20 s each."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        await create(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        connection, _ = await asyncio.to_thread(silent.accept)  # it is being called, and never answers
        server = receiver()
        await create(server.url)
        await server.wait_for(1)
        assert still_waits(connection)
        connection.close()


def still_waits(connection: socket.socket) -> bool:
    """Whether the other side keeps the connection open, once all that it has sent is read."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return True
    return False


class Owed:
    """A queue that knows only which addresses are to be told of which jobs."""

    def __init__(self, *urls):
        ended = datetime(2026, 1, 2, tzinfo=UTC)
        self.pending = {
            f"video_{n:024d}": PendingWebhook(f"video_{n:024d}", url, "completed", ended + timedelta(n))
            for n, url in enumerate(urls)
        }

    def pending_webhooks(self):
        return list(self.pending.values())

    def forget_webhook(self, id):
        del self.pending[id]


@pytest.mark.fault(
    "F12",
    "40 ended jobs for an address that never answers, then one for another",
    before="the other one waits for 40 s",
)
async def test_forty_calls_to_a_slow_address_do_not_delay_another(receiver, settings, record_property):
    server = receiver()
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        owed = Owed(*[f"http://127.0.0.1:{silent.getsockname()[1]}/"] * 40)
        webhooks = Webhooks(settings, owed)
        webhooks.start()
        held = [(await asyncio.to_thread(silent.accept))[0]]
        (last,) = Owed(server.url).pending.values()
        owed.pending["another"] = replace(last, job_id="another")
        webhooks.finished(None)
        await server.wait_for(1)
        waits = still_waits(held[0])
        silent.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                held.append(silent.accept()[0])
        webhooks.stop()
        for connection in held:
            connection.close()
    assert waits
    assert len(held) == 1
    record_property("after", f"told at once, while {len(held)} call to the slow address is open")


async def test_calls_to_one_address_come_in_the_order_of_the_ends(receiver, settings):
    server = receiver()
    owed = Owed(*[server.url] * 20)
    ids = list(owed.pending)
    webhooks = Webhooks(settings, owed)
    webhooks.start()
    await server.wait_for(20)
    webhooks.stop()
    assert [json.loads(body)["data"]["id"] for body in server.begun] == ids


class TestWithoutASecret:
    @pytest.fixture
    def settings(self, tmp_path):
        return Settings(outputs=tmp_path / "outputs", model="fake", ui=False, min_free_mb=0)

    async def test_webhooks_are_off_and_say_so(self, create):
        answer = await create("https://example.com/")
        assert answer.status_code == 422
        assert "webhook_secret" in answer.json()["error"]["message"]
