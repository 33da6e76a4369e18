"""Many callers at once, callers that go away, and a server that stays awake meanwhile."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from i2v.video import probe
from tests.qa.live_server import LiveServer, read_all, small_photo
from tests.qa.waiting import create, until

CAPACITY = 8


@pytest.fixture(scope="module")
def server(start_server):
    return start_server("--no-ui", "--queue-length", str(CAPACITY), "--fake-step-s", "0.005")


def body(**more):
    return {"data": [small_photo(), "the scene at sunset", 256, 8, 8, 10, 7.5], **more}


def predict(server: LiveServer) -> requests.Response:
    return requests.post(f"{server.url}/api/predict/", json=body(), timeout=120)


def jobs(server: LiveServer, **query) -> list[dict]:
    return server.session.get(f"{server.url}/v1/videos", params={"limit": 100, **query}, timeout=30).json()["data"]


def test_sixteen_callers_get_their_video_or_a_time_to_come_back_while_the_server_is_awake(healthy):
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(predict, healthy) for _ in range(16)]
        alive = 0
        while not all(answer.done() for answer in answers):
            assert healthy.session.get(f"{healthy.url}/livez", timeout=10).status_code == 200
            alive += 1
    assert alive > 10
    paths = set()
    for answer in (answer.result() for answer in answers):
        assert answer.status_code in (200, 503)
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) > 0
        else:
            paths.add(answer.json()["data"][0])
    assert len(paths) >= CAPACITY
    assert all(probe(healthy.outputs / path.rpartition("/")[2]).frames == 8 for path in paths)


def test_a_full_queue_takes_as_many_as_it_holds_and_tells_the_others_when(start_server):
    server = start_server("--no-ui", "--queue-length", str(CAPACITY), "--fake-step-s", "3")
    first = create(server, "occupies the engine", steps=100).json()["id"]
    until(lambda: jobs(server, status="in_progress"))
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda number: create(server, f"number {number}"), range(64)))
    taken = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert (len(taken), len(refused)) == (CAPACITY, 64 - CAPACITY)
    for answer in refused:
        assert answer.json()["error"]["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) > 0
    assert requests.post(f"{server.url}/v1/videos/{first}/cancel", timeout=60).json()["status"] == "cancelled"


def test_everyone_who_honours_retry_after_is_served(healthy):
    def stubborn(number: int) -> str:
        while True:
            answer = create(healthy, f"number {number}")
            if answer.status_code == 200:
                return answer.json()["id"]
            assert answer.status_code == 503
            time.sleep(min(0.2, int(answer.headers["retry-after"])))

    with ThreadPoolExecutor(32) as pool:
        ids = list(pool.map(stubborn, range(32)))
    assert len(set(ids)) == 32
    for id in ids:
        until(lambda id=id: healthy.session.get(f"{healthy.url}/v1/videos/{id}", timeout=30).json()["progress"] == 100)


def post_and_leave(server: LiveServer) -> None:
    data = json.dumps(body()).encode()
    head = f"POST /api/predict/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    before = server.log.count("accepted job=")
    with server.connect() as connection:
        connection.sendall(head.encode() + data)
        until(lambda: server.log.count("accepted job=") > before)


def test_a_queued_job_is_dropped_when_its_caller_goes_away(start_server):
    server = start_server("--no-ui", "--fake-step-s", "0.5")
    running = create(server, "occupies the engine", steps=100).json()["id"]
    until(lambda: jobs(server, status="in_progress"))
    post_and_leave(server)
    until(lambda: [job["status"] for job in jobs(server)] == ["cancelled", "in_progress"])
    requests.post(f"{server.url}/v1/videos/{running}/cancel", timeout=60)
    assert server.small_job().status_code == 200


@pytest.mark.parametrize(("choice", "end"), [("finish", "completed"), ("cancel", "cancelled")])
def test_a_running_job_goes_by_the_setting_when_its_caller_goes_away(start_server, choice, end):
    server = start_server("--no-ui", "--fake-step-s", "0.2", "--predict-on-disconnect", choice)
    post_and_leave(server)
    until(lambda: [job["status"] for job in jobs(server)] == [end])
    assert server.ready()


def test_listeners_that_go_away_stop_nothing_and_leave_nothing(healthy):
    id = create(healthy, "watched").json()["id"]
    for _ in range(20):
        with healthy.connect(timeout=30) as connection:
            connection.sendall(f"GET /v1/videos/{id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            connection.recv(100)
    until(lambda: healthy.session.get(f"{healthy.url}/v1/videos/{id}", timeout=30).json()["status"] == "completed")
    assert "Traceback" not in healthy.log


def test_a_storm_of_submits_cancels_and_deletes_leaves_an_orderly_queue(healthy):
    def round_trip(number: int) -> set[int]:
        answer = create(healthy, f"number {number}")
        if answer.status_code != 200:
            return {answer.status_code}
        url = f"{healthy.url}/v1/videos/{answer.json()['id']}"
        cancelled = requests.post(f"{url}/cancel", timeout=60)
        deleted = requests.delete(url, timeout=60)
        return {cancelled.status_code, deleted.status_code}

    with ThreadPoolExecutor(16) as pool:
        seen = set().union(*pool.map(round_trip, range(100)))
    assert seen <= {200, 409, 503}
    assert not jobs(healthy, status="queued")
    assert not jobs(healthy, status="in_progress")


def test_one_key_sent_32_times_at_once_is_one_job(healthy):
    sent = {"prompt": "once", "size": "256x256", "num_frames": 8, "steps": 10}
    sent["input_reference"] = {"image_url": small_photo()}

    def send(_number: int) -> requests.Response:
        return requests.post(f"{healthy.url}/v1/videos", json=sent, headers={"Idempotency-Key": "k"}, timeout=60)

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(send, range(32)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum(answer.headers.get("idempotent-replayed") == "true" for answer in answers) == 31


def test_a_download_survives_the_deletion_of_its_video(healthy):
    id = create(healthy, "to be deleted").json()["id"]
    url = f"{healthy.url}/v1/videos/{id}"
    until(lambda: healthy.session.get(url, timeout=30).json()["status"] == "completed")
    whole = requests.get(f"{url}/content", timeout=30).content
    with healthy.connect() as connection:
        head = f"GET /v1/videos/{id}/content HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        first = connection.recv(200)
        assert requests.delete(url, timeout=30).status_code == 200
        assert (first + read_all(connection)).endswith(whole[-1000:])
