"""Stores on both databases, and queues on the fake engine with a quick writer in place of the encoder."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import tests.jobs.postgres_server as postgres
from i2v.engine.fake import FakeEngine
from i2v.jobs.queue import JobQueue
from i2v.jobs.schema import sqlite_url
from i2v.jobs.store import JobStore
from i2v.mutex import GpuMutex
from i2v.settings import Settings
from tests.conftest import ROOT
from tests.jobs.job_doubles import Clock, Gate, MakeQueue, RunServer, memory, quick_write

DYING_SERVER = Path(__file__).with_name("dying_server.py")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgres_at() -> Iterator[str]:
    with postgres.server() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_at: str) -> Iterator[str]:
    yield postgres_at
    postgres.empty(postgres_at)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Every test that asks for it runs on both databases."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "jobs.sqlite3")
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def store(url: str, clock: Clock) -> Iterator[JobStore]:
    opened = JobStore(url, "boot-1", clock)
    yield opened
    opened.close()


@pytest.fixture
def outputs() -> Iterator[Path]:
    """A data folder in memory, where there is any: these tests write thousands of rows, each flushed."""
    folder = Path(tempfile.mkdtemp(prefix="i2v-outputs-", dir=memory()))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open()


@pytest.fixture
def make_queue(outputs: Path) -> Iterator[MakeQueue]:
    """Queues on `outputs` that are stopped afterwards; `settings` are keyword fields of `Settings`."""
    made: list[JobQueue] = []

    def make(
        engine: Any = None, *, mutex: GpuMutex | None = None, settings: dict[str, Any] | None = None, **seams: Any
    ) -> JobQueue:
        fields: dict[str, Any] = {"outputs": outputs, **(settings or {})}
        queue = JobQueue(Settings(**fields), **{"write_video": quick_write, **seams})
        queue.attach(engine or FakeEngine(), mutex or GpuMutex())
        queue.start()
        made.append(queue)
        return queue

    yield make
    for queue in made:
        queue.stop(5.0)


@pytest.fixture
def dot() -> Image.Image:
    """The smallest photo, where a test is not about pictures."""
    return Image.new("RGB", (8, 8), (200, 100, 50))


@pytest.fixture(scope="session")
def run_server() -> Iterator[RunServer]:
    """`run_server(outputs, point, which, jobs)`: the exit code of a `dying_server.py`, negative for a signal."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(DYING_SERVER)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as servers:
        told, said = servers.stdin, servers.stdout
        assert told is not None
        assert said is not None

        def one(outputs: Path, point: str, which: str = "any", jobs: int = 0) -> int:
            print(json.dumps([str(outputs), point, which, jobs]), file=told, flush=True)
            return int(said.readline())

        yield one
