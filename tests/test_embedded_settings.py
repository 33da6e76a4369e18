"""Settings that an MP4 carries, written by a stranger: every reader of them refuses what is not ours."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import imageio_ffmpeg
import numpy as np
import pytest

from i2v import video
from i2v.cli import inputs
from i2v.engine.fake import FakeEngine
from i2v.errors import InvalidRequest
from i2v.jobs.queue import JobQueue
from i2v.mutex import GpuMutex
from i2v.request import GenerateRequest
from i2v.server.app import create_app
from i2v.settings import Settings
from i2v.ui.history import settings_of
from i2v.ui.texts import PageRefusal, Say

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def with_comment(source: Path, path: Path, comment: str) -> Path:
    """A copy of an MP4 with another comment, packed by hand: a box may hold what no tool would write."""
    plain = path.with_suffix(".meta")
    escaped = re.sub(r"([=;#\\\n])", r"\\\1", comment)
    plain.write_bytes(f";FFMETADATA1\ncomment={escaped}\n".encode("utf-8", "surrogatepass"))
    join = [
        FFMPEG,
        "-v",
        "error",
        "-y",
        "-i",
        source,
        "-f",
        "ffmetadata",
        "-i",
        plain,
        "-map_metadata",
        "1",
        "-c",
        "copy",
    ]
    subprocess.run([*join, path], check=True)
    return path


REQUEST = json.dumps({"prompt": "x", "width": 64, "height": 64})
HOSTILE = {
    "brackets": "[" * 100_000,
    "braces": '{"a":' * 50_000,
    "deep job": json.dumps({"job": "x"})[:-1] + ', "request": ' + "[" * 900 + "]" * 900 + "}",
    "huge number": '{"job": ' + "9" * 5000 + "}",
    "number for a text": '{"job": 1e999, "request": 7, "prompt": null}',
    "NaN": '{"job": NaN}',
    "NUL": json.dumps({"job": "video_\0", "request": "\0"}),
    "half a surrogate": '{"job": "\\ud800", "request": "\\udfff"}',
    "a list": "[1, 2]",
    "a text": '"video"',
    "nothing": "",
    "ten megabytes": json.dumps({"job": "x" * 10_000_000}),
    "deep request": json.dumps({"job": "x", "request": "[" * 20_000}),
    "request of wrong types": json.dumps({"job": "x", "request": '{"prompt": [], "steps": "many", "seed": NaN}'}),
    "request with a huge number": json.dumps({"job": "x", "request": '{"prompt": "x", "seed": ' + "9" * 5000 + "}"}),
    "forged words of ffmpeg": "Stream #0:0: Video: h264, yuv420p, 1.2.3 fps",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """MP4 files whose comments no server of ours wrote."""
    folder = tmp_path_factory.mktemp("hostile")
    video.write_video(np.zeros((4, 64, 64, 3), np.uint8), folder / "plain.mp4", fps=8, metadata={})
    return {
        name: with_comment(folder / "plain.mp4", folder / f"{number}.mp4", comment)
        for number, (name, comment) in enumerate(HOSTILE.items())
    }


@pytest.mark.fault(
    "F11", "an MP4 whose comment is 100,000 brackets, and 15 relatives", before="500 at extensions and at restore"
)
async def test_settings_that_a_stranger_wrote_into_a_video_are_refused_by_every_reader(
    hostile: dict[str, Path], tmp_path: Path, record_property: Callable[[str, str], None]
) -> None:
    settings = Settings(outputs=tmp_path / "outputs", model="fake", ui=False, min_free_mb=0)
    queue = JobQueue(settings)
    queue.attach(FakeEngine(), GpuMutex())
    app = create_app(settings, queue)
    told = set()
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7860", timeout=60) as client:
            for name, path in hostile.items():
                form = {"data": {"prompt": "more", "seconds": "1"}, "files": {"video": ("v.mp4", path.read_bytes())}}
                answer = await client.post("/v1/videos/extensions", **form)
                assert answer.status_code in (404, 422), (name, answer.text)  # 404: a text that names no video here
                told.add(answer.status_code)
    for name, path in hostile.items():
        with pytest.raises(PageRefusal):
            settings_of({"path": str(path)}, Say("en"))
        with pytest.raises(InvalidRequest):
            inputs.read_settings(path)
        try:
            facts = inputs.describe_video(path)
        except InvalidRequest:
            assert name == "forged words of ffmpeg"
        else:
            json.dumps(facts, allow_nan=False).encode()
    record_property(
        "after", f"{len(hostile)} files: {sorted(told)} at extensions, refused at restore, shown by inspect"
    )


def test_settings_of_ours_are_flat_and_read_back_whole(tmp_path: Path) -> None:
    kept = {"job": "video_1", "request": REQUEST, "prompt": "a = b; # c \\ d\nsecond line"}
    video.write_video(np.zeros((4, 64, 64, 3), np.uint8), tmp_path / "a.mp4", fps=8, metadata=kept)
    assert video.read_metadata(tmp_path / "a.mp4") == kept
    assert video.read_flat(REQUEST) == json.loads(REQUEST)
    assert all(not isinstance(value, dict | list) for value in GenerateRequest(prompt="x").model_dump().values())
