"""20,000 jobs through the queue on the fake engine: jobs a second, memory, rows and files meanwhile, as JSON lines.

    python -m bench.soak [--jobs 20000] [--keep 100] [--folder DIR]

One line every 1,000 jobs. Memory must be flat from the second line on, and the table bounded by --keep.
"""

import argparse
import json
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from i2v.engine.fake import FakeEngine
from i2v.errors import QueueFull
from i2v.jobs.job import Job
from i2v.jobs.queue import JobQueue
from i2v.mutex import GpuMutex
from i2v.request import GenerateRequest
from i2v.settings import Settings

REPORT_EVERY = 1000


def write_few_bytes(frames: np.ndarray, path: Path, **_rest: object) -> None:
    """In place of the encoder: this measures the queue."""
    path.write_bytes(frames[0, 0].tobytes())


class Soak:
    def __init__(self, queue: JobQueue, folder: Path) -> None:
        self.queue = queue
        self.folder = folder
        self.start = time.perf_counter()
        self.done = 0
        self.room = threading.Semaphore(0)
        queue.on_final.append(self.count)

    def count(self, job: Job) -> None:
        assert job.status == "completed", job
        self.done += 1
        self.room.release()
        if self.done % REPORT_EVERY == 0:
            self.report()

    def report(self) -> None:
        process = psutil.Process()
        line = {
            "jobs": self.done,
            "jobs_per_s": round(self.done / (time.perf_counter() - self.start), 1),
            "rss_mb": round(process.memory_info().rss / 1e6, 1),
            "threads": process.num_threads(),
            "open_files": process.num_fds(),
            "rows": sum(self.queue.counts().values()),
            "videos": len(list(self.folder.glob("*.mp4"))),
            "table_mb": round(sum(path.stat().st_size for path in self.folder.glob("jobs.sqlite3*")) / 1e6, 1),
        }
        print(json.dumps(line), flush=True)

    def run(self, jobs: int) -> None:
        request = GenerateRequest(prompt="soak", width=64, height=64, num_frames=4, steps=4)
        photo = Image.effect_noise((64, 64), 50).convert("RGB")
        submitted = 0
        while submitted < jobs:
            try:
                self.queue.submit(request, photo, door="cli")
                submitted += 1
            except QueueFull:
                self.room.acquire()
        while self.done < jobs:
            self.room.acquire()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--keep", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=None, help="where the data goes (default: a temporary folder)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="i2v-soak-", dir=options.folder))
    settings = Settings(outputs=folder, retention={"count": options.keep}, queue={"length": 64})  # type: ignore[arg-type]
    queue = JobQueue(settings, write_video=write_few_bytes)
    queue.attach(FakeEngine(), GpuMutex())
    queue.start()
    try:
        Soak(queue, folder).run(options.jobs)
    finally:
        queue.stop()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
