"""The import rules of docs/architecture.md, read from the syntax tree of every file of the package."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "i2v"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
HEAVY = ("torch", "gradio", "diffusers", "transformers")


def imports(path: Path) -> list[tuple[str, int]]:
    return list(imported(path.read_text(encoding="utf-8"), ".".join(path.relative_to(ROOT).with_suffix("").parts)))


def imported(source: str, module: str) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of each import in `source`, inside functions too; `from a import b` gives `a` and `a.b`.

    Imports for types alone (`if TYPE_CHECKING`) do not count.
    """
    for node in _nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            name = ".".join([*base, *filter(None, [node.module])])
            yield name, node.lineno
            yield from ((f"{name}.{alias.name}", node.lineno) for alias in node.names)


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield node
            yield from _nodes(node)


def breaches(files: list[Path], forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for name, line in imports(path)
        if any(name == one or name.startswith(f"{one}.") for one in forbidden)
    ]


def under(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in FILES if (PACKAGE / folder) in path.parents]
    assert found, folders
    return found


def test_the_engine_knows_nothing_of_http_jobs_or_pages() -> None:
    forbidden = ("fastapi", "starlette", "uvicorn", "gradio", "sqlalchemy", "i2v.jobs", "i2v.server", "i2v.ui")
    assert breaches(under("engine"), forbidden) == []


def test_server_and_page_never_import_torch() -> None:
    assert breaches(under("server", "ui"), ("torch", "diffusers", "transformers", "safetensors")) == []


def test_jobs_are_handed_an_engine_and_import_none() -> None:
    """The worker may name the interface's types; neither an engine nor torch."""
    allowed = {"i2v.engine.interface", "i2v.mutex"}
    engine = {f"i2v.engine.{path.stem}" for path in under("engine")} - allowed
    assert breaches(under("jobs"), (*sorted(engine), "torch", "fastapi", "gradio", "i2v.server", "i2v.ui")) == []


def test_the_client_can_be_copied_away_as_one_file() -> None:
    assert breaches([PACKAGE / "client.py"], ("i2v",)) == []


def test_the_launcher_stays_small() -> None:
    """It lives as long as the server, beside it."""
    allowed = {"i2v.errors", "i2v.flags", "i2v.settings", "i2v.request"}
    names = {name for name, _ in imports(PACKAGE / "launcher.py") if name.startswith("i2v.")}
    modules = {".".join(name.split(".")[:2]) for name in names}
    assert modules <= allowed


# Files that touch the environment for a library that takes something from nowhere else, or to hand it on whole.
ENVIRONMENT = {
    "i2v/settings.py": "the settings themselves",
    "i2v/launcher.py": "hands its own environment on to the server",
    "i2v/loading.py": "how OpenMP's threads wait, which is fixed when torch is imported",
    "i2v/ui/mount/uploads.py": "Gradio's folder for uploads",
}


def test_only_the_settings_read_the_environment() -> None:
    readers = []
    for path in FILES:
        if str(path.relative_to(ROOT)) in ENVIRONMENT or "train" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
                readers.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert readers == []


@pytest.mark.parametrize("name", sorted(set(ENVIRONMENT) - {"i2v/settings.py"}))
def test_no_other_file_reads_a_setting_of_ours(name: str) -> None:
    strings = [node.value for node in ast.walk(ast.parse((ROOT / name).read_text())) if isinstance(node, ast.Constant)]
    assert not [text for text in strings if isinstance(text, str) and text.startswith("I2V_")]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import torch", "torch"),
        ("import torch.nn as nn", "torch.nn"),
        ("from torch import nn", "torch.nn"),
        ("def f():\n    if True:\n        import torch", "torch"),
        ("try:\n    import torch\nexcept ImportError:\n    pass", "torch"),
        ("from ..jobs import queue", "i2v.jobs.queue"),
        ("from . import memory", "i2v.engine.memory"),
    ],
)
def test_the_rules_see_every_form_of_import(source: str, name: str) -> None:
    """A reader that sees nothing would let every rule pass."""
    assert name in dict(imported(source, "i2v.engine.here"))


def test_imports_for_types_alone_do_not_count() -> None:
    assert not list(imported("if TYPE_CHECKING:\n    import torch", "i2v.engine.here"))


@pytest.mark.parametrize("module", ["i2v", "i2v.settings", "i2v.flags", "i2v.request", "i2v.errors", "i2v.client"])
def test_importing_loads_neither_torch_nor_gradio_and_makes_nothing(module: str, tmp_path: Path) -> None:
    code = (
        f"import {module}, sys, threading; "
        f"print([name for name in {HEAVY!r} if name in sys.modules], threading.active_count())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(tmp_path), "I2V_BOGUS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[] 1"
    assert list(tmp_path.iterdir()) == []
