"""A local stand-in for the Hugging Face hub: the four routes that a download asks for, with faults on demand.

Speaks tree listing, revision lookup, and HEAD and GET of files with Range, on 127.0.0.1 and a free port.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", ".pth", ".ckpt")


@dataclass
class HubDouble:
    """`files` by path; `cut` ends a GET of a path after so many bytes, once for each entry; `served` maps a path to
    other bytes than the listing promises; `down` answers everything with 503."""

    repo: str
    files: dict[str, bytes]
    cut: dict[str, list[int]] = field(default_factory=dict)
    served: dict[str, bytes] = field(default_factory=dict)
    ignore_range: bool = False
    down: bool = False
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range
    endpoint: str = ""

    def fetched(self) -> set[str]:
        """Paths of the repository whose content was asked for."""
        return {path for method, path, _ in self.requests if method == "GET" and path in self.files}

    def ranges(self, path: str) -> list[str | None]:
        return [wanted for method, asked, wanted in self.requests if method == "GET" and asked == path]

    def listing(self) -> list[dict]:
        return [self._entry(path, data) for path, data in sorted(self.files.items())]

    @staticmethod
    def _entry(path: str, data: bytes) -> dict:
        entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        if path.endswith(LARGE):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry


@contextmanager
def serving(double: HubDouble) -> Iterator[HubDouble]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            if double.down:
                self._send(503, b"", {}, body)
            elif found := re.fullmatch(rf"/{double.repo}/resolve/([^/]+)/(.+)", path):
                self._file(found[2], found[1] if len(found[1]) == 40 else COMMIT, body)
            elif re.fullmatch(rf"/api/models/{double.repo}/tree/[^/]+", path):
                double.requests.append((self.command, path, None))
                self._send(200, json.dumps(double.listing()).encode(), {"Content-Type": "application/json"}, body)
            elif re.fullmatch(rf"/api/models/{double.repo}(/revision/.+)?", path):
                double.requests.append((self.command, path, None))
                answer = {"id": double.repo, "sha": COMMIT, "siblings": [], "tags": [], "private": False}
                self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, body)
            else:
                double.requests.append((self.command, path, None))
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

        def _file(self, path: str, commit: str, body: bool) -> None:
            wanted = self.headers.get("Range")
            double.requests.append((self.command, path, wanted))
            if path not in double.files:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
                return
            promised = double.files[path]
            data = double.served.get(path, promised)
            entry = double._entry(path, promised)
            etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
            headers = {
                "ETag": f'"{etag}"',
                "X-Linked-ETag": f'"{etag}"',
                "X-Linked-Size": str(len(promised)),
                "X-Repo-Commit": commit,
            }
            status = 200
            if wanted and body and not double.ignore_range:
                start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                data, status = data[start:], 206
            cuts = double.cut.get(path)
            self._send(status, data, headers, body, stop=cuts.pop(0) if body and cuts else None)

        def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool, stop: int | None = None) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data[:stop])
            if stop is not None:  # the connection ends before the promised length
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    double.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield double
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
