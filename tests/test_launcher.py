"""start_app.sh, scripts/install and the launcher, driven as a user would: real processes, a stub `server.py`."""

import base64
import io
import os
import re
import shutil
import signal
import site
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import httpx
import psutil
import pytest

from i2v import __version__, launcher
from i2v.cli import doctor, preflight
from i2v.cli.doctor import Check
from i2v.errors import EXIT_RESTART
from i2v.settings import Settings, load_settings
from tests.conftest import ASSETS, ROOT

DEADLINE_S = 120
STUB = """
import json, pathlib, signal, sys, time
here = pathlib.Path(__file__).parent
starts = here / "starts"
count = len(starts.read_text().splitlines()) if starts.exists() else 0
with starts.open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
print(f"stub server, start {count + 1}")
codes = (here / "codes").read_text().split()
if codes[count] == "stay":
    print("stub server is up")
    while True:
        time.sleep(0.05)
sys.exit(int(codes[count]))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An active environment in which i2v and what it needs are importable, made without installing anything."""
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, with_pip=False, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (packages / "here.pth").write_text("\n".join([str(ROOT), *site.getsitepackages()]) + "\n")
    return folder


def make_checkout(folder: Path) -> Path:
    """What start_app.sh needs of a checkout, in a folder with a space in its name, and a server that only notes."""
    folder.mkdir()
    for name in ("start_app.sh", "scripts/install", "scripts/environment.sh", "pyproject.toml", "constraints.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "server.py").write_text(STUB)
    (folder / "codes").write_text("0")
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "a checkout")


