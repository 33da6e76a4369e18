"""Real servers for the tests that need one: `python server.py` in a process of its own; and bytes on its socket."""

import base64
import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import requests
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
START_S = 90.0


@dataclass
class LiveServer:
    """One running server. `raw` speaks bytes to its socket, `session` speaks HTTP."""

    process: subprocess.Popen
    port: int
    outputs: Path
    log_file: Path
    session: requests.Session = field(default_factory=requests.Session)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    @property
    def temporary(self) -> Path:
        """The folder that the server has for temporary files, for itself alone."""
        return self.log_file.with_name("temporary")

    def connect(self, timeout: float = 30) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def raw(self, data: bytes, timeout: float = 30) -> bytes:
        """Send bytes, read until the server closes or nothing has come for `timeout` seconds."""
        with self.connect(timeout) as connection:
            connection.sendall(data)
            return read_all(connection)

    def small_job(self, **more) -> requests.Response:
        data = [small_photo(), "the scene at sunset", 256, 8, 8, 10, 7.5]
        return self.session.post(f"{self.url}/api/predict/", json={"data": data, **more}, timeout=60)

    def ready(self) -> bool:
        return self.session.get(f"{self.url}/readyz", timeout=10).status_code == 200

    def stop(self, sig: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            return self.process.wait(60)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(10)
            self.session.close()


def start(
    folder: Path,
    *flags: str,
    wait: bool = True,
    program: Sequence[str] = (str(ROOT / "server.py"),),
    **variables: str,
) -> LiveServer:
    """Start a server with the fake engine on a free port; with `wait`, return once it is ready."""
    folder.mkdir(parents=True, exist_ok=True)
    outputs, log_file = folder / "outputs", folder / "server.log"
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("I2V_")}
    environment |= {"TMPDIR": str(temporary)} | variables
    command = [sys.executable, *program, "--model", "fake", "--port", "0", "--outputs", str(outputs)]
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [*command, "--min-free-mb", "0", *flags], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    server = LiveServer(process, 0, outputs, log_file)
    if wait:
        try:
            server.port = port_of(server)
        except BaseException:
            server.stop()
            raise
    return server


def port_of(server: LiveServer) -> int:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        found = re.search(r"ready at \S+?:(\d+)\b", server.log)
        if found:
            return int(found[1])
        if server.process.poll() is not None:
            break
        time.sleep(0.05)
    raise AssertionError(f"the server did not become ready:\n{server.log}")


def post_video(server: LiveServer) -> str:
    """The id of a small job that was queued by `/v1/videos`."""
    body = {"prompt": "the scene at sunset", "input_reference": {"image_url": small_photo()}, "size": "256x256"}
    answer = server.session.post(f"{server.url}/v1/videos", json={**body, "num_frames": 8, "steps": 10}, timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def read_all(connection: socket.socket) -> bytes:
    """Everything until the other side closes, or resets, or stays silent for the socket's timeout."""
    pieces = []
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while piece := connection.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One HTTP answer with a Content-Length: status, headers, body."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        assert piece, f"the connection closed after {data!r}"
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    status, headers = parse_head(head)
    while len(body) < int(headers.get("content-length", 0)):
        piece = connection.recv(65536)
        assert piece, "the connection closed within a body"
        body += piece
    return status, headers, body


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}


def small_photo() -> str:
    return data_url(encode(Image.new("RGB", (32, 32), (200, 120, 40))))


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64," + base64.b64encode(data).decode()


def assert_refusal(answer: requests.Response, *statuses: int) -> None:
    """A refusal in the contract's form, with nothing in it that should not be."""
    assert answer.status_code in (statuses or (400, 404, 405, 413, 422)), answer.text
    body = json.loads(answer.text)
    text = body["error"] if isinstance(body["error"], str) else body["error"]["message"]
    assert text
    assert "Traceback" not in answer.text
    assert str(ROOT) not in answer.text
    assert len(answer.text) < 1000
