"""What the framework leaves open by default stays closed: files of the machine, foreign pages, foreign machines."""

import base64
import inspect
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import requests
from fastapi import FastAPI
from gradio.state_holder import SessionState
from playwright.sync_api import Browser, Page, expect
from starlette.routing import Mount

from i2v.engine.fake import FakeEngine
from i2v.engine.interface import GenerationResult
from i2v.errors import Unavailable
from i2v.server.app import create_app
from i2v.ui.mount.assets import may_be_kept, takes_gzip
from i2v.ui.mount.gate import OPEN, PROGRESS, Gate, methods_of
from i2v.ui.mount.mounting import check_closed, mount_ui, remember_signatures
from i2v.ui.mount.upload_total import UploadTotal
from tests.conftest import ASSETS, ROOT
from tests.ui.conftest import Site, fill, servers

pytestmark = pytest.mark.slow

SECRET = "root:x:0:0"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One server for all that only knock at it."""
    with servers(tmp_path_factory.mktemp("doors")) as start:
        yield start()


def blocks_of(app: FastAPI) -> gr.Blocks:
    mount = app.routes[-1]
    assert isinstance(mount, Mount)
    assert isinstance(mount.app, Gate)
    return mount.app.framework.get_blocks()  # type: ignore[attr-defined,no-any-return]


def every_route(routes: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Method and path of each route, those of mounts and of included routers inside too."""
    for route in routes:
        inner = getattr(getattr(route, "original_router", route), "routes", None)
        if inner is not None:
            yield from every_route(inner)
        else:
            yield from ((method, route.path) for method in sorted(route.methods))


