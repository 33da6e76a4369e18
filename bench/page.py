"""What the web page costs: `python -m bench.page [--fake]`; the last line is one JSON object.

- `first_paint_ms`: a cold browser (empty cache) from the address to the first contentful paint, and to a page that can
  be used (stage and form drawn), on an idle server;
- `load`: what one page load asks of the server, in requests, events among them, and bytes, as recorded in Chromium;
- `job_s`: the seconds of one job (256x256, 8 frames, 40 steps of the demo model on one thread; `--fake`: 100 steps of
  50 ms of the fake engine) alone, and while another process makes `LOADS` page loads and `EVENTS` events, spread over
  the job. Visitors who come back (their browsers keep the scripts), visitors who have never been here, and such
  visitors whose pages also set off their own events at each load, each between two jobs alone, `ROUNDS` times;
  `cost_percent` is the median over the rounds of a job's excess over the mean of its two neighbours, and the rounds.

A page load is replayed over one kept connection with the requests that Chromium made, since a hundred browsers would
measure themselves. Server and visitors are two processes of this machine; `visitor_cpu_s` and
`server_cpu_s` are the processor time that they used.
"""

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the other core is for the callers

import uvicorn  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

from i2v.engine.fake import FakeEngine  # noqa: E402 - the checkout this file lies in
from i2v.jobs.queue import JobQueue  # noqa: E402
from i2v.loading import load_engine  # noqa: E402
from i2v.mutex import GpuMutex  # noqa: E402
from i2v.request import GenerateRequest  # noqa: E402
from i2v.serve import SWITCH_S  # noqa: E402
from i2v.server.app import create_app  # noqa: E402
from i2v.server.protocol import bounded_protocol  # noqa: E402
from i2v.settings import Settings  # noqa: E402
from i2v.ui.mount.mounting import mount_ui  # noqa: E402

PHOTO = ROOT / "tests" / "assets" / "coffee.jpg"
LOADS, EVENTS, PAINTS, ROUNDS = 100, 50, 5, 3

Call = tuple[str, str | None]  # path, and the body of an event
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@contextmanager
def serving(settings: Settings, engine: Any) -> Iterator[tuple[str, JobQueue]]:
    """A server with the page, in a thread of this process; its address and queue."""
    queue = JobQueue(settings)
    queue.attach(engine, GpuMutex())
    app = mount_ui(create_app(settings, queue), settings, queue)
    http = bounded_protocol(settings.receive_timeout_s, settings.max_connections)
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=http, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", queue
    server.should_exit = True
    thread.join(30)


def paint(url: str, chromium: str) -> tuple[dict[str, float], list[Call], int]:
    """Median times of cold page loads in milliseconds, the requests of one load, and its bytes on the wire."""
    painted, usable, calls, size = [], [], [], 0
    with sync_playwright() as playwright:
        for run in range(PAINTS + 1):  # a browser of its own each time; the first one warms the disk and is left out
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            page = browser.new_page(viewport={"width": 1366, "height": 768})
            asked: list[Call] = []
            page.on("request", lambda request, asked=asked: asked.append((request.url, request.post_data)))
            start = time.perf_counter()
            page.goto(url, wait_until="commit")
            page.locator("#stage .stage").wait_for()
            page.locator("#generate").wait_for()
            if run:
                usable.append(1000 * (time.perf_counter() - start))
                entries = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
                painted.append(page.evaluate(entries))
            else:
                page.wait_for_timeout(2000)  # late scripts; never idle, since the page looks at the queue
                size = page.evaluate(
                    "performance.getEntriesByType('resource').reduce((sum, e) => sum + e.transferSize, 0)"
                )
                ours = [call for call in asked if call[0].startswith(url)]
                calls = [(address.removeprefix(url), body) for address, body in ours]
            browser.close()
    times = {"first_contentful": painted, "usable": usable}
    return (
        {f"{name}_{what}": round(of(found)) for name, found in times.items() for what, of in STATISTICS.items()},
        calls,
        size,
    )


STATISTICS = {"median": statistics.median, "max": max}


BROWSER = {
    "Accept": "*/*",
    "Accept-Encoding": "gzip, deflate",
    "User-Agent": "Mozilla/5.0",
    "Sec-Fetch-Site": "same-origin",
}


