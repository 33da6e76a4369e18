"""Frames in, a complete MP4 out or nothing at all; settings and frames back."""

import errno
import io
import os
import re
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from i2v import video
from i2v.errors import GenerationFailed, InvalidRequest, StorageFull
from i2v.images import fit_image

Frames = np.ndarray
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


@pytest.fixture
def clip(photo: Image.Image) -> Frames:
    """Eight 256x256 frames of a photo that moves to the right."""
    picture = np.asarray(fit_image(photo, 256, 256)[0])
    return np.stack([np.roll(picture, 4 * index, axis=1) for index in range(8)])


def psnr(one: Frames, other: Frames) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((one.astype(float) - other.astype(float)) ** 2))))


def failing_ffmpeg(folder: Path, complaint: str, code: int) -> str:
    """A stand-in for ffmpeg that leaves half a file behind, complains and exits."""
    script = folder / "ffmpeg"
    script.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "if sys.argv[-1].startswith('file:'):\n"
        "    open(sys.argv[-1].removeprefix('file:'), 'wb').write(b'half a file')\n"
        "sys.stdin.buffer.read()\n"
        f"print({complaint!r}, file=sys.stderr)\n"
        f"sys.exit({code})\n"
    )
    script.chmod(0o755)
    return str(script)


def test_a_written_video_has_the_frames_size_and_rate_asked_for(clip: Frames, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    video.write_video(clip, path, fps=8, metadata={})
    assert video.probe(path) == video.VideoFacts(8, 8.0, 256, 256, "h264", "yuv420p")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize("fps", [1, 4, 7, 8, 24, 30, 60])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_any_count_and_rate_come_out_exactly(count: int, fps: int, tmp_path: Path) -> None:
    frames = np.random.default_rng(fps).integers(0, 256, (count, 64, 64, 3), np.uint8)
    video.write_video(frames, tmp_path / "a.mp4", fps=fps, metadata={})
    facts = video.probe(tmp_path / "a.mp4")
    assert (facts.frames, facts.fps) == (count, fps)
    assert video.read_frames(tmp_path / "a.mp4").shape == frames.shape


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
def test_the_colours_of_a_photo_come_back(name: str, tmp_path: Path) -> None:
    """Without the explicit matrix swscale used BT.601 while players assume BT.709: green and red were off."""
    image = Image.open(Path(__file__).parent / "assets" / f"{name}.jpg").convert("RGB")
    picture = np.asarray(fit_image(image, 512, 512)[0])
    path = tmp_path / "a.mp4"
    video.write_video(np.repeat(picture[None], 8, axis=0), path, fps=8, metadata={})
    decoded = video.read_frames(path)
    assert psnr(decoded[0], picture) > 35
    assert psnr(decoded[-1], picture) > 35
    assert np.abs(decoded[0].astype(float).mean((0, 1)) - picture.astype(float).mean((0, 1))).max() < 1
    # Another decoder that is told nothing must find the same colours through the tags alone.
    plain = subprocess.run(
        [FFMPEG, "-v", "error", "-i", path, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        capture_output=True,
        check=True,
    ).stdout
    assert psnr(np.frombuffer(plain, np.uint8).reshape(512, 512, 3), picture) > 35


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255), (128, 128, 128)])
def test_flat_colours_come_back_within_three_steps(colour: tuple[int, int, int], tmp_path: Path) -> None:
    frames = np.full((4, 64, 64, 3), colour, np.uint8)
    video.write_video(frames, tmp_path / "a.mp4", fps=8, metadata={})
    assert np.abs(video.read_frames(tmp_path / "a.mp4").astype(int) - colour).max() <= 3


def test_a_browser_can_begin_before_the_file_has_arrived(clip: Frames, tmp_path: Path) -> None:
    """faststart: the index (moov) lies before the pictures (mdat); and every colour tag is set."""
    path = tmp_path / "a.mp4"
    video.write_video(clip, path, fps=8, metadata={})
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    said = subprocess.run([FFMPEG, "-hide_banner", "-i", path], capture_output=True, text=True, check=False).stderr
    assert "yuv420p(tv, bt709, progressive)" in said


def test_the_frames_keep_their_order(tmp_path: Path) -> None:
    frames = np.stack([np.full((64, 64, 3), 20 * index + 10, np.uint8) for index in range(12)])
    video.write_video(frames, tmp_path / "a.mp4", fps=12, metadata={})
    means = video.read_frames(tmp_path / "a.mp4").mean(axis=(1, 2, 3))
    assert np.abs(means - (20 * np.arange(12) + 10)).max() < 3


def test_odd_sizes_gain_one_repeated_row_and_column(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 33, 65, 3), np.uint8)
    video.write_video(frames, tmp_path / "a.mp4", fps=8, metadata={})
    facts = video.probe(tmp_path / "a.mp4")
    assert (facts.width, facts.height) == (66, 34)


SETTINGS = {
    "prompt": "日落; a=b #c \\ \n\r\t \"q\" 'x' 👩‍👩‍👧 comment=evil\ntitle=evil [STREAM]",
    "seed": "9007199254740991",
    "negative_prompt": "",
    "guidance_scale": "7.5",
}


