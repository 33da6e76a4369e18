"""What the server costs beside the engine: `python -m bench.server [--demo]`; the last line is one JSON object.

- `first_step_ms`: from the POST of a 640x480 photo to the engine's first step, at an empty queue (fake engine);
- `livez_ms`: `/livez` while a job runs and 100 callers poll it once a second each, for ten seconds;
- `outside_percent` (`--demo`): the share of a demo job's wall time that is neither engine nor encoder.

Server and callers are two processes of this machine; everything is bounded in count and time.
"""

import argparse
import asyncio
import base64
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from i2v.engine.fake import FakeEngine  # noqa: E402 - the checkout this file lies in
from i2v.jobs.queue import JobQueue  # noqa: E402
from i2v.loading import load_engine  # noqa: E402
from i2v.server.app import create_app  # noqa: E402
from i2v.settings import Settings  # noqa: E402

PHOTO = ROOT / "tests" / "assets" / "coffee.jpg"
POLLERS, SECONDS, REPEATS = 100, 10, 20


@contextmanager
def serving(settings: Settings, engine: Any) -> Iterator[str]:
    """A server without the page, in a thread of this process; its address."""
    queue = JobQueue(settings, engine=engine)
    server = uvicorn.Server(uvicorn.Config(create_app(settings, queue), port=0, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


def body(prompt: str, steps: int) -> dict[str, Any]:
    photo = "data:image/jpeg;base64," + base64.b64encode(PHOTO.read_bytes()).decode()
    return {"data": [photo, prompt, 256, 8, 8, steps, 7.5, 1]}


def first_steps(folder: str) -> list[float]:
    """Milliseconds from POST to the first step, `REPEATS` times; the first ones warm up and are left out."""
    reached: list[float] = []
    engine = FakeEngine(fault=lambda stage, step: reached.append(time.perf_counter()) if step == 1 else None)
    found = []
    with serving(Settings(outputs=folder, model="fake"), engine) as url, httpx.Client() as client:
        for _ in range(REPEATS + 3):
            reached.clear()
            start = time.perf_counter()
            client.post(f"{url}/api/predict/", json=body("x", 10), timeout=60).raise_for_status()
            found.append(1000 * (reached[0] - start))
    return found[3:]


async def _poll(url: str, job: str) -> list[float]:
    """`/livez` every 20 ms beside `POLLERS` callers of the job, for `SECONDS`; milliseconds of each answer."""
    end, found = time.monotonic() + SECONDS, []
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=POLLERS + 5), timeout=30) as client:

        async def poller(number: int) -> None:
            await asyncio.sleep(number / POLLERS)
            while time.monotonic() < end:
                (await client.get(f"{url}/v1/videos/{job}")).raise_for_status()
                await asyncio.sleep(1)

        callers = [asyncio.create_task(poller(number)) for number in range(POLLERS)]
        while time.monotonic() < end:
            start = time.perf_counter()
            (await client.get(f"{url}/livez")).raise_for_status()
            found.append(1000 * (time.perf_counter() - start))
            await asyncio.sleep(0.02)
        await asyncio.gather(*callers)
    return found


def livez(folder: str) -> list[float]:
    """Latencies of `/livez` in milliseconds under `POLLERS` pollers, measured from a process of its own."""
    with serving(Settings(outputs=folder, model="fake"), FakeEngine(step_s=0.5)) as url, httpx.Client() as client:
        values = {"prompt": "x", "size": "256x256", "num_frames": 8, "steps": 60}
        image = {"image_url": body("x", 10)["data"][0]}
        job = client.post(f"{url}/v1/videos", json={**values, "input_reference": image}).raise_for_status().json()["id"]
        code = f"import asyncio, json, bench.server as b; print(json.dumps(asyncio.run(b._poll({url!r}, {job!r}))))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
        )
        client.delete(f"{url}/v1/videos/{job}", timeout=60).raise_for_status()
    return [float(value) for value in json.loads(done.stdout)]


def outside(folder: str) -> dict[str, float]:
    """One demo job (256x256, 8 frames, 20 steps) after a short one: its seconds, and the percent outside its stages."""
    settings = Settings(outputs=folder, model="demo", device="cpu")
    engine = load_engine(settings, lambda _what, _share: None)
    with serving(settings, engine) as url, httpx.Client(timeout=600) as client:
        client.post(f"{url}/api/predict/", json=body("night falls", 10)).raise_for_status()
        start = time.perf_counter()
        answer = client.post(f"{url}/api/predict/", json=body("the scene at sunset", 20)).raise_for_status()
        wall = time.perf_counter() - start
        job = client.get(f"{url}/v1/videos/{answer.headers['x-job-id']}").json()
    stages = sum(job["stage_seconds"].values())
    return {"job_s": round(wall, 2), "outside_percent": round(100 * (wall - stages) / wall, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", action="store_true", help="time a demo job too (about half a minute)")
    options = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        steps = first_steps(f"{folder}/a")
        result["first_step_ms"] = {"median": round(statistics.median(steps), 1), "max": round(max(steps), 1)}
        answers = sorted(livez(f"{folder}/b"))
        p99 = answers[int(len(answers) * 0.99)]
        result["livez_ms"] = {
            "count": len(answers),
            "median": round(statistics.median(answers), 1),
            "p99": round(p99, 1),
        }
        if options.demo:
            result |= outside(f"{folder}/c")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
