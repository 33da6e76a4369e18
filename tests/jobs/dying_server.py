"""A server process without HTTP that kills itself with -9 at a chosen point of a job's life. Run by the death tests.

    python dying_server.py OUTPUTS POINT WHICH JOBS

POINT is a failpoint, WHICH the prompt of the job to die in (or `any`), JOBS how many to submit first. It prints one
line once they are submitted, begins to work, and exits with 0 when all are final (when nothing killed it).
"""

import os
import signal
import sys
from pathlib import Path

from PIL import Image

from i2v.engine.fake import FakeEngine
from i2v.jobs.queue import JobQueue
from i2v.mutex import GpuMutex
from i2v.request import GenerateRequest
from i2v.settings import Settings


def main(outputs: str, point: str, which: str, jobs: int) -> None:
    queue: JobQueue

    def failpoint(name: str) -> None:
        running = [live.job for live in queue._running.all()]
        hit = which == "any" or any(job.request.prompt == which for job in running)
        if name == point and hit and (name != "step" or running[0].step >= 0):
            os.kill(os.getpid(), signal.SIGKILL)

    queue = JobQueue(Settings(outputs=Path(outputs)), failpoint=failpoint)
    queue.start()
    queue._engine = engine = FakeEngine(step_s=0.002)  # accepts jobs, runs none before `attach`
    queue._phase.ready()
    for number in range(jobs):
        request = GenerateRequest(prompt=f"job {number}", width=64, height=64, num_frames=4, steps=4, seed=number)
        queue.submit(request, Image.new("RGB", (64, 64), (40 * number, 90, 120)), door="cli")
    print("submitted", flush=True)
    queue.attach(engine, GpuMutex())
    for job in queue.list(limit=100):
        queue.wait_sync(job.id, 60)
    queue.stop()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