def _visit(url: str, calls: list[Call], seconds: float) -> dict[str, float]:
    """`LOADS` page loads, each of them `calls`, and `EVENTS` looks of those tabs, evenly over `seconds`.

    Returns the milliseconds that they took.
    """
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)

    def ask(path: str, body: str | None, visitor: int) -> None:
        headers = BROWSER if body is None else {**BROWSER, "Content-Type": "application/json"}
        content = body and json.dumps({**json.loads(body), "session_hash": f"visitor{visitor}"})
        connection.request("GET" if body is None else "POST", path, content, headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"{path} was answered {answer.status}")

    with urlopen(f"{url}/config") as answer:
        events = json.load(answer)["dependencies"]
    tick = next(one["id"] for one in events if any(target[1] == "tick" for target in one["targets"]))
    look = json.dumps({"fn_index": tick, "data": [None, None]})

    def load(visitor: int) -> None:
        for path, body in calls:
            ask(path, body, visitor)

    plan = [(seconds * number / LOADS, "load", partial(load, number)) for number in range(LOADS)]
    looking = [number * LOADS // EVENTS for number in range(EVENTS)]  # the tab that has just been opened
    event = partial(ask, "/gradio_api/run/predict", look)
    plan += [(seconds * number / LOADS, "event", partial(event, number)) for number in looking]
    took: dict[str, list[float]] = {"load": [], "event": []}
    print("ready", flush=True)
    begun, used = time.perf_counter(), time.process_time()
    for due, kind, call in sorted(plan, key=lambda one: one[0]):
        time.sleep(max(0.0, begun + due - time.perf_counter()))
        start = time.perf_counter()
        call()
        took[kind].append(1000 * (time.perf_counter() - start))
    return {
        "seconds": round(time.perf_counter() - begun, 2),
        "visitor_cpu_s": round(time.process_time() - used, 2),
        **{f"{kind}s": len(times) for kind, times in took.items()},
        **{f"{kind}_ms_median": round(statistics.median(times), 1) for kind, times in took.items()},
    }


def job_seconds(queue: JobQueue, steps: int) -> float:
    request = GenerateRequest(prompt="night falls", width=256, height=256, num_frames=8, steps=steps, seed=1)
    job = queue.wait_sync(queue.submit(request, Image.open(PHOTO).convert("RGB"), door="cli").id, 300)
    if job.result is None:
        raise SystemExit(f"the job failed: {job.error_message}")
    return sum(seconds for stage, seconds in job.result.stage_seconds.items() if stage != "write")


def busy(url: str, queue: JobQueue, steps: int, calls: list[Call], alone: float) -> tuple[float, dict[str, float]]:
    """The job's seconds while a process of its own visits the page over 90% of the time that it takes alone, and what
    the visitors saw, with the processor time of this process: with the fake engine nearly all of it is the page's."""
    code = f"import json, bench.page as page; print(json.dumps(page._visit({url!r}, {calls!r}, {0.9 * alone})))"
    visitors = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert visitors.stdout is not None
    visitors.stdout.readline()  # "ready": its imports are not the page's cost
    used = time.process_time()
    seconds = job_seconds(queue, steps)
    said, _ = visitors.communicate(timeout=300)
    if visitors.returncode:
        raise SystemExit("the visitors failed")
    return seconds, {**json.loads(said), "server_cpu_s": round(time.process_time() - used, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fake", action="store_true", help="the fake engine instead of the demo model")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser")
    options = parser.parse_args()
    sys.setswitchinterval(SWITCH_S)  # as `i2v serve` does
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(outputs=folder, model="fake" if options.fake else "demo", device="cpu", min_free_mb=0)
        engine = FakeEngine(step_s=0.05) if options.fake else load_engine(settings, lambda _what, _share: None)
        steps = 100 if options.fake else 40
        with serving(settings, engine) as (url, queue):
            times, calls, size = paint(url, options.chromium)
            job_seconds(queue, 10)  # warms up
            alone = [job_seconds(queue, steps)]
            files = [call for call in calls if call[1] is None]
            returning = [call for call in files if not call[0].startswith("/assets/")]  # those are marked immutable
            visits = {"returning": returning, "first_time": files, "first_time_and_their_events": calls}
            took: dict[str, list[float]] = {kind: [] for kind in visits}
            excess: dict[str, list[float]] = {kind: [] for kind in visits}
            answers = {}
            for _ in range(ROUNDS):
                for kind, part in visits.items():
                    seconds, answers[kind] = busy(url, queue, steps, part, alone[0])
                    alone.append(job_seconds(queue, steps))
                    took[kind].append(round(seconds, 2))
                    excess[kind].append(seconds / statistics.mean(alone[-2:]) - 1)
    result = {
        "first_paint_ms": times,
        "load": {"requests": len(files), "returning": len(returning), "events": len(calls) - len(files)},
        "kilobytes": round(size / 1000),
        "engine": settings.model,
        "job_s": {
            "alone": [round(seconds, 2) for seconds in alone],
            **took,
        },
        "visitors": answers,
        "cost_percent": {
            kind: [round(100 * share, 1) for share in (statistics.median(found), *found)]
            for kind, found in excess.items()
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
