"""The documents against the code: they fail when a setting, route, error code, command or flag is missing or gone."""

import ast
import contextlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.routing import Route

from i2v import errors, flags
from i2v.cli.commands import app
from i2v.engine.fake import FakeEngine
from i2v.errors import I2VError
from i2v.jobs.queue import JobQueue
from i2v.mutex import GpuMutex
from i2v.server import app as server_app
from i2v.server import protocol
from i2v.server.video_object import VideoObject
from i2v.server.video_request import CREATE_VIDEO
from i2v.settings import Settings
from i2v.video import probe
from tests.conftest import ASSETS, ROOT

DOCS = ROOT / "docs"
API = (DOCS / "api.md").read_text()
OPERATIONS = (DOCS / "operations.md").read_text()
ARCHITECTURE = (DOCS / "architecture.md").read_text()
TEXTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]


def rows(text: str) -> dict[str, str]:
    """Table rows by the code word of their first cell."""
    found = {}
    for line in text.splitlines():
        if match := re.match(r"\| `([^`]+)`", line):
            found[match.group(1)] = line
    return found


def section(text: str, heading: str) -> str:
    """The text below a heading, up to the next one of the same level."""
    level = heading.split()[0]
    _, found, rest = text.partition(f"\n{heading}\n")
    assert found, heading
    return re.split(rf"\n{level} ", rest)[0]


# Settings


def settings() -> Iterator[tuple[str, Any]]:
    for name, field in Settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from ((f"{name}.{inner}", inner_field) for inner, inner_field in kind.model_fields.items())
        else:
            yield name, field


def test_every_setting_has_a_row_with_its_default_variable_and_flag() -> None:
    table = rows(section(OPERATIONS, "## Settings"))
    assert set(table) == {name for name, _ in settings()}
    options = {".".join(flag.path): flag.option for flag in flags.flags()}
    for name, field in settings():
        variable = "I2V_" + name.replace(".", "__").upper()
        assert f"`{variable}`" in table[name]
        assert f"`{options[name]}`" in table[name] if name in options else "no flag" in table[name]
        assert f"| {shown(field.default)} |" in table[name], name


def shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if default in (None, (), ""):
        return "none"
    return ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)


# Routes and errors


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """path -> methods, as the application declares them; what it mounts for 404 and 405 is left out."""
    settings = Settings(outputs=tmp_path_factory.mktemp("outputs"), model="fake")
    queue = JobQueue(settings)
    queue.attach(FakeEngine(), GpuMutex())
    app = server_app.create_app(settings, queue)
    declared = [*app.routes, *(route for router in server_app._ROUTERS for route in router.routes)]
    found: dict[str, set[str]] = {}
    for route in declared:
        if isinstance(route, APIRoute) or (isinstance(route, Route) and route.path == "/openapi.json"):
            found.setdefault(route.path, set()).update(route.methods or ())
    return found


def test_every_route_is_in_the_contract_with_its_methods(routes: dict[str, set[str]]) -> None:
    assert "/api/predict/" in routes
    for path, methods in routes.items():
        plain = path.replace(":path}", "}")
        for method in methods - {"HEAD"}:
            assert f"`{method} {plain}`" in API, f"{method} {plain}"


def test_the_contract_names_no_route_that_is_gone(routes: dict[str, set[str]]) -> None:
    known = {f"{method} {path.replace(':path}', '}')}" for path, methods in routes.items() for method in methods}
    for named in re.findall(r"`((?:GET|POST|DELETE|PUT|PATCH) /[^`?]*)", API):
        assert named.strip() in known | {"GET /"}, named


