"""What the framework leaves open by default stays closed: files of the machine, foreign pages, foreign machines."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Page, expect

from i2v.server.app import create_app
from i2v.ui import mount_ui
from i2v.ui.app import check_closed
from tests.conftest import ROOT
from tests.ui.conftest import Site

SECRET = "root:x:0:0"


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
        assert post_event(site, dependency, value).status_code == 500
    assert requests.get(f"{site.url}/livez", timeout=30).status_code == 200


def test_no_path_of_the_machine_is_served(site: Site) -> None:
    (site.settings.outputs / "secret.txt").write_text(SECRET)
    for path in ("/etc/passwd", str(site.settings.outputs / "jobs.sqlite3"), str(site.settings.outputs / "secret.txt")):
        assert requests.get(f"{site.url}/gradio_api/file={path}", timeout=30).status_code in (403, 404)


def test_an_upload_over_the_limit_is_refused(serve: Callable[..., Site]) -> None:
    site = serve(max_body_mb=1)
    answer = requests.post(f"{site.url}/gradio_api/upload", files={"files": ("a.png", b"\0" * 1_500_000)}, timeout=60)
    assert answer.status_code == 413


def test_a_page_of_another_site_cannot_start_a_job(site: Site) -> None:
    answer = requests.post(
        f"{site.url}/gradio_api/run/predict", json={}, headers={"Origin": "http://evil.example"}, timeout=30
    )
    assert answer.status_code == 403


def test_uploads_lie_where_only_this_server_reads_them(site: Site) -> None:
    """Uploads lay in one folder for the whole machine; another server that stopped removed them."""
    answer = requests.post(f"{site.url}/gradio_api/upload", files={"files": ("a.png", b"123")}, timeout=60)
    folder = Path(answer.json()[0]).parent.parent
    assert folder.name.startswith("i2v-uploads-")
    assert folder.stat().st_mode & 0o077 == 0


def test_a_mount_with_an_open_door_is_not_served(site: Site) -> None:
    app = mount_ui(create_app(site.settings, site.queue), site.settings, site.queue)
    blocks = app.routes[-1].app.get_blocks()  # type: ignore[attr-defined]
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


def test_importing_the_page_leaves_the_environment_alone() -> None:
    import subprocess
    import sys

    code = (
        "import os, sys; before = dict(os.environ); import i2v.ui; assert dict(os.environ) == before; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
