"""Which video an extension continues: one named by id, or an uploaded file that was made here."""

import tempfile
from pathlib import Path

from PIL import Image

from i2v.errors import Conflict, InvalidRequest
from i2v.jobs.job import Job
from i2v.jobs.queue import JobQueue
from i2v.server.video_request import ExtendVideo
from i2v.video import read_frames, read_metadata


def source_of(queue: JobQueue, body: ExtendVideo, file: bytes | None) -> tuple[Job, Image.Image]:
    """The completed job and the last frame of its video. Decodes the file, so it is slow.

    Raises `InvalidRequest`, `NotFound` for a video that is not here (any more), `Conflict` for one that is not ready.
    """
    job = queue.get(_id_of(body, file))
    if job.result is None:
        raise Conflict(f"the video cannot be continued: its job is {job.status}", field="video")
    return job, Image.fromarray(read_frames(queue.video_path(job))[-1])


def _id_of(body: ExtendVideo, file: bytes | None) -> str:
    """The job's id; an uploaded file is a stranger's, so all it does is name a job of ours."""
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