def error_classes(root: type[I2VError] = I2VError) -> Iterator[type[I2VError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ in (errors.__name__, protocol.__name__):
            yield from error_classes(child)


def test_every_error_code_is_in_the_contract_with_its_status() -> None:
    table = rows(section(API, "## Errors"))
    for kind in error_classes():
        assert kind.code in table, kind
        assert f"| {kind.status} |" in table[kind.code], kind
    assert set(table) == {kind.code for kind in error_classes()}


def test_the_contract_lists_exactly_the_fields_of_a_video_request() -> None:
    part = section(API, "## 2. `/v1/videos`").partition("Fields of a new video.")[2].partition("Unknown fields")[0]
    assert set(rows(part)) == set(CREATE_VIDEO.model_fields)


def test_the_contract_lists_exactly_the_fields_of_a_video_object() -> None:
    part = section(API, "## 2. `/v1/videos`").partition("The object that comes back:")[2]
    cells = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
    assert {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)} == set(VideoObject.model_fields)


def test_the_ranges_in_the_contract_are_the_ones_that_are_checked() -> None:
    limits = Settings().limits
    table = rows(section(API, "## 1. `POST /api/predict/`"))
    for name in ("num_frames", "fps", "steps", "guidance_scale"):
        low, high = limits.range(name)
        assert f"{low} to {high}" in table[name], name
    assert ", ".join(map(str, limits.resolutions)) in table["resolution"]


def says(path: Path, word: str) -> bool:
    """Whether a file has the word as a name, an attribute, a parameter or a whole text, or as a key of its table."""
    if path.suffix == ".yaml":
        return word in yaml.safe_load(path.read_text(encoding="utf-8"))
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=name):
                found = name == word
            case ast.Constant(value=value):
                found = value == word
            case _:
                found = False
        if found:
            return True
    return False


def test_four_files_carry_a_field_of_a_request_and_the_architecture_lists_all_that_name_it() -> None:
    part = section(ARCHITECTURE, "## A new request field")
    carried, _, used = part.partition("A field that *does* something")
    assert len(rows(carried)) <= 4
    package = ROOT / "i2v"
    files = [*package.rglob("*.py"), *package.rglob("*.yaml")]
    naming = {path.relative_to(package).as_posix() for path in files if says(path, "preset")}
    assert set(rows(carried)) | set(rows(used)) == naming
    assert not set(rows(carried)) & set(rows(used))


def test_every_metric_is_in_the_operations_guide(tmp_path: Path) -> None:
    settings = Settings(outputs=tmp_path, model="fake")
    queue = JobQueue(settings)
    queue.attach(FakeEngine(), GpuMutex())
    queue.start()
    try:
        app = server_app.create_app(settings, queue, start_queue=False)
        text = app.state.context.metrics.render().decode()
    finally:
        queue.stop()
    names = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    names = {name for name in names if not name.endswith("_created")}
    assert names
    for name in names:
        assert f"`{name}`" in OPERATIONS, name