def test_the_settings_come_back_from_the_file(clip: Frames, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    video.write_video(clip, path, fps=8, metadata=SETTINGS)
    assert video.read_metadata(path) == SETTINGS
    said = subprocess.run([FFMPEG, "-hide_banner", "-i", path], capture_output=True, text=True, check=False).stderr
    assert re.search(r"^\s+comment\s+: \{\"prompt\": \"日落", said, re.MULTILINE)  # where ffprobe and players show it
    assert "title" not in [line.split(":")[0].strip() for line in said.splitlines()]


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=6))
@pytest.mark.slow
def test_any_settings_come_back(tmp_path_factory: pytest.TempPathFactory, stored: dict[str, str]) -> None:
    path = tmp_path_factory.mktemp("v") / "a.mp4"
    video.write_video(np.zeros((1, 16, 16, 3), np.uint8), path, fps=8, metadata=stored)
    assert video.read_metadata(path) == stored


def test_the_prompt_is_not_in_the_process_list(clip: Frames, tmp_path: Path) -> None:
    (tmp_path / "ffmpeg").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {tmp_path}/argv\nexec {FFMPEG} "$@"\n')
    (tmp_path / "ffmpeg").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "ffmpeg"))
        video.write_video(clip, tmp_path / "a.mp4", fps=8, metadata={"prompt": "a secret wish"})
    assert "secret" not in (tmp_path / "argv").read_text()
    assert video.read_metadata(tmp_path / "a.mp4") == {"prompt": "a secret wish"}