def config_of(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = requests.get(f"{site.url}/config", timeout=30).json()
    return found


def every_event(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [dependency for dependency in config["dependencies"] if dependency["backend_fn"]]


def post_event(site: Site, dependency: dict[str, Any], value: Any) -> requests.Response:
    body = {"fn_index": dependency["id"], "session_hash": "abc", "data": [value] * len(dependency["inputs"])}
    return requests.post(f"{site.url}/gradio_api/run/predict", json=body, timeout=60)


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/environ", "../../../../etc/passwd"])
def test_no_event_copies_a_file_that_nobody_uploaded(site: Site, path: str) -> None:
    """Gradio mounted without launch() copied any named file into its cache and served it from there."""
    value = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}
    for dependency in every_event(config_of(site)):
        answer = post_event(site, dependency, value)
        assert SECRET not in answer.text
        for found in re.findall(r'"path":\s*"([^"]+)"', answer.text):
            served = requests.get(f"{site.url}/gradio_api/file={found}", timeout=30)
            assert SECRET not in served.text
            assert served.status_code in (403, 404)


def test_the_photo_and_the_prompt_events_refuse_a_foreign_path(site: Site) -> None:
    value = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    config = config_of(site)
    kinds = {component["id"]: component["type"] for component in config["components"]}
    with_image = [d for d in every_event(config) if "image" in [kinds.get(id) for id in d["inputs"]]]
    with_text = [d for d in every_event(config) if "textbox" in [kinds.get(id) for id in d["inputs"]]]
    assert with_image
    assert with_text
    for dependency in with_image + with_text:
        assert post_event(site, dependency, value).status_code == 422
    assert requests.get(f"{site.url}/livez", timeout=30).status_code == 200


def test_no_event_tells_what_lies_on_the_machine(site: Site) -> None:
    """A folder, a file and nothing at all are refused alike."""
    config = config_of(site)
    kinds = {component["id"]: component["type"] for component in config["components"]}
    events = [d for d in every_event(config) if {"image", "file"} & {kinds.get(id) for id in d["inputs"]}]
    assert len(events) >= 2
    for dependency in events:
        said = set()
        for path in ("/etc", "/etc/passwd", "/nothing/there", str(site.settings.outputs)):
            answer = post_event(site, dependency, {"path": path, "meta": {"_type": "gradio.FileData"}})
            said.add((answer.status_code, answer.text))
        assert len(said) == 1
        assert said.pop()[0] == 422


def test_no_path_of_the_machine_is_served(site: Site) -> None:
    (site.settings.outputs / "secret.txt").write_text(SECRET)
    for path in ("/etc/passwd", str(site.settings.outputs / "jobs.sqlite3"), str(site.settings.outputs / "secret.txt")):
        answer = requests.get(f"{site.url}/gradio_api/file={path}", timeout=30)
        assert answer.status_code == 404
        assert path not in answer.text
        assert answer.json()["error"]


def test_an_upload_that_is_none_is_refused_in_our_words(site: Site) -> None:
    answer = requests.post(f"{site.url}/gradio_api/upload", json={}, timeout=30)
    assert answer.status_code == 400
    assert "form" in answer.json()["error"]


def test_an_upload_asks_for_room_and_says_when_it_has_ended(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    ended: list[int] = []
    monkeypatch.setattr(UploadTotal, "make_room", lambda _, size: asked.append(size))
    monkeypatch.setattr(UploadTotal, "arrived", lambda _, size: ended.append(size))
    taken = requests.post(f"{site.url}/gradio_api/upload", files={"files": ("a.png", b"x" * 1000)}, timeout=30)
    refused = requests.post(f"{site.url}/gradio_api/upload", data=b"x" * 333, timeout=30)
    assert (taken.status_code, refused.status_code) == (200, 400)
    assert asked == [int(taken.request.headers["content-length"]), 333]
    deadline = time.monotonic() + 30
    while not set(asked) <= set(ended) and time.monotonic() < deadline:  # said after the answer has gone out
        time.sleep(0.01)
    assert set(asked) <= set(ended)

    def full(_: UploadTotal, size: int) -> None:
        raise Unavailable(f"no room for {size}", retry_after=60)

    monkeypatch.setattr(UploadTotal, "make_room", full)
    answer = requests.post(f"{site.url}/gradio_api/upload", files={"files": ("a.png", b"x")}, timeout=30)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "60")
    assert int(answer.request.headers["content-length"]) not in ended


@pytest.mark.fault("F1", "any route of the framework", before="all 79 answer; one runs ffmpeg on what it is sent")
def test_no_route_of_the_framework_answers_but_those_the_page_asks_for(
    site: Site, record_property: Callable[[str, object], None]
) -> None:
    """It brings a new one with every version; each is looked up in its own table, so that none is forgotten."""
    app = mount_ui(create_app(site.settings, site.queue), site.settings, site.queue)
    mount = app.routes[-1]
    assert isinstance(mount, Mount)
    found = [(method, path) for method, path in every_route(mount.routes) if path != "/openapi.json"]  # it is ours
    named = {path.partition("{")[0] for _, path in found}
    assert {"/gradio_api/process_recording", "/gradio_api/dev/reload", "/gradio_api/call/", "/login"} <= named
    closed = 0
    for method, path in found:
        asked = re.sub(r"\{.*?\}", "x", path)
        if method in methods_of(asked) or asked == PROGRESS:
            continue
        with requests.request(method, site.url + asked, json={}, timeout=30, stream=True) as answer:
            wanted = (405, "method_not_allowed") if methods_of(asked) else (404, "not_found")
            assert answer.status_code == wanted[0], (method, asked)
            assert method == "HEAD" or answer.json()["detail"][0]["type"] == wanted[1], asked
        closed += 1
    for path, methods in OPEN.items():
        for method in methods:
            assert requests.request(method, site.url + path, json={}, timeout=30).status_code != 404, path
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        answer = requests.request(method, f"{site.url}/gradio_api/upload", timeout=30)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    record_property("after", f"{len(found) - closed} of {len(found)} routes answer")


@pytest.mark.fault("F1", "a playlist as a recording", before="ffmpeg runs on it, and reads the file that it names")
def test_a_recording_that_somebody_sends_is_not_touched(
    site: Site, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    started: list[str] = []

    async def start(*command: str, **_: object) -> None:
        started.append(command[0])
        raise OSError("not in a test")

    monkeypatch.setattr("asyncio.create_subprocess_exec", start)
    monkeypatch.setattr("shutil.which", lambda name, *_: f"/usr/bin/{name}")
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile:///somewhere/else.mp4\n#EXT-X-ENDLIST\n"
    cut = {"remove_segment_start": "0", "remove_segment_end": "1"}
    answer = requests.post(
        f"{site.url}/gradio_api/process_recording", files={"video": ("a.mp4", playlist)}, data=cut, timeout=60
    )
    record_property("after", f"{answer.status_code}, {len(started)} encoders")
    assert (answer.status_code, started) == (404, [])


@pytest.mark.fault("F1", "streams of the framework", before="/gradio_api/dev/reload never ends")
def test_no_address_of_the_framework_is_an_endless_stream(
    site: Site, record_property: Callable[[str, object], None]
) -> None:
    """An upload's bar was one too, for an upload that never came to its end; its names were kept for ever."""
    paths = ("dev/reload", "heartbeat/x", "queue/data?session_hash=x", "call/x/y", "upload_progress?upload_id=x")
    ended = [requests.get(f"{site.url}/gradio_api/{path}", timeout=30).status_code for path in paths]
    record_property("after", f"{len(ended)} streams ended: {ended}")
    assert ended == [404, 404, 404, 404, 200]
    named = requests.post(
        f"{site.url}/gradio_api/upload?upload_id=named", files={"files": ("a.png", b"123")}, timeout=60
    )
    assert named.status_code == 200


@pytest.mark.fault("F10", "reads by a foreign page", before="/config and info name any Origin, with credentials")
def test_no_page_of_another_site_may_read_an_answer(
    serve: Callable[..., Site], record_property: Callable[[str, object], None]
) -> None:
    """The framework allowed any Origin where the server is asked by its address, and a kept answer an earlier one."""
    site = serve()
    ours = ("/docs", "/v1/videos", "/readyz", "/assets/x.js", "/gradio_api/file=/etc/passwd", PROGRESS)
    seen: list[str] = []
    answers, caller = 0, requests.Session()
    for host in ("192.168.1.5", "[::1]:8000", "localhost", "127.0.0.1"):
        for origin in ("http://evil.example", "null", "http://localhost:3000", f"http://{host}"):
            login = {"Host": host, "Origin": origin, "Cookie": "a=b", "Authorization": "Bearer x"}
            preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-y"}
            for path in (*OPEN, *ours, "/gradio_api/info", "/gradio_api/queue/status"):
                for method, more in (("GET", {}), ("HEAD", {}), ("OPTIONS", preflight), ("POST", {})):
                    answer = caller.request(method, site.url + path, headers=login | more, json={}, timeout=30)
                    answers += 1
                    seen += [f"{method} {path}: {n}" for n in answer.headers if n.lower().startswith("access-control")]
                    assert "evil" not in str(answer.headers)
    record_property("after", f"{len(seen)} of {answers} answers name one")
    assert seen == []


def test_an_upload_over_the_limit_is_refused(serve: Callable[..., Site]) -> None:
    site = serve(max_body_mb=1)
    answer = requests.post(f"{site.url}/gradio_api/upload", files={"files": ("a.png", b"\0" * 1_500_000)}, timeout=60)
    assert answer.status_code == 413


def test_a_page_of_another_site_cannot_start_a_job(site: Site) -> None:
    answer = requests.post(
        f"{site.url}/gradio_api/run/predict", json={}, headers={"Origin": "http://evil.example"}, timeout=30
    )
    assert answer.status_code == 403


@pytest.mark.parametrize("origin", ["null", "http://evil.example", "http://127.0.0.1:1", "file://"])
def test_no_event_runs_for_a_page_of_another_origin(site: Site, origin: str) -> None:
    """The framework runs whatever is posted to it, also from `Origin: null`."""
    look = every_event(config_of(site))[0]
    body = {"fn_index": look["id"], "session_hash": "abc", "data": []}
    for path in ("/gradio_api/run/predict", "/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/cancel"):
        answer = requests.post(f"{site.url}{path}", json=body, headers={"Origin": origin}, timeout=30)
        assert answer.status_code == 403, path
        crossed = {"Sec-Fetch-Site": "cross-site"}
        assert requests.post(f"{site.url}{path}", json=body, headers=crossed, timeout=30).status_code == 403, path


def test_no_part_of_the_page_is_served_under_a_foreign_name(site: Site) -> None:
    """A name that was made to resolve to this machine (DNS rebinding) would read the page with its own scripts."""
    for path in ("/", "/config", "/theme.css", "/gradio_api/info", "/gradio_api/file=/etc/passwd"):
        for host in ("evil.example", "127.0.0.1.evil.example:80"):
            assert requests.get(f"{site.url}{path}", headers={"Host": host}, timeout=30).status_code == 403, path
    assert requests.get(f"{site.url}/config", timeout=30).status_code == 200


def test_a_chunked_upload_over_the_limit_is_refused_on_the_way(serve: Callable[..., Site]) -> None:
    site = serve(max_body_mb=1)
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'

    def pieces() -> Iterator[bytes]:
        yield head
        for _ in range(30):
            yield b"\0" * 100_000
        yield b"\r\n--x--\r\n"

    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = requests.post(f"{site.url}/gradio_api/upload", data=pieces(), headers=kind, timeout=60)
    assert answer.status_code == 413


def test_the_page_and_the_routes_share_one_engine_one_job_at_a_time(
    serve: Callable[..., Site], open_page: Callable[..., Page]
) -> None:
    """Gradio's own queue knows nothing of the routes: beside ours it would have run two jobs at once."""
    running, most = [0], [0]

    def watch(stage: str, step: int) -> None:
        most[0] = max(most[0], running[0])

    class Counted(FakeEngine):
        def generate(self, *given: Any, **named: Any) -> GenerationResult:
            running[0] += 1
            try:
                return super().generate(*given, **named)
            finally:
                running[0] -= 1

    site = serve(engine=Counted(fault=watch, step_s=0.02))
    page = open_page(site.url)
    fill(page, ASSETS / "coffee.jpg", "from the page")
    photo = base64.b64encode((ASSETS / "coffee.jpg").read_bytes()).decode()
    body = {
        "prompt": "from a route",
        "size": "256x256",
        "num_frames": 8,
        "steps": 20,
        "input_reference": {"image_url": f"data:image/jpeg;base64,{photo}"},
    }
    first = requests.post(f"{site.url}/v1/videos", json=body, timeout=60).json()["id"]
    page.click("#generate")
    expect(page.locator("#stage video")).to_be_visible()
    jobs = site.queue.list(order="asc")
    assert [job.request.prompt for job in jobs] == ["from a route", "from the page"]
    assert jobs[0].id == first
    assert [job.status for job in jobs] == ["completed", "completed"]
    assert most == [1]
    assert all(not dependency["queue"] for dependency in every_event(config_of(site)))


def test_the_pages_scripts_are_kept_by_browsers_and_no_path_leads_out_of_their_folder(site: Site) -> None:
    """Browsers asked for all ninety files again at each visit, and each one was opened in a thread."""
    script = re.search(r"assets/[\w.-]+\.js", requests.get(site.url, timeout=30).text)
    assert script is not None
    answer = requests.get(f"{site.url}/{script[0]}", timeout=30)
    assert answer.status_code == 200
    assert "javascript" in answer.headers["content-type"]
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = requests.get(f"{site.url}/{script[0]}", timeout=30)  # from memory
    assert again.content == answer.content
    own = {"date", "x-request-id"}
    assert {name: again.headers[name] for name in again.headers if name.lower() not in own} == {
        name: answer.headers[name] for name in answer.headers if name.lower() not in own
    }
    for path in ("..%2findex.html", "%2e%2e/%2e%2e/%2e%2e/routes.py", "%2fetc%2fpasswd", "nothing.js", ""):
        answer = requests.get(f"{site.url}/assets/{path}", timeout=30)
        assert answer.status_code == 404, path
        assert SECRET not in answer.text


def test_page_files_pass_the_guards_carry_a_request_id_and_are_counted(site: Site) -> None:
    """The HTTP parser answered those that had been asked for before, past the guards, the log and the metrics."""
    script = re.search(r"assets/[\w.-]+\.js", requests.get(site.url, timeout=30).text)
    assert script is not None

    def ask(**headers: str) -> requests.Response:
        return requests.get(f"{site.url}/{script[0]}", timeout=30, headers=headers)

    def counted() -> float:
        found = re.search(
            r'i2v_http_requests_total{method="GET",route="other",status="200"} (\S+)',
            requests.get(f"{site.url}/metrics", timeout=30).text,
        )
        assert found is not None
        return float(found[1])

    before = counted()
    given = ask(**{"X-Request-Id": "mine"})
    assert (given.status_code, given.headers["x-request-id"]) == (200, "mine")
    assert {"nosniff", "same-origin"} <= set(given.headers.values())
    assert ask().headers["x-request-id"] != ask().headers["x-request-id"]
    assert counted() == before + 3
    assert ask(Host="evil.example").status_code == 403
    assert ask(**{f"X-{n}": "y" for n in range(300)}).status_code == 400
    assert ask(**{f"X-{n}": "y" * 6000 for n in range(11)}).status_code == 400


def test_behind_a_token_the_guards_see_every_request_for_a_script(serve: Callable[..., Site]) -> None:
    token = "a-token-of-some-length"
    site = serve(api_token=token)
    known = {"headers": {"Authorization": f"Bearer {token}"}, "timeout": 30}
    script = re.search(r"assets/[\w.-]+\.js", requests.get(site.url, **known).text)
    assert script is not None
    for _ in range(2):
        assert requests.get(f"{site.url}/{script[0]}", **known).status_code == 200
        assert requests.get(f"{site.url}/{script[0]}", timeout=30).status_code == 401


def test_the_page_and_its_scripts_are_sent_compressed_to_those_who_take_it(site: Site) -> None:
    script = re.search(r"assets/[\w.-]+\.js", requests.get(site.url, timeout=30).text)
    assert script is not None
    for path in ("/", "/config", "/theme.css", "/" + script[0]):
        requests.get(site.url + path, timeout=30)  # the framework's own first answer
        plain = requests.get(site.url + path, timeout=30, headers={"Accept-Encoding": "identity"})
        refused = requests.get(site.url + path, timeout=30, headers={"Accept-Encoding": "gzip;q=0, br"})
        packed = requests.get(site.url + path, timeout=30, headers={"Accept-Encoding": "br, gzip"})
        assert "content-encoding" not in plain.headers
        assert "content-encoding" not in refused.headers
        assert packed.headers["content-encoding"] == "gzip"
        assert plain.content == refused.content == packed.content
        assert int(packed.headers["content-length"]) < len(packed.content)
        assert {answer.headers["vary"] for answer in (plain, packed)} == {"accept-encoding"}
        assert plain.headers["content-type"] == packed.headers["content-type"]
    head = requests.head(f"{site.url}/{script[0]}", timeout=30)
    assert (head.status_code, head.content) == (200, b"")


def test_a_visitors_session_describes_no_component_and_the_page_still_does(site: Site) -> None:
    app = mount_ui(create_app(site.settings, site.queue), site.settings, site.queue)
    blocks = blocks_of(app)
    session = SessionState(blocks)
    assert len(session.config_values) > 50
    assert not any(session.config_values.values())
    assert all(part["props"] for part in blocks.get_config_file()["components"])


def test_remembered_signatures_are_those_of_the_components() -> None:
    with gr.Blocks() as blocks:
        shown = gr.HTML("x", elem_id="y")
    before = shown.get_config()
    natural = inspect.signature(gr.HTML.__init__)
    remember_signatures(blocks)
    assert inspect.signature(gr.HTML.__init__) == natural
    assert shown.get_config() == before
    assert gr.HTML("z").value == "z"


def test_a_kept_page_is_the_same_for_its_address_and_another_for_another(site: Site) -> None:
    """The framework took 6.8 ms of a running job's interpreter for each `/` and 5.8 for each `/config`."""
    for path in ("/", "/config"):
        answers = [requests.get(site.url + path, timeout=30) for _ in range(3)]
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.text for answer in answers}) == 1
        assert [answer.raw.headers.getlist("x-request-id") for answer in answers] == [
            [answer.headers["x-request-id"]] for answer in answers
        ]
        assert len({answer.headers["x-request-id"] for answer in answers}) == 3
    other = requests.get(f"{site.url}/config", timeout=30, headers={"X-Forwarded-Proto": "https"}).json()
    assert other["root"] != requests.get(f"{site.url}/config", timeout=30).json()["root"]