class Started:
    """A running start_app.sh; output is collected by `until`."""

    def __init__(self, checkout: Path, environment: Path, *flags: str, **variables: str) -> None:
        self.text = ""
        self.process = subprocess.Popen(
            ["bash", str(checkout / "start_app.sh"), "--model", "fake", *flags],
            cwd=checkout.parent,  # not the checkout: the command must work from anywhere
            env=os.environ | {"VIRTUAL_ENV": str(environment)} | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def until(self, wanted: str) -> str:
        deadline = time.monotonic() + DEADLINE_S
        assert self.process.stdout is not None
        while wanted not in self.text and time.monotonic() < deadline:
            line = self.process.stdout.readline()
            if not line:
                break
            self.text += line
        assert wanted in self.text, self.text
        return self.text

    def end(self) -> int:
        rest, _ = self.process.communicate(timeout=DEADLINE_S)
        self.text += rest
        return self.process.returncode

    def server(self) -> psutil.Process:
        found = [child for child in psutil.Process(self.process.pid).children() if "server.py" in child.cmdline()[1]]
        assert len(found) == 1
        return found[0]


@pytest.fixture
def start(checkout: Path, environment: Path) -> Iterator[type[Started]]:
    running: list[Started] = []

    def begin(*flags: str, **variables: str) -> Started:
        running.append(Started(checkout, environment, *flags, **variables))
        return running[-1]

    yield begin
    for one in running:
        if one.process.poll() is None:
            one.process.terminate()
        one.process.communicate(timeout=DEADLINE_S)


def starts(checkout: Path) -> list[str]:
    return (checkout / "starts").read_text().splitlines()


def free_port() -> int:
    return launcher.free_port("127.0.0.1")


@pytest.fixture(scope="module")
def plain(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Started, list[str]]:
    """One whole start that several tests look at: its checkout, what it showed, the environment's files before it.

    Its server asks to be started again and then ends with a code of its own.
    """
    files = sorted(path.name for path in environment.rglob("*"))
    checkout = make_checkout(tmp_path_factory.mktemp("plain") / "a checkout")
    (checkout / "codes").write_text(f"{EXIT_RESTART} 7")
    started = Started(checkout, environment, "--port", "0", "--queue-length", "3")
    started.end()
    return checkout, started, files


@pytest.mark.slow
def test_a_start_prints_one_line_for_each_check_and_the_addresses(plain) -> None:
    _, started, _ = plain
    marks = re.findall(r"^\[(SUCCESS|ERROR|WARNING)\] (\w+):", started.text, re.MULTILINE)
    assert {mark for mark, _ in marks} == {"SUCCESS"}
    assert {"log", "python", "torch", "device", "ffmpeg", "outputs", "disk", "model", "port"} <= {n for _, n in marks}
    assert re.search(r"^\[INFO\] address: http://127.0.0.1:\d+$", started.text, re.MULTILINE)


@pytest.mark.slow
def test_every_line_of_a_start_has_a_mark_but_the_title(plain) -> None:
    _, started, _ = plain
    marked = re.compile(r"\[(SUCCESS|INFO|WARNING)\] \S")
    unmarked = [line for line in started.text.splitlines() if not marked.match(line)]
    assert [line.strip("= ") for line in unmarked] == [
        "",
        f"i2v {__version__}: image to video with I2VGen-XL",
        "",
        "stub server, start 1",
        "stub server, start 2",
    ]


@pytest.mark.slow
def test_exit_code_86_starts_the_server_again_with_the_same_flags_and_port(plain) -> None:
    checkout, started, _ = plain
    assert started.process.returncode == 7, "another code ends the launcher, and is its own"
    assert started.text.count("stub server, start") == 2
    first, second = starts(checkout)
    assert first == second
    assert first.startswith('["--model", "fake", "--port", "0", "--queue-length", "3", "--port", "')
    assert re.search(r'"--port", "[1-9]\d+"\]', first), "the launcher chose the port"


@pytest.mark.slow
def test_everything_shown_is_in_a_log_file_of_its_own(plain) -> None:
    checkout, started, _ = plain
    (log,) = (checkout / "logs").glob("app_*.log")
    assert re.fullmatch(r"app_\d{8}_\d{6}\.log", log.name)
    assert "stub server, start 1" in log.read_text()
    assert log.read_text() == started.text


@pytest.mark.slow
def test_nothing_is_installed_into_an_active_environment_that_has_i2v(plain, environment: Path) -> None:
    _, started, files = plain
    assert "installing" not in started.text
    assert sorted(path.name for path in environment.rglob("*")) == files


@pytest.mark.slow
def test_a_busy_port_names_the_process_to_stop(start, checkout: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        started = start("--port", str(port))
        assert started.end() == 2
    assert f"[ERROR] port: port {port} is held by process {os.getpid()} (" in started.text
    assert f"kill {os.getpid()}" in started.text
    assert not (checkout / "starts").exists()


@pytest.mark.slow
def test_a_stop_signal_ends_launcher_and_server(start, checkout: Path) -> None:
    """Ctrl-C on the real server: `test_one_command_leads_to_a_video_and_ctrl_c_ends_it_all`."""
    (checkout / "codes").write_text("stay")
    started = start("--port", "0")
    started.until("stub server is up")
    server = started.server()
    started.process.send_signal(signal.SIGTERM)
    assert started.end() == 0
    assert not server.is_running()


@pytest.mark.slow
def test_a_server_whose_launcher_is_killed_ends_too(start, checkout: Path) -> None:
    """A launcher killed with -9 used to leave its server on the port, in nobody's hands."""
    (checkout / "codes").write_text("stay")
    started = start("--port", "0")
    started.until("stub server is up")
    server = started.server()
    started.process.kill()
    server.wait(timeout=DEADLINE_S)


@pytest.mark.slow
def test_a_variable_and_a_file_decide_the_port_as_they_do_for_the_server(start, checkout: Path) -> None:
    (checkout / "my.yaml").write_text("port: 1\nhost: 127.0.0.1\n")
    port = free_port()
    with_file = start("--config", "my.yaml", I2V_PORT=str(port))
    assert with_file.end() == 0
    assert f"address: http://127.0.0.1:{port}\n" in with_file.text, "a variable overrides the file"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--port", "70000"), "port: Input should be less than or equal to 65535; received '70000'"),
        (("--prot", "1"), "No such option: --prot"),
        (("--config", "missing.yaml"), "missing.yaml cannot be read"),
    ],
)
def test_a_setting_that_is_wrong_ends_the_start_with_its_name(
    start, checkout: Path, flags: tuple[str, ...], words: str
) -> None:
    started = start(*flags)
    assert started.end() == 2
    assert "[ERROR] settings: " in started.text
    assert words in started.text
    assert not (checkout / "starts").exists()


