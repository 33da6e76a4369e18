"""A server as `i2v serve` runs it, on a free port, in a thread of the test."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from i2v.engine.fake import FakeEngine
from i2v.jobs.queue import JobQueue
from i2v.mutex import GpuMutex
from i2v.serve import Server, _listen
from i2v.server.app import create_app
from i2v.settings import Settings


@contextmanager
def serving(settings: Settings) -> Iterator[tuple[str, Server]]:
    """Its address and itself, with the fake engine and, where the settings say so, the page."""
    listener = _listen(settings)
    queue = JobQueue(settings)
    queue.attach(FakeEngine(), GpuMutex())
    app = create_app(settings, queue)
    if settings.ui:
        from i2v.ui.mount.mounting import mount_ui  # takes seconds to import

        app = mount_ui(app, settings, queue)
    server = Server(settings, app, "here")
    up = threading.Event()
    server.once_listening = up.set
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert up.wait(60)
        name = f"[{settings.host}]" if ":" in settings.host else settings.host
        yield f"http://{name}:{listener.getsockname()[1]}", server
    finally:
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive()
