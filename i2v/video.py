"""uint8 frames -> a verified MP4 that appears under its name only when complete; and frames, settings, facts back.

H.264 by the ffmpeg binary that imageio-ffmpeg ships, pictures by Pillow. Knows nothing of jobs, HTTP or tensors.
Called by the worker after the GPU mutex is released, by the routes for thumbnails, and by `i2v inspect`.
"""

import errno
import io
import json
import logging
import os
import re
import secrets
import string
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from i2v import ffmpeg
from i2v.errors import GenerationFailed, I2VError, InvalidRequest, StorageFull

log = logging.getLogger(__name__)

CRF = 18  # a photo comes back at about 44 dB; 512x512 x 16 frames is about 100 kB
MAX_METADATA = 60_000  # bytes: what a pipe holds before its reader has started, less a margin
MAX_READ_FRAMES = 1024
_FULL = {errno.ENOSPC, errno.EDQUOT}

# RGB is full range; without the explicit matrix swscale would use BT.601 and every player would show other colours.
_TO_YUV = (
    "scale=in_range=pc:out_range=tv:out_color_matrix=bt709:flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp,"
    "format=yuv420p,setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709"
)
_TO_RGB = "scale=in_color_matrix=bt709:in_range=tv:out_range=pc:flags=bicubic+accurate_rnd+full_chroma_int"

OnPoint = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What a decoded file holds. `fps` frames a second, `pix_fmt` ffmpeg's name of the pixel format."""

    frames: int
    fps: float
    width: int
    height: int
    codec: str
    pix_fmt: str


def new_file_name(now: datetime) -> str:
    """`video_YYYYMMDD_HHMMSS_<6 of a-z0-9>.mp4`: a second is not unique, two thousand million suffixes are."""
    suffix = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(6))
    return f"video_{now:%Y%m%d_%H%M%S}_{suffix}.mp4"


