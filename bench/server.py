"""What the server costs beside the engine: `python -m bench.server [--demo]`; the last line is one JSON object.

- `first_step_ms`: from the POST of a 640x480 photo to the engine's first step, at an empty queue (fake engine);
- `livez_ms`: `/livez` while a job runs and 100 callers poll it once a second each, for ten seconds;
- `polled`: what 500 requests a second for a running job's object cost its steps, in percent; these steps sleep, with
  `--demo` `polled_demo` says the same of the demo model's (leave a core free: OMP_NUM_THREADS=1);
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
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from i2v.engine.fake import FakeEngine  # noqa: E402 - the checkout this file lies in
from i2v.jobs.queue import JobQueue  # noqa: E402
from i2v.loading import load_engine  # noqa: E402
from i2v.mutex import GpuMutex  # noqa: E402
from i2v.serve import Server, _listen  # noqa: E402
from i2v.server.app import create_app  # noqa: E402
from i2v.settings import Settings  # noqa: E402

PHOTO = ROOT / "tests" / "assets" / "coffee.jpg"
POLLERS, SECONDS, REPEATS = 100, 10, 60
RATE, CALLERS, SPELL_S, SPELLS = 500, 20, 6.0, 3  # `polled`
STARTING_S = 2.0  # of a process of callers, which costs the machine something too


@contextmanager
def serving(settings: Settings, engine: Any) -> Iterator[str]:
    """A server without the page, in a thread of this process; its address."""
    settings = settings.model_copy(update={"port": 0})
    listener = _listen(settings)  # as `i2v serve` does it: what it costs depends on the socket, too
    queue = JobQueue(settings)
    queue.attach(engine, GpuMutex())
    server = Server(settings, create_app(settings, queue), "here")
    up = threading.Event()
    server.once_listening = up.set
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    up.wait()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
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


async def _poll_hard(url: str, job: str) -> tuple[float, float, int]:
    """Ask for a job `RATE` times a second for `SPELL_S`: when that began and ended, and how many were answered.

    Plain sockets: an HTTP library would take more of the machine than the server it asks.
    """
    start, count = time.monotonic(), 0
    host, port = url.removeprefix("http://").split(":")
    asked = f"GET /v1/videos/{job} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()

    async def caller(number: int) -> None:
        nonlocal count
        reader, writer = await asyncio.open_connection(host, int(port))
        due = start + number / RATE
        while due < start + SPELL_S:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            writer.write(asked)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 200 ")
            await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            count, due = count + 1, due + CALLERS / RATE
        writer.close()

    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    return start, time.monotonic(), count


def polled(settings: Settings, engine: Any, steps: int) -> dict[str, float]:
    """Median time of a job's steps while nobody asks and while many do, in turns within the same job."""
    done: list[float] = []
    plain = engine.generate

    def generate(request: Any, image: Any, noise: Any = None, on_step: Any = None) -> Any:
        def step(progress: Any) -> None:
            done.append(time.monotonic())
            on_step(progress)

        return plain(request, image, noise, step)

    engine = SimpleNamespace(info=engine.info, check=engine.check, close=engine.close, generate=generate)
    with serving(settings, engine) as url, httpx.Client(timeout=60) as client:
        values = {"prompt": "night falls", "size": "256x256", "num_frames": 8, "steps": steps}
        image = {"image_url": body("x", 10)["data"][0]}
        job = client.post(f"{url}/v1/videos", json={**values, "input_reference": image}).raise_for_status().json()["id"]
        while len(done) < 2:
            time.sleep(0.01)
        spells, answers, spent = [], 0, 0.0
        for _ in range(SPELLS):
            time.sleep(SPELL_S)
            start, end, count = elsewhere(f"_poll_hard({url!r}, {job!r})")
            spells.append((start, end))
            answers, spent = answers + count, spent + end - start
        client.delete(f"{url}/v1/videos/{job}", timeout=60).raise_for_status()
    hard: list[float] = []
    alone: list[float] = []
    for before, after in pairwise(done[1:]):
        inside = [start <= before and after <= end for start, end in spells]
        apart = [after < start - STARTING_S or before > end for start, end in spells]
        (hard if any(inside) else alone if all(apart) else []).append(1000 * (after - before))
    quiet, loud = statistics.median(alone), statistics.median(hard)
    return {
        "requests_per_s": round(answers / spent),
        "steps": len(alone) + len(hard),
        "alone_ms": round(quiet, 1),
        "polled_ms": round(loud, 1),
        "percent": round(100 * (loud / quiet - 1), 1),
    }


def elsewhere(call: str) -> Any:
    """What a coroutine of this file gives in a process of its own, so that callers do not share the server's."""
    code = f"import asyncio, json, bench.server as b; print(json.dumps(asyncio.run(b.{call})))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout)


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
        answers: list[float] = elsewhere(f"_poll({url!r}, {job!r})")
        client.delete(f"{url}/v1/videos/{job}", timeout=60).raise_for_status()
    return answers


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


def spread(values: list[float], share: float) -> dict[str, float]:
    """Count, median, and the value that `share` of them stay below."""
    ordered = sorted(values)
    high = ordered[min(len(ordered) - 1, int(len(ordered) * share))]
    median = round(statistics.median(ordered), 1)
    return {"count": len(ordered), "median": median, f"p{share * 100:.0f}": round(high, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", action="store_true", help="time a demo job too (about half a minute)")
    options = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        steps = first_steps(f"{folder}/a")
        result["first_step_ms"] = spread(steps, 0.95)
        result["livez_ms"] = spread(livez(f"{folder}/b"), 0.99)
        result["polled"] = polled(Settings(outputs=f"{folder}/p", model="fake"), FakeEngine(step_s=0.4), 100)
        if options.demo:
            result |= outside(f"{folder}/c")
            demo = Settings(outputs=f"{folder}/d", model="demo", device="cpu")
            result["polled_demo"] = polled(demo, load_engine(demo, lambda _what, _share: None), 100)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