# Command line


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each command of `i2v` with its own options: those that are no setting of the server."""
    setting_options = {flag.option for flag in flags.flags()} | set(flags.SHORTER.values())
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        found = []
        for parameter in command.params:
            options = [option for option in parameter.opts if option.startswith("--")]
            found += [option for option in options if option not in setting_options and option != "--help"]
        yield name, found


def test_every_command_and_its_flags_are_in_the_operations_guide() -> None:
    text = section(OPERATIONS, "## Command line")
    for name, options in commands():
        part = section("\n" + text, f"### `i2v {name}`")
        for option in options:
            assert f"`{option}`" in part or f"`{option} " in part, f"{name} {option}"


def test_the_operations_guide_names_no_command_that_is_gone() -> None:
    named = set(re.findall(r"^### `i2v (\w+)`", OPERATIONS, re.MULTILINE))
    assert named == {name for name, _ in commands()}


# The text itself


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_and_their_anchors_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        found = (path.parent / name) if name else path
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, target


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_python_examples_are_python_and_import_what_exists(path: Path) -> None:
    for block in python_blocks(path):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("i2v"):
                module = __import__(str(node.module), fromlist=["x"])
                for alias in node.names:
                    assert hasattr(module, alias.name), alias.name


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(path: Path) -> None:
    for name in re.findall(r"`((?:i2v|tools|scripts|configs|docs|tests|bench|\.ci)/[\w./-]+)`", path.read_text()):
        assert (ROOT / name).exists(), name


def layout() -> list[str]:
    """The paths that the tree of the architecture names; those of folders end in a slash."""
    folders: list[str] = []
    found = []
    for line in section(ARCHITECTURE, "## Layout").split("```")[1].strip("\n").splitlines():
        name, _, what = line.strip().partition(" ")
        assert what.strip(), line
        del folders[(len(line) - len(line.lstrip())) // 2 :]
        found.append("".join(folders) + name)
        if name.endswith("/"):
            folders.append(name)
    return found


def test_the_layout_has_a_line_for_each_file_and_none_for_another() -> None:
    """An `__init__.py` is the line of its folder."""
    named = layout()
    assert len(set(named)) == len(named)
    assert [name for name in named if not (ROOT / name).exists() or (ROOT / name).is_dir() != name.endswith("/")] == []
    files = [path for folder in ("i2v", "tools", "bench") for path in (ROOT / folder).rglob("*.py")]
    files += [path for path in (ROOT / "scripts").iterdir() if path.is_file()]
    there = {path.relative_to(ROOT).as_posix().removesuffix("__init__.py") for path in files}
    assert there - set(named) == set()


def functions(tree: ast.Module) -> Iterator[str]:
    """Names of the functions, classes and methods of a file, as `Class.method`."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{one.name}" for one in node.body if hasattr(one, "name"))


def test_each_hop_of_a_request_is_a_function_that_exists() -> None:
    hops = re.findall(r"^\| \d+ \| `([\w/.]+)` `([\w.]+)` \|", ARCHITECTURE, re.MULTILINE)
    assert len(hops) > 20
    for file, name in hops:
        assert name in set(functions(ast.parse((ROOT / "i2v" / file).read_text()))), f"{file}: {name}"


def test_the_changelog_has_an_unreleased_heading() -> None:
    assert "\n## Unreleased\n" in (ROOT / "CHANGELOG.md").read_text()


# The examples, against a real server


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


EXAMPLES = [
    (path, number) for path in (ROOT / "README.md", DOCS / "api.md") for number in range(len(python_blocks(path)))
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with the fake engine."""
    folder = tmp_path_factory.mktemp("server")
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "server.py"), "--model", "fake", "--no-ui", "--port", "0"],
            cwd=folder,
            stderr=file,
        )
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"ready at (\S+)", log.read_text())):
            with contextlib.suppress(subprocess.TimeoutExpired):
                pytest.fail(f"the server ended with code {process.wait(0.1)}: {log.read_text()}")
            assert time.monotonic() < deadline, log.read_text()
        yield found.group(1)
    finally:
        process.terminate()
        process.wait(60)
        print(log.read_text())  # shown where a test has failed


def prepared(folder: Path, text: str, server: str) -> str:
    """An example as a reader would run it: with a photo of that name, and the server's address."""
    (folder / "photo.jpg").write_bytes((ASSETS / "coffee.jpg").read_bytes())
    return text.replace("http://127.0.0.1:7860", server)


@pytest.mark.parametrize(("path", "number"), EXAMPLES, ids=lambda part: getattr(part, "name", part))
@pytest.mark.slow
def test_python_examples_run(path: Path, number: int, server: str, tmp_path: Path) -> None:
    code = prepared(tmp_path, python_blocks(path)[number], server)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    if "video.mp4" in code:
        assert probe(tmp_path / "video.mp4").frames >= 16


@pytest.mark.slow
def test_command_line_examples_run(server: str, tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    (line,) = re.findall(r"^i2v (generate .* --url .*)$", text, re.MULTILINE)
    for command in (line, "inspect video.mp4"):
        done = subprocess.run(
            [sys.executable, "-m", "i2v", *shlex.split(prepared(tmp_path, command, server))],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
    assert "the scene at sunset" in done.stdout


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
