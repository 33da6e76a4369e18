"""The whole server, its web page included, seen by someone without the token and by a foreign page."""

import json
import re

import pytest
import requests

from tests.qa.live_server import small_photo

TOKEN = "a-long-enough-secret-token"
LOGIN = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def server(start_server):
    return start_server("--host", "0.0.0.0", I2V_API_TOKEN=TOKEN)


PAGE_ROUTES = [
    ("GET", "/"),
    ("GET", "/config"),
    ("GET", "/gradio_api/info"),
    ("GET", "/gradio_api/queue/data?session_hash=x"),
    ("POST", "/gradio_api/queue/join"),
    ("POST", "/gradio_api/upload"),
    ("POST", "/gradio_api/call/x"),
    ("GET", "/gradio_api/file=/etc/passwd"),
    ("GET", "/gradio_api/proxy=http://127.0.0.1/"),
    ("GET", "/theme.css"),
    ("GET", "/assets/index.js"),
    ("POST", "/login"),
]


def test_the_web_page_and_everything_behind_it_wants_the_token(healthy, subtests):
    for method, path in PAGE_ROUTES:
        with subtests.test(method=method, path=path):
            answer = requests.request(method, healthy.url + path, timeout=30)
            assert answer.status_code == 401
            assert answer.json()["error"]
            wrong = requests.request(method, healthy.url + path, headers={"Authorization": "Bearer wrong"}, timeout=30)
            assert wrong.status_code == 401


def test_every_described_operation_wants_the_token(healthy):
    paths = healthy.session.get(f"{healthy.url}/openapi.json", timeout=30).json()["paths"]
    for path, operations in paths.items():
        if path in ("/livez", "/readyz"):
            continue
        for method in operations:
            answer = requests.request(method, healthy.url + re.sub(r"\{.*?\}", "x", path), timeout=30)
            assert answer.status_code == 401, (method, path)


def test_the_probes_are_open(healthy):
    for path in ("/livez", "/readyz"):
        assert requests.get(healthy.url + path, timeout=30).status_code == 200


def test_a_browser_logs_in_with_the_token_as_password(healthy):
    answer = requests.get(healthy.url, headers={"Accept": "text/html"}, timeout=30)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic")
    assert "<html" in requests.get(healthy.url, auth=("anyone", TOKEN), timeout=30).text


FOREIGN = {
    "a form": {"Origin": "http://evil.example", "Content-Type": "application/x-www-form-urlencoded"},
    "an upload": {"Origin": "http://evil.example", "Content-Type": "multipart/form-data; boundary=x"},
    "plain text": {"Origin": "http://evil.example", "Content-Type": "text/plain"},
    "a sandbox": {"Origin": "null"},
    "fetch metadata": {"Sec-Fetch-Site": "cross-site"},
    "a neighbour port": {"Origin": "http://127.0.0.1:1"},
}


@pytest.mark.parametrize("path", ["/api/predict/", "/v1/videos", "/gradio_api/queue/join", "/gradio_api/upload"])
def test_a_foreign_page_posts_in_vain_even_with_the_users_login(healthy, path, subtests):
    body = json.dumps({"data": [small_photo(), "x", 256, 8, 8, 10, 7.5]})
    for kind, headers in FOREIGN.items():
        with subtests.test(kind):
            answer = requests.post(healthy.url + path, data=body, headers=LOGIN | headers, timeout=30)
            assert answer.status_code == 403


def test_a_name_that_is_not_ours_is_refused(healthy, subtests):
    for path in ("/", "/api/predict/", "/livez", "/gradio_api/info"):
        with subtests.test(path):
            answer = requests.get(healthy.url + path, headers={"Host": "evil.example", **LOGIN}, timeout=30)
            assert answer.status_code == 403


def test_the_page_may_not_be_framed_by_others(healthy):
    answer = healthy.session.get(healthy.url, timeout=30)
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_token_is_nowhere_to_be_read(healthy):
    for path in ("/", "/config", "/openapi.json", "/docs", "/metrics", "/readyz", "/v1/models"):
        assert TOKEN not in healthy.session.get(healthy.url + path, timeout=30).text
    requests.get(f"{healthy.url}/v1/videos", headers={"Authorization": f"Bearer {TOKEN}x"}, timeout=30)
    assert TOKEN not in healthy.log


def test_what_callers_send_is_not_in_the_log(healthy):
    data = [small_photo(), "my private prompt\r\n2026-01-01 ERROR forged", 256, 8, 8, 10, 7.5]
    assert healthy.session.post(f"{healthy.url}/api/predict/", json={"data": data}, timeout=60).status_code == 200
    healthy.session.get(f"{healthy.url}/%0d%0a2026-01-01%20ERROR%20forged", timeout=30)
    assert "private" not in healthy.log
    assert not re.search(r"^2026-01-01 ERROR forged", healthy.log, re.MULTILINE)


def test_an_open_server_without_a_token_is_warned_about_loudly(start_server):
    open_server = start_server("--no-ui", "--host", "0.0.0.0")
    assert "WITHOUT A TOKEN" in open_server.log
    assert open_server.small_job().status_code == 200


def test_a_guarded_or_a_local_server_is_not_warned_about(server, start_server):
    assert "WITHOUT A TOKEN" not in server.log
    assert "WITHOUT A TOKEN" not in start_server("--no-ui").log
