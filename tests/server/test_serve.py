"""The server as a process: how it starts, how it ends, and what it says when it cannot do either."""

import json
import os
import signal
import socket
import threading
import time

import pytest
import requests
from fastapi import FastAPI

from i2v import ffmpeg
from i2v.serve import Server
from i2v.settings import Settings
from tests.qa.live_server import LiveServer, post_video, small_photo, start

pytestmark = pytest.mark.slow


@pytest.fixture
def launch(tmp_path):
    running: list[LiveServer] = []

    def make(*flags, folder="server", **more):
        server = start(tmp_path / folder, "--no-ui", *flags, **more)
        running.append(server)
        return server

    yield make
    for server in running:
        server.stop(signal.SIGKILL)


def ended(server: LiveServer) -> int:
    return server.process.wait(90)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_in_good_order(launch, sig):
    server = launch()
    assert server.small_job().status_code == 200
    assert server.stop(sig) == 0
    assert "Traceback" not in server.log


def test_a_signal_answers_whoever_waits_and_keeps_the_job(launch):
    server = launch("--fake-step-s", "0.2")
    answers = []
    body = {"data": [small_photo(), "x", 256, 8, 8, 100, 7.5]}
    waiting = threading.Thread(
        target=lambda: answers.append(requests.post(f"{server.url}/api/predict/", json=body, timeout=60))
    )
    waiting.start()
    while "accepted job=" not in server.log:
        assert waiting.is_alive()
    server.process.send_signal(signal.SIGTERM)
    waiting.join(60)
    assert answers[0].status_code == 503
    assert answers[0].headers["retry-after"]
    assert server.stop() == 0
    again = launch()
    jobs = again.session.get(f"{again.url}/v1/videos", timeout=30).json()["data"]
    assert len(jobs) == 1
    assert jobs[0]["status"] in ("queued", "in_progress", "completed")


@pytest.mark.fault(
    "SIGHUP", "SIGHUP straight to server.py, twice", before="killed by the signal, the running job lost an attempt"
)
def test_a_closed_terminal_puts_the_running_job_back(launch, record_property):
    server = launch("--fake-step-s", "0.2")
    job = post_video(server)
    while "started, attempt 1" not in server.log:
        assert server.process.poll() is None
    for _ in range(2):  # the kernel sends one, and the shell another
        server.process.send_signal(signal.SIGHUP)
    assert ended(server) == 0
    assert "goes back to the queue" in server.log or "completed in" in server.log
    again = launch()
    video = again.session.get(f"{again.url}/v1/videos/{job}", timeout=30).json()
    assert video["status"] in ("queued", "in_progress", "completed")
    assert "i2v_starts_after_death_total 0.0" in again.session.get(f"{again.url}/metrics", timeout=30).text
    record_property("after", f"exit code 0, the job is {video['status']} after the next start, no death is counted")


@pytest.mark.fault("second Ctrl-C", "while a step hangs", before="the server ended after 10 s, though said: at once")
def test_two_signals_end_it_at_once(launch, record_property):
    server = launch("--fake-step-s", "60")
    post_video(server)
    while "started, attempt 1" not in server.log:
        assert server.process.poll() is None
    server.process.send_signal(signal.SIGINT)
    while "stopping" not in server.log:
        assert server.process.poll() is None
    began = time.monotonic()
    server.process.send_signal(signal.SIGINT)
    assert ended(server) == 0
    seconds = time.monotonic() - began
    assert seconds < 8.0  # the job's step alone takes 60 s; waiting for it took 10
    record_property("after", f"{seconds:.1f} s")


def test_a_second_signal_ends_the_encoder_before_the_process(tmp_path, monkeypatch):
    """The process does not come to its end, where others would be ended: an encoder would run on alone."""
    done = []
    monkeypatch.setattr(ffmpeg, "kill_all", lambda: done.append("encoders"))
    monkeypatch.setattr(os, "_exit", done.append)
    server = Server(Settings(outputs=tmp_path, model="fake", ui=False), FastAPI(), "here")
    server.handle_exit(signal.SIGTERM, None)
    server.handle_exit(signal.SIGHUP, None)
    assert done == []
    server.handle_exit(signal.SIGINT, None)
    assert done == ["encoders", 0]


def test_a_lost_engine_is_answered_and_the_process_asks_to_be_started_again(launch):
    server = launch("--fake-fail", "fatal")
    answer = server.small_job()
    assert answer.status_code in (500, 503)
    assert answer.json()["error"]
    assert ended(server) == 86


@pytest.mark.parametrize(("kind", "status"), [("error", 500), ("out_of_memory", 503), ("invalid_output", 500)])
def test_a_failed_job_fails_alone(launch, kind, status):
    server = launch("--fake-fail", kind)
    for _ in range(3):
        answer = server.small_job()
        assert answer.status_code == status
        assert "Traceback" not in answer.text
    assert server.ready()


def test_a_busy_port_is_said_and_nothing_is_started(launch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = launch("--port", str(port), wait=False)
        assert ended(server) == 1
    assert f"port {port}" in server.log
    assert "Traceback" not in server.log


def test_a_second_server_on_the_same_data_is_refused(launch):
    first = launch()
    second = launch("--outputs", str(first.outputs), folder="second", wait=False)
    assert ended(second) == 1
    assert "ERROR" in second.log
    assert "Traceback" not in second.log
    assert first.ready()


def test_a_model_that_is_not_there_ends_it_with_a_sentence(launch, tmp_path):
    server = launch("--model", str(tmp_path / "nowhere"), "--offline", wait=False)
    assert ended(server) == 1
    assert "could not be loaded" in server.log
    assert "Traceback" not in server.log


def test_a_setting_that_is_none_is_refused(launch):
    server = launch("--queue-length", "0", wait=False)
    assert ended(server) == 2
    assert "queue.length" in server.log


def test_the_log_can_be_json(launch):
    server = launch("--log-json")
    server.small_job()
    records = [json.loads(line) for line in server.log.splitlines()]
    assert all({"time", "level", "message"} <= set(record) for record in records)
    id = server.session.get(f"{server.url}/v1/videos", timeout=30).json()["data"][0]["id"]
    told = [record["message"].split(" in ")[0].split(",")[0] for record in records if record.get("job") == id]
    assert told == ["accepted", "started", "completed"]
