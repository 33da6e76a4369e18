"""Server processes without HTTP that kill themselves with -9 at a chosen point of a job's life. For the death tests.

    python dying_server.py

reads one JSON list a line: OUTPUTS, POINT, WHICH, JOBS. For each it starts a process of its own (forked, so that the
imports are paid for once), waits until that ends, and prints its exit code, negative for a signal, as `subprocess` has
it. POINT is a failpoint, WHICH the prompt of the job to die in (or `any`), JOBS how many to submit first. The process
submits them, begins to work, and exits with 0 when all are final (when nothing killed it).
"""

import json
import os
import signal
import sys
import traceback
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
    queue.attach(engine, GpuMutex())
    for job in queue.list(limit=100):
        queue.wait_sync(job.id, 60)
    queue.stop()


def forked(outputs: str, point: str, which: str, jobs: int) -> int:
    """The exit code of `main` in a process of its own; 1 when it raises, with the traceback on stderr."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        main(outputs, point, which, jobs)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    for line in sys.stdin:
        print(forked(*json.loads(line)), flush=True)