def write_video(
    frames: NDArray[np.uint8],
    path: Path,
    *,
    fps: int,
    metadata: dict[str, str],
    on_point: OnPoint | None = None,
) -> None:
    """Write `frames` (F, H, W, 3) RGB as H.264 yuv420p MP4 with faststart, `fps` frames a second, mode 0644.

    The file is written as `<stem>.<nonce>.part` beside `path`, decoded again (codec, frame count, size, rate), flushed
    to the disk and renamed, so `path` is complete whenever it exists; the part is removed on any failure. `metadata`
    goes as JSON into the `comment` tag. Odd sizes gain one repeated row or column: yuv420p holds even ones only.
    `on_point` is called at "encoded", "fsynced" and "renamed", and while ffmpeg runs with "writing" now and then,
    on another thread; what it raises is treated as a failure at that point, and ends ffmpeg.

    Raises `StorageFull` when the disk is full, `GenerationFailed` when the file cannot be encoded, verified or stored.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; they must be uint8 (F, H, W, 3)")
    point = on_point or (lambda _: None)
    part = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        even = _even(frames)
        _encode(even, part, fps, metadata, lambda: point("writing"))
        point("encoded")
        _verify(part, even, fps, lambda: point("writing"))
        part.chmod(0o644)
        _fsync(part)
        point("fsynced")
        part.replace(path)
        _fsync(path.parent)
        point("renamed")
    except OSError as error:
        raise not_stored(error) from error
    finally:
        part.unlink(missing_ok=True)


def not_stored(error: OSError) -> I2VError:
    """What a job ends with whose video, or what belongs to it, could not be written for this reason."""
    if error.errno in _FULL:
        return StorageFull("the disk is full; the video could not be stored")
    return GenerationFailed(f"the video could not be stored: {error.strerror}")


def probe(path: Path, on_wait: Callable[[], None] | None = None) -> VideoFacts:
    """Decode the whole first video stream and say what it holds. Raises `InvalidRequest` for anything but an MP4.

    `on_wait` is called a few times a second, on another thread; what it raises ends the decoding.
    """
    done = _read(path, "-map", "0:v:0", "-fps_mode", "passthrough", "-f", "framecrc", "-", on_wait=on_wait)
    lines = done.stdout.decode("ascii", "replace").splitlines()
    size = next((line.split(": ")[1] for line in lines if line.startswith("#dimensions 0:")), "")
    stream = re.search(
        r"Stream #0.*?: Video: (\w+).*?, (\w+)\(?.*?, ([\d.]+k?) fps", done.stderr.decode(errors="replace")
    )
    if not size or stream is None:
        raise _unreadable()
    width, height = (int(side) for side in size.split("x"))
    count = sum(1 for line in lines if line and not line.startswith("#"))
    try:
        rate = float(stream[3].removesuffix("k")) * (1000 if stream[3].endswith("k") else 1)
    except ValueError:  # a stranger's comment stands among ffmpeg's words
        raise _unreadable() from None
    return VideoFacts(count, rate, width, height, stream[1], stream[2])


def read_frames(path: Path, *, first: int = 0, max_frames: int = MAX_READ_FRAMES) -> NDArray[np.uint8]:
    """The frames of an MP4 from number `first` on, (F, H, W, 3) uint8 RGB, at most `max_frames`.

    Raises `InvalidRequest` when unreadable.
    """
    kept = f"trim=start_frame={first},{_TO_RGB}"
    output = ("-map", "0:v:0", "-fps_mode", "passthrough", "-frames:v", str(max_frames), "-vf", kept)
    done = _read(path, *output, "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-")
    header = re.match(rb"P6\s(\d+)\s(\d+)\s255\s", done.stdout)
    if header is None:
        raise _unreadable()
    width, height = int(header[1]), int(header[2])
    per_frame = header.end() + width * height * 3
    if len(done.stdout) % per_frame:
        raise _unreadable()
    rows = np.frombuffer(done.stdout, np.uint8).reshape(-1, per_frame)[:, header.end() :]
    return np.ascontiguousarray(rows).reshape(-1, height, width, 3)


def read_metadata(path: Path) -> dict[str, str]:
    """The settings that `write_video` stored; {} for an MP4 without. Raises `InvalidRequest` when unreadable.

    The file may be a stranger's: a longer comment than `write_video` stores, or no flat object of texts, is none.
    """
    text = _read(path, "-f", "ffmetadata", "-").stdout.decode("utf-8", "replace")
    start = re.search(r"^comment=", text, re.MULTILINE)
    if start is None:
        return {}
    # One `key=value` a line; `=`, `;`, `#`, `\` and line ends within a value are escaped by a backslash.
    found = re.match(r"((?:[^\\\n]|\\.)*)\n", text[start.end() : start.end() + 2 * MAX_METADATA], re.DOTALL)
    settings = None if found is None else read_flat(re.sub(r"\\(.)", r"\1", found[1], flags=re.DOTALL))
    return {key: value for key, value in (settings or {}).items() if isinstance(value, str)}


def read_flat(text: str) -> dict[str, str | int | float | bool | None] | None:
    """A JSON object without lists and objects in it, as settings are stored; None for anything else.

    None too for NaN, infinite numbers, and texts that are no Unicode (half a surrogate pair).
    """
    try:
        found = json.loads(text)
        flat = isinstance(found, dict) and not any(isinstance(value, dict | list) for value in found.values())
        if flat:
            json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
        return found if flat else None
    except (ValueError, RecursionError):  # 100,000 brackets, an integer of 5,000 digits, NaN, a lone surrogate
        return None


def thumbnail(frames: NDArray[np.uint8], *, side: int = 512) -> bytes:
    """JPEG of the middle frame, its longer side at most `side` pixels."""
    return _jpeg(_small(frames[len(frames) // 2], side))


def spritesheet(frames: NDArray[np.uint8], *, side: int = 256) -> bytes:
    """JPEG with every frame (longer side at most `side`), left to right, top to bottom, in a near-square grid."""
    pictures = [_small(frame, side) for frame in frames]
    width, height = pictures[0].size
    columns = int(np.ceil(np.sqrt(len(pictures))))
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * width, index // columns * height))
    return _jpeg(sheet)


def gif(frames: NDArray[np.uint8], fps: int, *, side: int = 512) -> bytes:
    """An endless animated GIF. GIF counts in 1/100 s, so single frames differ by one tick and the length is right."""
    pictures = [_small(frame, side) for frame in frames]
    palette = _palette(pictures)
    pictures = [picture.quantize(palette=palette) for picture in pictures]
    ends = [round(100 * (index + 1) / fps) for index in range(len(frames))]
    durations = [10 * (end - start) for start, end in zip([0, *ends], ends, strict=False)]
    return _animation(pictures, "GIF", durations, disposal=1)


def webp(frames: NDArray[np.uint8], fps: int, *, side: int = 512) -> bytes:
    """An endless animated WebP (lossy, quality 80)."""
    ends = [round(1000 * (index + 1) / fps) for index in range(len(frames))]
    durations = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    return _animation([_small(frame, side) for frame in frames], "WEBP", durations, quality=80, method=3)


def _palette(pictures: Sequence[Image.Image]) -> Image.Image:
    """256 colours for the whole clip, from a small sheet of all frames: a palette for each takes 0.7 s a frame."""
    tiles = [picture.resize((32, 32), Image.Resampling.BOX) for picture in pictures]
    sheet = Image.new("RGB", (32, 32 * len(tiles)))
    for index, tile in enumerate(tiles):
        sheet.paste(tile, (0, 32 * index))
    return sheet.quantize(256)


def _animation(pictures: Sequence[Image.Image], kind: str, durations: list[int], **options: int) -> bytes:
    out = io.BytesIO()
    pictures[0].save(out, kind, save_all=True, append_images=pictures[1:], duration=durations, loop=0, **options)
    return out.getvalue()


def _jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=88)
    return out.getvalue()


def _small(frame: NDArray[np.uint8], side: int) -> Image.Image:
    picture = Image.fromarray(frame)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def _even(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(frames)


def _encode(
    frames: NDArray[np.uint8], part: Path, fps: int, metadata: dict[str, str], on_wait: Callable[[], None]
) -> None:
    """Run ffmpeg: frames through stdin, the settings through a pipe (a prompt in argv would show in `ps`)."""
    _, height, width, _ = frames.shape
    comment = re.sub(r"([=;#\\])", r"\\\1", json.dumps(metadata, ensure_ascii=False))
    tags = f";FFMETADATA1\ncomment={comment}\n".encode()
    if len(tags) > MAX_METADATA:
        raise ValueError(f"metadata takes {len(tags)} bytes; at most {MAX_METADATA} are stored")
    reader, writer = os.pipe()
    try:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(tags)
        command = [
            *(imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-hide_banner", "-loglevel", "error", "-y"),
            *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "pipe:0"),
            *("-f", "ffmetadata", "-i", f"pipe:{reader}", "-map", "0:v:0", "-map_metadata", "1"),
            *("-vf", _TO_YUV, "-c:v", "libx264", "-preset", "medium", "-crf", str(CRF), "-pix_fmt", "yuv420p"),
            *("-movflags", "+faststart", "-f", "mp4", f"file:{part}"),
        ]
        done = ffmpeg.run(command, stdin=frames.data, pass_fds=(reader,), on_wait=on_wait)
    except ffmpeg.Stalled as error:
        raise GenerationFailed(f"the video could not be encoded: {error}") from None
    finally:
        os.close(reader)
    complaint = done.stderr.decode(errors="replace")
    # With some errors at the end of the file ffmpeg exits with 0, so its words count as well.
    for number in _FULL:
        if os.strerror(number) in complaint:
            raise OSError(number, os.strerror(number))
    if done.returncode != 0:
        log.error("ffmpeg ended with code %s: %s", done.returncode, complaint.strip()[-500:])
        raise GenerationFailed("the video could not be encoded")


def _verify(part: Path, frames: NDArray[np.uint8], fps: int, on_wait: Callable[[], None]) -> None:
    count, height, width, _ = frames.shape
    wanted = VideoFacts(count, float(fps), width, height, "h264", "yuv420p")
    try:
        found = probe(part, on_wait)
    except InvalidRequest:
        raise GenerationFailed("the encoded video cannot be decoded") from None
    if found != wanted:
        raise GenerationFailed(f"the encoded video is not what was asked for: {found} instead of {wanted}")


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(path: Path, *output: str, on_wait: Callable[[], None] | None = None) -> "subprocess.CompletedProcess[bytes]":
    """Run ffmpeg on a file that may be a stranger's: MP4 demuxer and H.264 only, no other file, no network."""
    command = [
        *(imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-hide_banner", "-protocol_whitelist", "file,pipe"),
        *("-codec_whitelist", "h264,ppm,rawvideo", "-max_pixels", str(4096 * 4096), "-xerror"),
        *("-f", "mov", "-i", f"file:{path}", *output),
    ]
    try:
        done = ffmpeg.run(command, on_wait=on_wait)
    except ffmpeg.Stalled as error:
        log.warning("a video could not be read: %s", error)
        raise _unreadable() from None
    if done.returncode != 0:
        log.debug("ffmpeg ended with code %s: %s", done.returncode, done.stderr.decode(errors="replace")[-500:])
        raise _unreadable()
    return done


def _unreadable() -> InvalidRequest:
    return InvalidRequest("the file is not a readable MP4 (H.264) video", field="video")
