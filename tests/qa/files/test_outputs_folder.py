"""The outputs folder of a real server, asked for by someone who tries every spelling."""

import json
import os
from itertools import product

import pytest

from tests.qa.live_server import parse_head

NAME = "video_20260101_000000_abcdef.mp4"
SECRET = b"top secret"


@pytest.fixture(scope="module")
def folder(server):
    (server.outputs.parent / "secret.mp4").write_bytes(SECRET)
    (server.outputs / NAME).write_bytes(bytes(1000))
    (server.outputs / "video_20260101_000000_linked.mp4").symlink_to(server.outputs.parent / "secret.mp4")
    os.mkfifo(server.outputs / "video_20260101_000000_fifofo.mp4")
    (server.outputs / "video_20260101_000000_folder.mp4").mkdir()
    yield server.outputs
    for name in ("linked", "fifofo"):
        (server.outputs / f"video_20260101_000000_{name}.mp4").unlink()
    (server.outputs / "video_20260101_000000_folder.mp4").rmdir()


def get(server, target: str) -> tuple[int, dict[str, str], bytes]:
    """GET a target exactly as it is written."""
    answer = server.raw(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    return *parse_head(head), body


UP = ["..", "%2e%2e", ".%2e", "%2E.", "..%00", "..;", "%252e%252e", "%c0%ae%c0%ae", "%uff0e%uff0e", "..%5c..", "..\\.."]


@pytest.mark.parametrize("up", UP)
def test_no_way_leads_out_of_the_folder(healthy, folder, up, subtests):
    tails = ("secret.mp4", "jobs.sqlite3", "etc/passwd", f"outputs/{NAME}")
    for slash, tail in product(("/", "%2f", "//", "%5c", "/./"), tails):
        with subtests.test(slash + tail):
            status, _, body = get(healthy, f"/outputs/{up}{slash}{tail}")
            assert status in (400, 404)
            assert SECRET not in body
            assert b"SQLite" not in body
            assert json.loads(body)["error"]


NOT_SERVED = [
    "video_20260101_000000_linked.mp4",
    "video_20260101_000000_fifofo.mp4",
    "video_20260101_000000_folder.mp4",
    "jobs.sqlite3",
    "jobs.sqlite3-wal",
    ".",
    "",
    "*.mp4",
    f"{NAME}/",
    f"{NAME}%20",
    f"{NAME}%0d%0aX-Evil:%20yes",
]


def test_only_finished_videos_are_served(healthy, folder, subtests):
    for name in NOT_SERVED:
        with subtests.test(name):
            status, headers, body = get(healthy, f"/outputs/{name}")
            assert status == 404
            assert SECRET not in body
            assert "x-evil" not in headers


def test_a_file_cut_short_while_it_is_served_ends_the_connection_and_nothing_else(healthy, folder):
    path = folder / "video_20260101_000000_shrink.mp4"
    path.write_bytes(bytes(30_000_000))
    with healthy.connect(timeout=5) as connection:
        connection.sendall(f"GET /outputs/{path.name} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        received = len(connection.recv(1000))
        os.truncate(path, 1000)
        while piece := connection.recv(1_000_000):
            received += len(piece)
    path.unlink()
    assert received < 30_000_000
    assert "Traceback" not in healthy.log


def test_every_video_carries_the_fixed_headers(healthy, folder):
    status, headers, _ = get(healthy, f"/outputs/{NAME}")
    assert status == 200
    assert headers["content-type"] == "video/mp4"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-disposition"] == f'inline; filename="{NAME}"'
