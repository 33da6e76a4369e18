"""Which video an extension continues: one named by id, or an uploaded file that was made here."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from i2v.errors import Conflict, InvalidRequest
from i2v.jobs.job import Job
from i2v.server.video_request import ExtendVideo
from i2v.video import probe, read_frames, read_metadata

if TYPE_CHECKING:
    from i2v.jobs.queue import JobQueue

MAX_FRAMES = 256  # of a clip that is continued; stitching holds every frame in memory: 0.7 GB at 1280x704


def source_of(queue: "JobQueue", body: ExtendVideo, file: bytes | None) -> tuple[Job, Image.Image]:
    """The completed job and the last frame of its video. Decodes the file, so it is slow.

    Raises `InvalidRequest`, `NotFound` for a video that is not here (any more), `Conflict` for one that is not ready.
    """
    job = queue.get(_id_of(body, file))
    return job, last_frame(queue, job)


def last_frame(queue: "JobQueue", job: Job) -> Image.Image:
    """The last frame of a job's video. Raises `Conflict` where there is none, `InvalidRequest` where it is too long."""
    if job.result is None:
        raise Conflict(f"the video cannot be continued: its job is {job.status}", field="video")
    path = queue.video_path(job)
    count = probe(path).frames
    if count > MAX_FRAMES:
        raise InvalidRequest(f"the video has over {MAX_FRAMES} frames; a shorter one can be continued", field="video")
    return Image.fromarray(read_frames(path, first=count - 1)[-1])


def _id_of(body: ExtendVideo, file: bytes | None) -> str:
    """The job's id. Of an uploaded file only the id inside it is used: anybody may have made the rest."""
    if body.video is not None and file is not None:
        raise InvalidRequest("video was sent as a file and as an id; send one", field="video")
    if body.video is not None:
        return body.video.id
    if file is None:
        raise InvalidRequest('video is missing; {"id": ...} or an MP4 made by this server is wanted', field="video")
    with tempfile.TemporaryDirectory(prefix="i2v-") as folder:
        path = Path(folder) / "upload.mp4"
        path.write_bytes(file)
        named = read_metadata(path).get("job")
    if named is None:
        raise InvalidRequest("the file was not made by this server", field="video")
    return named