def test_a_video_made_elsewhere_has_no_settings(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    make = [FFMPEG, "-v", "error", "-f", "lavfi", "-i", "testsrc=d=0.5:s=64x64:r=10", "-pix_fmt", "yuv420p"]
    subprocess.run([*make, "-metadata", "comment=not json", path], check=True)
    assert video.read_metadata(path) == {}
    assert video.probe(path).frames == 5


def test_too_much_metadata_is_refused_before_anything_runs(clip: Frames, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most 60000"):
        video.write_video(clip, tmp_path / "a.mp4", fps=8, metadata={"prompt": "x" * 70_000})
    assert os.listdir(tmp_path) == []


def test_the_points_are_called_in_order_and_the_name_appears_last(clip: Frames, tmp_path: Path) -> None:
    seen = []

    def on_point(point: str) -> None:
        if point == "writing":  # now and then, while ffmpeg runs
            return
        (part,) = os.listdir(tmp_path)
        seen.append((point, re.sub(r"\.[0-9a-f]{8}\.", ".nonce.", part)))

    video.write_video(clip, tmp_path / "a.mp4", fps=8, metadata={}, on_point=on_point)
    assert seen == [("encoded", "a.nonce.part"), ("fsynced", "a.nonce.part"), ("renamed", "a.mp4")]


@pytest.mark.parametrize("at", ["encoded", "fsynced"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_at_any_point_is_storage_full_and_leaves_nothing(
    clip: Frames, tmp_path: Path, at: str, number: int
) -> None:
    def on_point(point: str) -> None:
        if point == at:
            raise OSError(number, os.strerror(number))

    with pytest.raises(StorageFull):
        video.write_video(clip, tmp_path / "a.mp4", fps=8, metadata={}, on_point=on_point)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("code", [0, 1])
def test_an_encoder_that_meets_a_full_disk_is_storage_full_and_leaves_nothing(
    clip: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """ffmpeg exits with 0 after some write errors at the end of a file; its words count as well."""
    complaint = "[out#0/mp4 @ 0x5] Error writing trailer: No space left on device"
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", failing_ffmpeg(tmp_path, complaint, code))
    with pytest.raises(StorageFull) as caught:
        video.write_video(clip, tmp_path / "out" / "a.mp4", fps=8, metadata={})
    assert str(tmp_path) not in caught.value.message
    assert os.listdir(tmp_path / "out") == []


def test_an_encoder_that_fails_is_generation_failed_and_leaves_nothing(
    clip: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", failing_ffmpeg(tmp_path, f"odd thing in {tmp_path}", 1))
    with pytest.raises(GenerationFailed) as caught:
        video.write_video(clip, tmp_path / "out" / "a.mp4", fps=8, metadata={})
    assert str(tmp_path) not in caught.value.message
    assert os.listdir(tmp_path / "out") == []


def test_a_file_that_does_not_decode_is_never_published(
    clip: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", failing_ffmpeg(tmp_path, "", 0))
    with pytest.raises(GenerationFailed, match="cannot be decoded"):
        video.write_video(clip, tmp_path / "out" / "a.mp4", fps=8, metadata={})
    assert os.listdir(tmp_path / "out") == []


def test_a_file_with_a_frame_missing_is_never_published(clip: Frames, tmp_path: Path) -> None:
    def drop_a_frame(point: str) -> None:
        if point == "encoded":
            (part,) = tmp_path.glob("*.part")
            video.write_video(clip[:-1], tmp_path / "short.mp4", fps=8, metadata={})
            (tmp_path / "short.mp4").replace(part)

    with pytest.raises(GenerationFailed, match="frames=7"):
        video.write_video(clip, tmp_path / "a.mp4", fps=8, metadata={}, on_point=drop_a_frame)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("at", ["encoded", "fsynced"])
def test_any_failure_removes_the_part_and_keeps_its_own_name(clip: Frames, tmp_path: Path, at: str) -> None:
    def on_point(point: str) -> None:
        if point == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        video.write_video(clip, tmp_path / "a.mp4", fps=8, metadata={}, on_point=on_point)
    assert os.listdir(tmp_path) == []


def test_a_folder_in_the_place_of_the_video_is_an_error_and_stays(clip: Frames, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(GenerationFailed, match="could not be stored"):
        video.write_video(clip, tmp_path / "a.mp4", fps=8, metadata={})
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_a_folder_that_was_deleted_is_made_again(clip: Frames, tmp_path: Path) -> None:
    path = tmp_path / "gone" / "a.mp4"
    video.write_video(clip, path, fps=8, metadata={})
    assert video.probe(path).frames == 8
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o755 == 0o755


def test_writers_of_one_name_do_not_disturb_each_other(tmp_path: Path) -> None:
    counts = range(1, 5)
    clips = [np.zeros((count, 32, 32, 3), np.uint8) for count in counts]
    write = lambda frames: video.write_video(frames, tmp_path / "a.mp4", fps=8, metadata={})  # noqa: E731
    threads = [threading.Thread(target=write, args=(frames,)) for frames in clips]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert video.probe(tmp_path / "a.mp4").frames in counts
    assert os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_frames_of_another_form_are_refused(frames: Frames, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(str(frames.shape))):
        video.write_video(frames, tmp_path / "a.mp4", fps=8, metadata={})


@pytest.mark.parametrize(
    "junk", [b"", b"no video", b"\0\0\0\x18ftypisom" + bytes(100), b"#EXTM3U\nhttp://127.0.0.1/x\n"]
)
@pytest.mark.parametrize("reader", [video.probe, video.read_frames, video.read_metadata])
def test_what_is_no_video_is_refused_by_every_reader(reader, junk: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(junk)
    with pytest.raises(InvalidRequest, match="not a readable MP4") as caught:
        reader(tmp_path / "a.mp4")
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("reader", [video.probe, video.read_frames, video.read_metadata])
def test_a_video_that_is_missing_is_refused_by_every_reader(reader, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        reader(tmp_path / "none.mp4")


def test_a_truncated_video_is_refused(clip: Frames, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    video.write_video(clip, path, fps=8, metadata={})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InvalidRequest):
        video.probe(path)


def test_at_most_as_many_frames_are_read_as_asked(clip: Frames, tmp_path: Path) -> None:
    video.write_video(clip, tmp_path / "a.mp4", fps=8, metadata={})
    assert len(video.read_frames(tmp_path / "a.mp4", max_frames=3)) == 3


def test_names_begin_with_the_time_and_do_not_collide() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    names = {video.new_file_name(now) for _ in range(2000)}
    assert len(names) == 2000
    assert all(re.fullmatch(r"video_20260102_030405_[a-z0-9]{6}\.mp4", name) for name in names)


def test_the_thumbnail_is_the_middle_frame(clip: Frames) -> None:
    picture = Image.open(io.BytesIO(video.thumbnail(clip)))
    assert (picture.format, picture.size) == ("JPEG", (256, 256))
    assert psnr(np.asarray(picture), clip[4]) > 30
    assert Image.open(io.BytesIO(video.thumbnail(clip, side=64))).size == (64, 64)


def test_the_sprite_sheet_shows_every_frame_in_order() -> None:
    frames = np.stack([np.full((40, 80, 3), 30 * index, np.uint8) for index in range(8)])
    sheet = Image.open(io.BytesIO(video.spritesheet(frames)))
    assert sheet.size == (3 * 80, 3 * 40)
    cells = np.asarray(sheet).astype(int)[20::40, 40::80, 0].ravel()
    assert np.abs(cells[:8] - 30 * np.arange(8)).max() <= 2
    assert cells[8] == 0


@pytest.mark.parametrize(("kind", "encode"), [("GIF", video.gif), ("WEBP", video.webp)])
@pytest.mark.parametrize("fps", [4, 8, 12, 24])
def test_animations_hold_every_frame_and_last_as_long_as_the_video(kind: str, encode, fps: int, clip: Frames) -> None:
    animation = Image.open(io.BytesIO(encode(clip, fps)))
    assert (animation.format, animation.n_frames, animation.size) == (kind, 8, (256, 256))
    assert animation.info["loop"] == 0
    total, worst = 0, 100.0
    for index in range(8):
        animation.seek(index)
        shown = np.asarray(animation.convert("RGB"))
        total += animation.info["duration"]
        worst = min(worst, psnr(shown, clip[index]))
    assert total == pytest.approx(8000 / fps, abs=5)
    assert worst > 25