def test_help_lists_the_flags_and_starts_nothing(start, checkout: Path) -> None:
    started = start("--help")
    assert started.end() == 0
    assert "--queue-length INTEGER" in started.text
    assert not (checkout / "starts").exists()


def test_help_before_the_first_install_is_shown_at_once_and_installs_nothing(checkout: Path) -> None:
    """It installed two gigabytes first."""
    bare = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    command = ["bash", str(checkout / "start_app.sh"), "--help"]
    done = subprocess.run(command, env=bare, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    assert "--port PORT" in done.stdout
    assert not (checkout / ".venv").exists()
    assert not (checkout / "starts").exists()


@pytest.mark.slow
def test_one_command_leads_to_a_video_and_ctrl_c_ends_it_all(start, checkout: Path) -> None:
    """The real server behind the real launcher; nothing is left on the port."""
    shutil.copy(ROOT / "server.py", checkout / "server.py")
    started = start("--port", "0", "--log-level", "info")
    address = re.findall(r"address: (\S+)", started.until("Ctrl-C"))[0]
    assert "ready at" not in started.text
    started.until(f"ready at {address}")
    assert "model: Fake engine (test pattern, no model) on cpu (uint8). " in started.text, "it is told before"
    server = started.server()
    photo = "data:image/jpeg;base64," + base64.b64encode((ASSETS / "coffee.jpg").read_bytes()).decode()
    body = {"data": [photo, "the scene at sunset", 256, 8, 8, 20, 7.5]}
    answer = httpx.post(f"{address}/api/predict/", json=body, timeout=DEADLINE_S, trust_env=False)
    assert answer.status_code == 200, answer.text
    video = Path(answer.json()["data"][0])
    assert video.parent == checkout / "outputs"
    assert video.stat().st_size > 1000

    started.process.send_signal(signal.SIGINT)
    assert started.end() == 0
    assert not server.is_running()
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        pass  # the port is free again


# The restart loop, with an injected clock.


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.now += seconds
        return True

    @property
    def between_starts(self) -> list[float]:
        """Without the looks that take no time, for a stop that has come."""
        return [seconds for seconds in self.waits if seconds]


def test_restarts_wait_twice_as_long_each_time_up_to_a_minute() -> None:
    clock, codes = Clock(), iter([EXIT_RESTART] * 9 + [0])
    assert launcher.supervise(lambda: next(codes), lambda text: None, clock.wait, clock) == 0
    assert clock.between_starts == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_long_healthy_run_resets_the_wait() -> None:
    clock, runs = Clock(), iter([(1.0, 86), (1.0, 86), (launcher.HEALTHY_S, 86), (1.0, 86), (1.0, 3)])

    def run() -> int:
        seconds, code = next(runs)
        clock.now += seconds
        return code

    assert launcher.supervise(run, lambda text: None, clock.wait, clock) == 3
    assert clock.between_starts == [1, 2, 1, 2]


@pytest.mark.parametrize("code", [0, 1, 2, 85, 87, 128 + signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGHUP])
def test_only_code_86_and_crashes_restart(code: int) -> None:
    clock = Clock()
    assert launcher.supervise(lambda: code, lambda text: None, clock.wait, clock) == code
    assert clock.waits == []


CRASHES = [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE]


@pytest.mark.fault("launcher", "the server dies by a signal that nobody sent", before="the launcher gave up")
def test_a_server_that_crashed_is_started_again(record_property) -> None:
    clock = Clock()
    said: list[str] = []
    codes = iter([*(128 + number for number in CRASHES[:4]), 0])
    assert launcher.supervise(lambda: next(codes), said.append, clock.wait, clock) == 0
    assert clock.between_starts == [1, 2, 4, 8]
    assert [number.name in text for number, text in zip(CRASHES, said, strict=False)] == [True] * 4
    record_property("after", f"started again: {said[0]}")


@pytest.mark.parametrize("number", CRASHES)
def test_five_crashes_in_ten_minutes_end_it_with_a_reason(number: signal.Signals) -> None:
    clock = Clock()
    said: list[str] = []
    assert launcher.supervise(lambda: 128 + number, said.append, clock.wait, clock) == 128 + number
    assert len(clock.between_starts) == launcher.MOST_CRASHES - 1
    assert f"ended by {number.name}" in said[-1]
    assert "5th time in 10 minutes; given up" in said[-1]


def test_crashes_that_lie_apart_do_not_end_it() -> None:
    clock, runs = Clock(), iter([128 + signal.SIGSEGV] * 8 + [0])

    def run() -> int:
        clock.now += launcher.CRASHES_WITHIN_S / 3
        return next(runs)

    assert launcher.supervise(run, lambda text: None, clock.wait, clock) == 0


def test_a_server_that_was_killed_after_a_stop_is_not_started_again() -> None:
    said: list[str] = []
    code = launcher.supervise(lambda: 128 + signal.SIGKILL, said.append, lambda seconds: False)
    assert (code, said) == (128 + signal.SIGKILL, [])


def test_a_real_process_that_segfaults_is_run_again(tmp_path: Path) -> None:
    """The operating system's word for the death, not ours; the second run ends well."""
    mark = tmp_path / "mark"
    code = (
        "import os, pathlib, signal, sys; mark = pathlib.Path(sys.argv[1])\n"
        "if mark.exists(): sys.exit(0)\n"
        "mark.touch(); os.kill(os.getpid(), signal.SIGSEGV)"
    )
    shown = io.BytesIO()
    with launcher.Launcher(out := launcher.Tee(shown)) as running:
        ended = launcher.supervise(
            lambda: running.run([sys.executable, "-c", code, str(mark)]), out.line, lambda seconds: True
        )
    assert ended == 0
    assert b"ended by SIGSEGV; next start in 1 s" in shown.getvalue()


def test_a_stop_during_the_wait_starts_nothing_more() -> None:
    codes = iter([EXIT_RESTART])
    assert launcher.supervise(lambda: next(codes), lambda text: None, lambda seconds: False) == EXIT_RESTART


def test_a_stop_signal_cuts_the_wait_short() -> None:
    with launcher.Launcher(launcher.Tee()) as running:
        signal.raise_signal(signal.SIGTERM)
        assert not running.wait(DEADLINE_S)
        assert running.stopping == signal.SIGTERM


# One command.


def run_python(
    code: str, *, grace_s: float = 60, stop_at: str = "", stop_with: int = signal.SIGTERM
) -> tuple[int, str]:
    """Run `python -c code` in a Launcher; when the output holds `stop_at`, send this process `stop_with`."""

    class Watching(io.BytesIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            written = super().write(data)
            if stop_at and stop_at.encode() in data:
                signal.raise_signal(stop_with)
            return written

    shown = Watching()
    with launcher.Launcher(launcher.Tee(shown), grace_s=grace_s) as running:
        exit_code = running.run([sys.executable, "-c", code])
    return exit_code, shown.getvalue().decode()


def test_output_and_errors_are_both_shown_to_the_last_byte() -> None:
    code, text = run_python("import sys; print('x' * 200_000); print('end', file=sys.stderr)")
    assert code == 0
    assert text.strip("x\n") == "end"
    assert text.count("x") == 200_000


def test_death_by_a_signal_reads_as_in_a_shell() -> None:
    code, _ = run_python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert code == 128 + signal.SIGKILL


def test_a_server_that_does_not_end_is_killed_after_the_grace() -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up')\nwhile True: time.sleep(1)"
    )
    code, text = run_python(stubborn, grace_s=0.2, stop_at="up")
    assert code == 128 + signal.SIGKILL
    assert "did not end within" in text


def test_a_closed_terminal_ends_the_server_as_a_plain_request_to_end_does() -> None:
    code, text = run_python(
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit('ended')); print('up')\n"
        "while True: time.sleep(0.05)",
        stop_at="up",
        stop_with=signal.SIGHUP,
    )
    assert code == 1
    assert "ended" in text