def test_an_answer_that_is_not_whole_or_sets_a_cookie_is_not_kept() -> None:
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]}
    body = {"type": "http.response.body", "body": b"x"}
    assert may_be_kept([start, body])
    assert not may_be_kept([start, {**body, "more_body": True}])
    assert not may_be_kept([{**start, "status": 503}, body])
    assert not may_be_kept([{**start, "headers": [(b"set-cookie", b"a=b")]}, body])
    assert not may_be_kept([{**start, "headers": [(b"content-encoding", b"br")]}, body])
    assert not may_be_kept([])


def test_uploads_lie_where_only_this_server_reads_them(site: Site) -> None:
    """Uploads lay in one folder for the whole machine; another server that stopped removed them."""
    answer = requests.post(f"{site.url}/gradio_api/upload", files={"files": ("a.png", b"123")}, timeout=60)
    folder = Path(answer.json()[0]).parent.parent
    assert folder.name.startswith("i2v-uploads-")
    assert folder.stat().st_mode & 0o077 == 0


def test_a_mount_with_an_open_door_is_not_served(site: Site) -> None:
    app = mount_ui(create_app(site.settings, site.queue), site.settings, site.queue)
    blocks = blocks_of(app)
    check_closed(blocks)
    blocks.has_launched = False
    with pytest.raises(RuntimeError, match="not mounted"):
        check_closed(blocks)


