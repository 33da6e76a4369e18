"""What every test shares: a clean environment, real photos, the repository root."""

import gc
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

# Read when torch is first imported, by this process and by the servers that tests start: one thread each, since
# test processes share the cores, and none that spins while it waits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A developer's own I2V_* variables must not change what a test or a server that a test starts sees.
for name in [name for name in os.environ if name.upper().startswith("I2V_")]:
    del os.environ[name]

# A runner in the background of a shell, or under nohup, ignores these signals, and so would every server it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "tests" / "assets"
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")


def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores, five at most: tests wait for clocks and other programs for a quarter of
    their time.
    """
    return min(5, (os.cpu_count() or 1) + 1)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first, so that no test process is left alone with one at the end."""
    items.sort(key=lambda item: not any(item.get_closest_marker(name) for name in ("slow", "browser")))


# What the libraries made when they were imported, 740,000 objects in each test process, stays to the end: the garbage
# collector looks through it neither meanwhile nor later. Tests of the routes take a sixth less time.
gc.disable()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """What a test of a fault has recorded as `after` goes into the table; without it the test fails."""
    report = yield
    if call.when == "call" and (marker := item.get_closest_marker("fault")):
        name, case = marker.args
        after = dict(item.user_properties).get("after")
        if report.passed and not after:
            report.outcome, report.longrepr = (
                "failed",
                'a test of a fault says what it saw: record_property("after", ...)',
            )
        report.user_properties.append(("fault", (name, case, marker.kwargs["before"], after or report.outcome)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The tables that tests have recorded are printed, though the tests passed."""
    faults: list[tuple[str, ...]] = []
    groups: list[tuple[str, ...]] = []
    for report in [report for outcome in ("passed", "failed", "") for report in terminalreporter.getreports(outcome)]:
        for name, value in report.user_properties:
            if name == "table" and report.when == "call":
                terminalreporter.section(report.nodeid)
                terminalreporter.write_line(value)
            elif name == "fault" and report.when == "call":
                faults.append((*value, report.nodeid.partition("::")[2]))
            elif name == "group" and report.when == "teardown":
                groups.extend(value)
    print_table(terminalreporter, "what each group of attacks left of the server", GROUP, sorted(groups))
    print_table(terminalreporter, "faults that an attack had found", FAULT, sorted(faults, key=by_number))


FAULT = ("fault", "case", "before", "after", "test")
GROUP = ("group", "requests", "memory MB", "descriptors", "processes", "temporary files", "log kB")


def by_number(row: tuple[str, ...]) -> list[int | str]:
    """F2 stands before F10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", row[0])]


def print_table(terminal: pytest.TerminalReporter, title: str, head: tuple[str, ...], rows: list) -> None:
    """As Markdown; nothing where no test has recorded a row."""
    if rows:
        terminal.section(title)
        for row in (head, ("---",) * len(head), *rows):
            terminal.write_line("| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |")


@pytest.fixture
def photo() -> Image.Image:
    """A real 640x480 RGB photo that no model here was trained on."""
    return Image.open(ASSETS / "coffee.jpg").convert("RGB")