def test_what_the_server_leaves_behind_ends_with_it() -> None:
    code, text = run_python(
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "print(child.pid)"
    )
    assert code == 0
    left, deadline = int(text), time.monotonic() + DEADLINE_S
    while runs(left):
        assert time.monotonic() < deadline


def runs(pid: int) -> bool:
    """A killed orphan is a zombie until the machine's first process takes note of it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_full_log_disk_does_not_stop_the_terminal() -> None:
    class Full(io.BytesIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            raise OSError(28, "No space left on device")

    shown = io.BytesIO()
    tee = launcher.Tee(Full(), shown)
    tee.line("one")
    tee.line("two")
    assert shown.getvalue() == b"one\ntwo\n"


def test_two_starts_within_a_second_have_two_logs(tmp_path: Path) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5)
    names = []
    for _ in range(3):
        with launcher.open_log(tmp_path, now) as log:
            names.append(Path(log.name).name)
    assert names == ["app_20260102_030405.log", "app_20260102_030405_2.log", "app_20260102_030405_3.log"]


# The banner.


def banner(*flags: str, checks: list[Check] | None = None) -> tuple[int, str]:
    out = io.StringIO()
    found = checks if checks is not None else [Check("python", True, "Python 3.12")]
    return preflight.main(flags, out, lambda settings: found), out.getvalue()


def test_one_failed_check_keeps_the_server_from_starting() -> None:
    code, text = banner(checks=[Check("python", True, "Python 3.12"), Check("ffmpeg", False, "no ffmpeg that runs")])
    assert code == preflight.CANNOT_START
    assert "[SUCCESS] python: Python 3.12\n[ERROR] ffmpeg: no ffmpeg that runs\n" in text
    assert "address:" not in text


def test_an_open_server_without_a_token_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "[WARNING] 0.0.0.0 opens the server to the network" in banner("--host", "0.0.0.0")[1]
    assert "[WARNING]" not in banner("--host", "127.0.0.1")[1]
    assert "[WARNING]" not in banner("--host", "::1")[1]
    monkeypatch.setenv("I2V_API_TOKEN", "secret-word")
    code, text = banner("--host", "0.0.0.0")
    assert code == 0
    assert "[WARNING]" not in text
    assert "secret-word" not in text


@pytest.mark.parametrize(
    ("flags", "address"),
    [
        ({}, "http://127.0.0.1:7860"),
        ({"host": "::1", "port": 8000}, "http://[::1]:8000"),
        ({"public_url": "https://video.example.org/"}, "https://video.example.org"),
        ({"host": "0.0.0.0"}, "http://127.0.0.1:7860"),
    ],
)
def test_addresses_are_ones_a_browser_takes(flags: dict[str, object], address: str) -> None:
    assert preflight.addresses(load_settings(**flags))[0] == address


def test_an_open_host_without_a_token_is_warned_of() -> None:
    (warning,) = preflight.warnings(load_settings(host="0.0.0.0"))
    assert "no token is set" in warning
    assert not preflight.warnings(load_settings(host="0.0.0.0", api_token="x" * 20))


def test_the_banner_reports_every_check_of_the_doctor() -> None:
    out = io.StringIO()
    preflight.main(["--model", "fake", "--port", "0"], out)
    for check in doctor.checks(Settings(model="fake", port=0)):
        assert f"] {check.name}: " in out.getvalue()


# scripts/install: with a stub interpreter, so that nothing is fetched.

STUB_PYTHON = """#!/usr/bin/env bash
# An interpreter that answers what scripts/install asks. VERSION, NO_VENV and PIP_SAYS steer it.
echo "$*" >>"$NOTES"
case "$*" in
  *"%d.%d"*) echo "${VERSION:-3.12}" ;;
  *"import ensurepip"*) [[ -z "${NO_VENV:-}" ]] ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip --version") ;;
  "-m pip install"*) [[ -z "${PIP_SAYS:-}" ]] || { echo "$PIP_SAYS" >&2; exit 1; } ;;
  *hashlib*) cat pyproject.toml constraints.txt | cksum ;;
  "-m ruff"*) [[ -z "${RUFF_FINDS:-}" ]] ;;
  "-m mypy" | "-m vulture") ;;
  "-m pytest"*) echo "CI=${CI:-}" >>"$NOTES" && exit "${PYTEST_ENDS:-0}" ;;
  *) exit 1 ;;
