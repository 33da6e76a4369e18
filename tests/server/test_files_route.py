"""`/outputs/{file}`: finished videos with ranges, and nothing else of the folder."""

import json
import os
from pathlib import Path
from urllib.parse import unquote

import pytest

from i2v.server.files import parse_range

NAME = "video_20260101_000000_abcdef.mp4"
DATA = bytes(range(256)) * 4


@pytest.fixture
def video(settings, app) -> Path:
    path = settings.outputs / NAME
    path.write_bytes(DATA)
    return path


async def test_a_video_is_served_whole_with_a_fixed_type_and_disposition(client, video):
    answer = await client.get(f"/outputs/{NAME}")
    assert answer.status_code == 200
    assert answer.content == DATA
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["content-disposition"] == f'inline; filename="{NAME}"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["accept-ranges"] == "bytes"


async def test_head_gives_the_same_headers_and_no_body(client, video):
    answer = await client.head(f"/outputs/{NAME}")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(DATA))


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=1000-", 1000, 1024),
        ("bytes=1000-99999", 1000, 1024),
        ("bytes=-24", 1000, 1024),
        ("bytes=-99999", 0, 1024),
        ("bytes=1023-1023", 1023, 1024),
    ],
)
async def test_a_range_gives_that_part(client, video, header, start, end):
    answer = await client.get(f"/outputs/{NAME}", headers={"range": header})
    assert answer.status_code == 206
    assert answer.content == DATA[start:end]
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/1024"
    assert answer.headers["content-length"] == str(end - start)


@pytest.mark.parametrize("header", ["bytes=1024-", "bytes=9999-10000", "bytes=-0", f"bytes={'9' * 18}-"])
async def test_a_range_beyond_the_end_is_a_416(client, video, header):
    answer = await client.get(f"/outputs/{NAME}", headers={"range": header})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == "bytes */1024"
    assert answer.json()["error"]


NO_RANGES = ["", "bytes", "bytes=", "bytes=-", "bytes=5-2", "bytes=a-b", "lines=0-1", "bytes=0-1,3-4"]


@pytest.mark.parametrize("header", [*NO_RANGES, "bytes=" + "9" * 5000])
async def test_a_range_that_is_none_gives_the_whole(client, video, header):
    answer = await client.get(f"/outputs/{NAME}", headers={"range": header})
    assert (answer.status_code, answer.content) == (200, DATA)


async def test_conditions_are_honoured(client, video):
    etag = (await client.get(f"/outputs/{NAME}")).headers["etag"]
    for condition in (etag, f'"x", {etag}', f"W/{etag}", "*"):
        assert (await client.get(f"/outputs/{NAME}", headers={"if-none-match": condition})).status_code == 304
    assert (await client.get(f"/outputs/{NAME}", headers={"if-none-match": '"x"'})).status_code == 200
    part = {"range": "bytes=0-9"}
    assert (await client.get(f"/outputs/{NAME}", headers={**part, "if-range": etag})).status_code == 206
    assert (await client.get(f"/outputs/{NAME}", headers={**part, "if-range": '"old"'})).status_code == 200


async def test_a_replaced_file_has_another_tag(client, video):
    before = (await client.get(f"/outputs/{NAME}")).headers["etag"]
    video.unlink()
    video.write_bytes(DATA[::-1])
    assert (await client.get(f"/outputs/{NAME}")).headers["etag"] != before


OTHER_NAMES = [
    "",
    ".",
    "..",
    "jobs.sqlite3",
    "jobs.sqlite3-wal",
    "video_20260101_000000_abcdef.json",
    "video_20260101_000000_abcdef.mp4.part",
    "video_20260101_000000_abcdef.12345678.part",
    "VIDEO_20260101_000000_abcdef.mp4",
    "video_20260101_000000_abcdef.mp4/",
    "video_20260101_000000_abcdef.mp4%00",
    "video_20260101_000000_abcdef.mp4%0a",
    "video_٢٠٢٦٠١٠١_000000_abcdef.mp4",
    "../outputs/" + NAME,
    "..%2foutputs%2f" + NAME,
    "%2e%2e/outputs/" + NAME,
    "%252e%252e%252f" + NAME,
    "..%5c" + NAME,
    "....//" + NAME,
    "/etc/passwd",
    "//etc/passwd",
    "%2fetc%2fpasswd",
    "x/../" + NAME,
    "x" * 10_000,
]


@pytest.mark.parametrize("name", OTHER_NAMES, ids=lambda name: name[:40])
async def test_nothing_else_of_the_folder_or_the_disk_is_served(app, video, settings, name):
    for other in ("video_20260101_000000_abcdef.json", "video_20260101_000000_abcdef.mp4.part"):
        (settings.outputs / other).write_bytes(DATA)
    status, body = await get_as_written(app, f"/outputs/{name}")
    assert status == 404
    assert json.loads(body)["error"]
    assert str(settings.outputs) not in body


async def get_as_written(app, path):
    """GET a path as a client that resolves no dots sends it; the server unquotes it once."""
    messages = []
    scope = {"type": "http", "method": "GET", "path": unquote(path), "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": [(b"host", b"127.0.0.1")], "server": ("127.0.0.1", 7860), "client": ("127.0.0.1", 1)}
    scope |= {"scheme": "http", "http_version": "1.1", "asgi": {"version": "3.0"}}

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        messages.append(message)

    await app(scope, receive, send)
    return messages[0]["status"], b"".join(message.get("body", b"") for message in messages).decode()


async def test_a_link_is_not_followed(client, video, settings, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    video.unlink()
    video.symlink_to(secret)
    answer = await client.get(f"/outputs/{NAME}")
    assert answer.status_code == 404
    assert b"secret" not in answer.content


async def test_a_pipe_or_a_folder_of_that_name_is_not_found(client, video):
    video.unlink()
    os.mkfifo(video)
    assert (await client.get(f"/outputs/{NAME}")).status_code == 404
    video.unlink()
    video.mkdir()
    assert (await client.get(f"/outputs/{NAME}")).status_code == 404


def times_open(video: Path) -> int:
    """How many descriptors of this process are of the video."""
    links = Path("/proc/self/fd").iterdir()
    return [link.readlink() for link in links if link.is_symlink()].count(video)


async def test_no_descriptor_is_left_open(client, video):
    with video.open("rb"):
        assert times_open(video) == 1
    for headers in ({}, {"range": "bytes=0-0"}, {"range": "bytes=9999-"}, {"if-none-match": "*"}, {"if-match": '"b"'}):
        await client.get(f"/outputs/{NAME}", headers=headers)
        await client.head(f"/outputs/{NAME}", headers=headers)
    assert times_open(video) == 0


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_files_are_only_read(client, video, method):
    answer = await client.request(method, f"/outputs/{NAME}")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD"


def test_an_empty_file_has_no_range():
    assert parse_range("bytes=0-", 0) == (0, 0)
    assert parse_range("bytes=-1", 0) == (0, 0)