def test_errors_hold_no_traceback_and_no_path(site: Site) -> None:
    for dependency in every_event(config_of(site)):
        answer = post_event(site, dependency, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}})
        assert "Traceback" not in answer.text
        assert "/etc/passwd" not in json.dumps(answer.json().get("error"))


def test_the_page_asks_no_other_machine_for_anything(site: Site, open_page: Callable[..., Page]) -> None:
    page = open_page(site.url)
    expect(page.locator("#banner .banner")).to_be_visible()
    found = page.evaluate(
        "() => [...document.querySelectorAll('link[href], script[src], img[src]')].map(e => e.href || e.src)"
    )
    assert [address for address in found if not address.startswith((site.url, "data:", "blob:"))] == []
    style = requests.get(f"{site.url}/theme.css", timeout=30).text
    assert not re.search(r"@import|url\(\s*['\"]?https?:", style)


INTRUDE = """() => {
  const blocked = [];
  document.addEventListener('securitypolicyviolation', (event) => blocked.push(event.violatedDirective));
  const add = (name, what) => document.body.append(Object.assign(document.createElement(name), what));
  add('script', {textContent: 'window.intruded = true'});
  add('script', {src: 'http://other.example/x.js'});
  add('img', {src: 'http://other.example/x.png'});
  add('iframe', {src: 'http://other.example/'});
  add('object', {data: 'http://other.example/x'});
  add('link', {rel: 'stylesheet', href: 'http://other.example/x.css'});
  fetch('http://other.example/').catch(() => null);
  return new Promise((done) => {
    const look = () => blocked.length < 7 ? setTimeout(look, 50) : done([blocked.sort(), window.intruded ?? false]);
    look();
  });
}"""