esac
"""


class Installing:
    """scripts/install in a bare checkout, with stub interpreters under the names `pythons` and nothing fetched."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout
        self.notes = checkout / "notes"
        self.tools = checkout / "tools"
        self.tools.mkdir()
        for tool in (
            "bash",
            "cat",
            "cp",
            "mkdir",
            "dirname",
            "df",
            "awk",
            "grep",
            "tee",
            "cksum",
            "rm",
            "flock",
            "env",
        ):
            if found := shutil.which(tool):
                (self.tools / tool).symlink_to(found)

    def program(self, name: str, text: str) -> None:
        path = self.tools / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(
        self, *arguments: str, script: str = "scripts/install", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", script, *arguments],
            cwd=self.checkout,
            env={"PATH": str(self.tools), "NOTES": str(self.notes)} | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )

    def noted(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []

    def pip_calls(self) -> list[str]:
        return [line for line in self.noted() if line.startswith("-m pip install")]


@pytest.fixture
def installing(checkout: Path) -> Installing:
    made = Installing(checkout)
    made.program("python3", STUB_PYTHON)
    return made


def test_the_second_install_installs_nothing(installing: Installing) -> None:
    assert installing.run().returncode == 0
    assert len(installing.pip_calls()) == 1
    second = installing.run()
    assert second.returncode == 0
    assert second.stdout == ""
    assert len(installing.pip_calls()) == 1


def test_the_install_takes_exact_versions_from_the_constraints(installing: Installing) -> None:
    installing.run()
    installing.run("test")
    plain, test = installing.pip_calls()
    assert plain.endswith("-c constraints.txt -e .")
    assert test.endswith("-c constraints.txt -e .[test]")
    assert re.search(r"^torch==2\.13\.0$", (installing.checkout / "constraints.txt").read_text(), re.MULTILINE)


def test_an_install_with_tests_serves_a_plain_start_too(installing: Installing) -> None:
    installing.run("test")
    installing.run()
    assert len(installing.pip_calls()) == 1


def test_changed_constraints_install_again(installing: Installing) -> None:
    installing.run()
    with (installing.checkout / "constraints.txt").open("a") as file:
        file.write("some-package==1.0\n")
    installing.run()
    assert len(installing.pip_calls()) == 2


def test_a_failed_install_is_tried_again_and_not_stamped(installing: Installing) -> None:
    assert installing.run(PIP_SAYS="something went wrong").returncode == 1
    assert installing.run().returncode == 0
    assert len(installing.pip_calls()) == 2


@pytest.mark.parametrize(
    ("pip_says", "words"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk filled up"),
        ("NewConnectionError: Failed to establish a new connection", "Check the network"),
        ("ERROR: No matching distribution found for torch==2.13.0", "Check the network"),
        ("error: metadata-generation-failed", "the lines above say why"),
    ],
)
def test_a_failed_install_says_why(installing: Installing, pip_says: str, words: str) -> None:
    done = installing.run(PIP_SAYS=pip_says)
    assert done.returncode == 1
    assert pip_says in done.stderr
    assert words in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("[ERROR]")


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.14", "2.7"])
def test_a_python_that_is_too_old_or_too_new_is_named(installing: Installing, version: str) -> None:
    done = installing.run(VERSION=version)
    assert done.returncode == 1
    assert f"python3 is {version}" in done.stderr
    assert "Python 3.11, 3.12 or 3.13 is needed" in done.stderr


def test_no_python_at_all_says_what_to_install(installing: Installing) -> None:
    (installing.tools / "python3").unlink()
    done = installing.run()
    assert done.returncode == 1
    assert "Python 3.11, 3.12 or 3.13 is needed and none was found" in done.stderr


def test_a_missing_venv_module_names_the_package(installing: Installing) -> None:
    done = installing.run(NO_VENV="1")
    assert done.returncode == 1
    assert "sudo apt install python3.12-venv" in done.stderr


def test_a_full_disk_is_noticed_before_anything_is_made(installing: Installing) -> None:
    installing.program("df", "#!/usr/bin/env bash\necho header\necho /dev/x 100000 99000 512000 99% /\n")
    done = installing.run()
    assert done.returncode == 1
    assert "only 500 MB are free" in done.stderr
    assert not (installing.checkout / ".venv").exists()


def test_an_unknown_extra_is_refused(installing: Installing) -> None:
    done = installing.run("tset")
    assert done.returncode == 1
    assert "unknown extra tset; known: test, postgres" in done.stderr


def test_another_interpreter_can_be_named(installing: Installing) -> None:
    (installing.tools / "python3").rename(installing.tools / "mine")
    assert installing.run(PYTHON="mine").returncode == 0
    assert len(installing.pip_calls()) == 1


def test_a_half_made_environment_is_made_again(installing: Installing) -> None:
    half = installing.checkout / ".venv" / "bin"
    half.mkdir(parents=True)
    (half / "python").write_text("#!/bin/sh\nexit 1\n")
    (half / "python").chmod(0o755)
    done = installing.run()
    assert done.returncode == 0
    assert "making it again" in done.stdout
    assert done.stdout.endswith(f"[SUCCESS] environment: {installing.checkout / '.venv'} is ready\n")


# scripts/test and .ci/run, with the same stub.


@pytest.fixture
def testing(installing: Installing) -> Installing:
    """Everything that scripts/test wants is there; what it runs is noted."""
    for name in ("scripts/test", "scripts/lint", ".ci/run"):
        (installing.checkout / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, installing.checkout / name)
    installing.program("chromium", "#!/usr/bin/env bash\n")
    installing.program("postgres", "#!/usr/bin/env bash\n")
    installing.program("apt-get", '#!/usr/bin/env bash\necho "apt-get $*" >>"$NOTES"\nexit "${APT_ENDS:-0}"\n')
    installing.program("sudo", '#!/usr/bin/env bash\nshift\nexec "$@"\n')
    return installing


def test_ci_installs_then_checks_style_and_types_then_tests(testing: Installing) -> None:
    done = testing.run("-k", "one", script=".ci/run")
    assert done.returncode == 0, done.stderr
    run = r"-m (pip install|ruff|mypy|vulture|pytest)|CI=|apt-get"
    tools = [line for line in testing.noted() if re.match(run, line)]
    assert tools[0].endswith(".[test]")
    assert tools[1:] == [
        "-m ruff check .",
        "-m ruff format --check .",
        "-m mypy",
        "-m vulture",
        "-m pytest -n auto --dist worksteal -k one",
        "CI=true",
    ]


def test_a_finding_of_style_ends_the_run_before_the_tests(testing: Installing) -> None:
    assert testing.run(script="scripts/test", RUFF_FINDS="something").returncode != 0
    assert not [line for line in testing.noted() if line.startswith("-m pytest")]


def test_the_run_ends_as_pytest_ends(testing: Installing) -> None:
    assert testing.run(script="scripts/test", PYTEST_ENDS="1").returncode == 1


def test_a_missing_debian_package_is_installed_after_an_update(testing: Installing) -> None:
    (testing.tools / "chromium").unlink()
    assert testing.run(script="scripts/test").returncode == 0
    calls = [line for line in testing.noted() if line.startswith("apt-get")]
    assert calls == ["apt-get update -q", "apt-get install -yq --no-install-recommends chromium"]


def test_packages_that_cannot_be_installed_are_named_and_the_tests_run(testing: Installing) -> None:
    (testing.tools / "chromium").unlink()
    done = testing.run(script="scripts/test", APT_ENDS="100")
    assert done.returncode == 0
    assert "[WARNING] chromium could not be installed" in done.stderr
    assert [line for line in testing.noted() if line.startswith("-m pytest")]


def test_no_file_that_installs_holds_a_registry_address() -> None:
    shell = [path for path in sorted((ROOT / "scripts").iterdir()) if path.suffix in ("", ".sh") and path.is_file()]
    for path in [*(ROOT / name for name in ("start_app.sh", "constraints.txt", "pyproject.toml", ".ci/run")), *shell]:
        assert not re.search(r"index-url|find-links|https?://", path.read_text()), path.name
