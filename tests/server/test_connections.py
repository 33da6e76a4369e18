"""The connections of the server as `i2v serve` opens them."""

import socket
import threading

import httpx
import pytest

from i2v.engine.fake import FakeEngine
from i2v.jobs.queue import JobQueue
from i2v.serve import Server, _listen
from i2v.server.app import create_app
from i2v.settings import Settings


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_no_answer_waits_for_the_acknowledgement_of_its_first_half(tmp_path, host):
    """Each answer on a kept connection took 40 ms longer: Nagle's algorithm was on, for the listening socket was made
    here and without a protocol number, by which asyncio knows TCP."""
    settings = Settings(outputs=tmp_path / "outputs", model="fake", ui=False, min_free_mb=0, host=host, port=0)
    listener = _listen(settings)
    server = Server(settings, create_app(settings, JobQueue(settings, engine=FakeEngine())), "here")
    up = threading.Event()
    server.once_listening = up.set
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert up.wait(60)
        name = f"[{host}]" if ":" in host else host
        with httpx.Client(base_url=f"http://{name}:{listener.getsockname()[1]}") as client:
            assert client.get("/livez").status_code == 200
            open_ones = [one.transport.get_extra_info("socket") for one in server.server_state.connections]
            assert [one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for one in open_ones] == [1]
    finally:
        server.should_exit = True
        thread.join(60)
