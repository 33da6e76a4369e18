"""An encoder that hangs: cancel, stop and the deadline end it, and nothing of it is left."""

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import pytest
from PIL import Image

from i2v import ffmpeg
from i2v.jobs import publisher
from i2v.video import write_video
from tests.jobs.job_doubles import DEADLINE_S, SMALL, MakeQueue, final, until

FAULT = pytest.mark.fault(
    "F20", "an encoder that hangs", before="cancel unanswered after 30 s, SIGTERM after 100 s, the encoder runs on"
)


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ffmpeg is a wrapper whose child never ends. The file that both write their process ids to."""
    pids, script = tmp_path / "pids", tmp_path / "ffmpeg"
    script.write_text(f'#!/bin/sh\nsleep 100000 & echo $$ $! > "{pids}.part"; mv "{pids}.part" "{pids}"; wait\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(script))
    return pids


def runs(pid: int) -> bool:
    """A zombie does not run, but a child of ours that is one was not waited for."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return state[0] != "Z" or int(state[1]) == os.getpid()


def gone(pids: Path) -> bool:
    """True too where the wrapper was ended before it had written down whom it started."""
    return not pids.exists() or not any(runs(int(pid)) for pid in pids.read_text().split())


@FAULT
def test_a_cancel_ends_an_encoder_that_hangs(
    make_queue: MakeQueue, hanging: Path, outputs: Path, dot: Image.Image, record_property: Callable[[str, str], None]
) -> None:
    queue = make_queue(write_video=write_video)
    job = queue.submit(SMALL, dot, door="videos")
    until(hanging.exists)
    assert queue.cancel(job.id).status == "cancelled"
    until(lambda: gone(hanging))
    assert not [path for path in outputs.iterdir() if path.suffix in (".part", ".mp4", ".json")]
    record_property("after", f"cancelled within {ffmpeg.LOOK_S} s of looks, no process left")


@FAULT
def test_an_encoder_that_does_nothing_fails_its_job_alone(
    make_queue: MakeQueue,
    hanging: Path,
    dot: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, str], None],
) -> None:
    limit = ffmpeg.STALL_S
    monkeypatch.setattr(ffmpeg, "STALL_S", 0.5)
    queue = make_queue(write_video=write_video)
    job = queue.submit(SMALL, dot, door="videos")
    ended = final(queue, job)
    assert (ended.status, ended.error_code) == ("failed", "generation_failed")
    assert "no progress" in str(ended.error_message)
    until(lambda: gone(hanging))  # a killed process takes a turn of its own to end
    monkeypatch.undo()
    assert final(queue, queue.submit(SMALL, dot, door="videos")).status == "completed"
    record_property("after", f"without progress for {limit:.0f} s the job fails; the next one completes")


@FAULT
def test_a_stop_ends_an_encoder_that_hangs_and_keeps_the_job(
    make_queue: MakeQueue,
    hanging: Path,
    dot: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, str], None],
) -> None:
    longest = publisher.WRITE_S
    monkeypatch.setattr(publisher, "WRITE_S", 0.2)
    queue = make_queue(write_video=write_video)
    job = queue.submit(SMALL, dot, door="videos")
    until(hanging.exists)
    queue.stop(1.0)
    assert queue._parts is None, "the stop came to its end, with the table closed and the folder free"
    until(lambda: gone(hanging))  # a killed process takes a turn of its own to end
    monkeypatch.undo()
    again = make_queue(write_video=write_video)
    ended = again.wait_sync(job.id, DEADLINE_S)
    assert (ended.status, ended.attempt) == ("completed", 1)
    record_property("after", f"a stop waits {longest:.0f} s at most, then the job goes back without losing an attempt")


def test_what_runs_at_a_forced_end_is_killed(hanging: Path) -> None:
    """The second signal ends the process at once; its encoder would go on alone."""

    def wait() -> None:
        if hanging.exists():
            ffmpeg.kill_all()
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        ffmpeg.run([imageio_ffmpeg.get_ffmpeg_exe()], on_wait=wait)
    until(lambda: gone(hanging))  # a killed process takes a turn of its own to end
    assert not ffmpeg._running


def test_a_wrapper_whose_child_works_makes_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's time counts while it runs: a wrapper that waits for it uses none of its own."""
    monkeypatch.setattr(ffmpeg, "STALL_S", 3.0)
    work = "import time\nend = time.monotonic() + 5\nwhile time.monotonic() < end: pass"
    (tmp_path / "work.py").write_text(work)
    done = ffmpeg.run(["/bin/sh", "-c", f'"{sys.executable}" "{tmp_path}/work.py"; echo done'])
    assert done.stdout == b"done\n"
