"""A server in this process: the real app around the real queue, with the fake engine and a temporary folder."""

import base64
import io
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

from i2v.engine.fake import FakeEngine
from i2v.jobs.queue import JobQueue
from i2v.mutex import GpuMutex
from i2v.server.app import create_app
from i2v.settings import Settings

ASSETS = Path(__file__).resolve().parent.parent / "assets"
BASE = "http://127.0.0.1:7860"


@pytest.fixture(scope="session")
def data_url() -> str:
    """A real photo as scripts send it."""
    return "data:image/jpeg;base64," + base64.b64encode((ASSETS / "coffee.jpg").read_bytes()).decode()


@pytest.fixture(scope="session")
def small_url() -> str:
    """A 32x32 picture, for tests that send many."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 120, 40)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(outputs=tmp_path / "outputs", model="fake", ui=False, min_free_mb=0)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def queue(settings: Settings, engine: FakeEngine) -> JobQueue:
    queue = JobQueue(settings)
    queue.attach(engine, GpuMutex())
    return queue


@pytest.fixture
async def app(settings: Settings, queue: JobQueue) -> AsyncIterator[FastAPI]:
    app = create_app(settings, queue)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 1234))
    async with httpx.AsyncClient(transport=transport, base_url=BASE, timeout=60) as client:
        yield client


@pytest.fixture
def predict(client: httpx.AsyncClient) -> Callable[..., Any]:
    """Post a positional request: `await predict([image, prompt, ...])`."""

    async def post(data: Any, **more: Any) -> httpx.Response:
        body = json.dumps({"data": data, **more})
        return await client.post("/api/predict/", content=body, headers={"content-type": "application/json"})

    return post
