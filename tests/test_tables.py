"""The tables at the end of a run: what a test of a fault has to say, and how the rows stand."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

TESTS = """
import pytest

@pytest.mark.fault("F10", "a | b", before="three")
def test_says(record_property):
    record_property("after", f"{1 + 1} now")

@pytest.mark.fault("F2", "silent", before="one")
def test_says_nothing():
    pass

@pytest.mark.fault("F2", "broken", before="one")
def test_fails(record_property):
    record_property("after", "half")
    assert False
"""


def test_a_fault_whose_test_says_nothing_fails_and_the_rows_are_in_order(tmp_path: Path) -> None:
    (tmp_path / "test_faults.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-c", str(ROOT / "pyproject.toml")]
    command += ["--rootdir", str(tmp_path), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    rows = [line for line in done.stdout.splitlines() if line.startswith("| F")]
    assert rows == [
        "| F2 | silent | one | failed | test_says_nothing |",
        "| F2 | broken | one | half | test_fails |",
        "| F10 | a / b | three | 2 now | test_says |",
    ]
    assert "a test of a fault says what it saw" in done.stdout
    assert "2 failed, 1 passed" in done.stdout