@pytest.mark.fault("CSP", "a script or an address that is not the page's", before="runs, and is asked")
def test_the_browser_runs_and_loads_for_the_page_what_is_its_own(
    site: Site, browser: Browser, record_property: Callable[[str, object], None]
) -> None:
    """That it blocks nothing which the page needs, all other tests in the browser say."""
    page = browser.new_page()
    page.goto(site.url)
    page.locator("#stage .stage").wait_for()
    blocked, intruded = page.evaluate(INTRUDE)
    page.close()
    record_property("after", f"{len(blocked)} blocked: {', '.join(blocked)}")
    assert not intruded
    assert blocked == [
        *("connect-src", "frame-src", "img-src", "object-src", "script-src-elem", "script-src-elem", "style-src-elem")
    ]


def test_every_answer_has_a_policy_that_names_no_other_origin(site: Site) -> None:
    paths = ("/", "/docs", "/v1/videos", "/nothing", "/config", "/theme.css", "/assets/x.js", "/livez", "/openapi.json")
    for path in paths:
        policy = requests.get(site.url + path, timeout=30).headers["content-security-policy"]
        assert policy.startswith("default-src 'none'"), path
        assert "frame-ancestors 'self'" in policy
        assert not re.search(r"https?:|\*", policy)
    page = requests.get(site.url, timeout=30).headers["content-security-policy"]
    assert "'unsafe-inline'" not in page.partition("style-src")[0]


def test_importing_the_page_leaves_the_environment_alone() -> None:
    import subprocess
    import sys

    code = (
        "import os, sys; before = dict(os.environ); import i2v.ui.mount.mounting; assert dict(os.environ) == before; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


@pytest.mark.fault("F22", "gzip;q=0.0", before="gzip")
@pytest.mark.parametrize(
    ("value", "taken"),
    [
        ("gzip", True),
        ("br, GZIP ; q=0.001", True),
        ("x-gzip;q=1", True),
        ("gzip;q=0", False),
        ("gzip;q=0.0", False),
        ("gzip; Q = 0.000", False),
        ("deflate, gzip ;q=0., *", False),
        ("*;q=0", False),
        ("*", False),
        ("identity", False),
        ("gzipped", False),
        ("", False),
    ],
)
def test_gzip_is_sent_to_those_who_take_it(value: str, taken: bool, record_property: Any) -> None:
    assert takes_gzip([(b"accept-encoding", value.encode())]) is taken
    assert takes_gzip([(b"accept-encoding", b"br"), (b"accept-encoding", value.encode())]) is taken
    record_property("after", f"{value!r}: {'gzip' if taken else 'not packed'}")
