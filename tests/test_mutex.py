"""One job at a time, in one process and between processes, and never a lock that outlives its holder."""

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from i2v.errors import JobCancelled
from i2v.mutex import GpuMutex, lock_file_for

DEADLINE = 60.0  # seconds; far above what any of these takes

HOLDER = """
import sys, pathlib
from i2v.mutex import GpuMutex
with GpuMutex(pathlib.Path(sys.argv[1])).hold():
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
sys.stdin.readline()
"""


def holder(lock_file: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock until it reads a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock_file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=DEADLINE)


def test_two_threads_never_hold_it_together(tmp_path: Path) -> None:
    mutex = GpuMutex(tmp_path / "lock")
    inside, worst, finished = [], [], []

    def job() -> None:
        for _ in range(20):
            with mutex.hold():
                inside.append(1)
                worst.append(len(inside))
                inside.pop()
        finished.append(1)

    threads = [threading.Thread(target=job) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)

    assert len(finished) == 4
    assert max(worst) == 1
    assert not mutex.held


def test_a_waiting_thread_is_told_once_that_another_job_runs() -> None:
    mutex = GpuMutex()
    said: list[str] = []
    told, entered = threading.Event(), threading.Event()

    def on_wait(who: str) -> None:
        said.append(who)
        told.set()

    def second() -> None:
        with mutex.hold(on_wait):
            entered.set()

    thread = threading.Thread(target=second)
    with mutex.hold(lambda who: pytest.fail("nobody was there to wait for")):
        thread.start()
        assert told.wait(DEADLINE)
        assert not entered.is_set()
    assert entered.wait(DEADLINE)
    thread.join(DEADLINE)
    assert said == ["another job of this server"]


def test_another_process_is_waited_for_and_named(tmp_path: Path) -> None:
    other = holder(tmp_path / "lock")
    try:
        said: list[str] = []

        def on_wait(who: str) -> None:
            said.append(who)
            other.stdin.write("\n")
            other.stdin.flush()

        with GpuMutex(tmp_path / "lock").hold(on_wait):
            assert other.stdout.readline() == "released\n"
        assert said == [f"another process (pid {other.pid}) on the same GPU"]
    finally:
        end(other)


def test_a_killed_process_gives_the_gpu_back(tmp_path: Path) -> None:
    other = holder(tmp_path / "lock")
    try:
        with GpuMutex(tmp_path / "lock").hold(lambda who: os.kill(other.pid, signal.SIGKILL)):
            assert other.wait(DEADLINE) == -signal.SIGKILL
    finally:
        end(other)


def test_waiting_for_another_process_ends_when_cancelled(tmp_path: Path) -> None:
    mutex = GpuMutex(tmp_path / "lock")
    other = holder(tmp_path / "lock")
    try:
        asked: list[int] = []

        def cancelled() -> bool:
            asked.append(1)
            return len(asked) > 2

        with pytest.raises(JobCancelled), mutex.hold(cancelled=cancelled):
            pytest.fail("the other process still holds it")
    finally:
        end(other)
    with mutex.hold():  # the cancelled attempt left nothing behind
        assert mutex.held


def test_waiting_for_another_thread_ends_when_cancelled() -> None:
    mutex = GpuMutex()
    outcome: list[BaseException] = []

    def second() -> None:
        try:
            with mutex.hold(cancelled=lambda: True):
                pass
        except JobCancelled as error:
            outcome.append(error)

    with mutex.hold():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(DEADLINE)
    assert len(outcome) == 1
    with mutex.hold():
        pass


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, JobCancelled])
def test_every_exit_releases_it(tmp_path: Path, failure: type[BaseException]) -> None:
    mutex = GpuMutex(tmp_path / "lock")
    with pytest.raises(failure), mutex.hold():
        raise failure("stop")

    with GpuMutex(tmp_path / "lock").hold(lambda who: pytest.fail(f"still held by {who}")):
        assert not mutex.held


def test_a_report_that_fails_releases_the_threads_share(tmp_path: Path) -> None:
    """`on_wait` runs before the GPU is held; what it raises must not leave the first of the two locks behind."""
    mutex = GpuMutex(tmp_path / "lock")
    other = holder(tmp_path / "lock")

    def broken(who: str) -> None:
        raise RuntimeError("the log is full")

    try:
        with pytest.raises(RuntimeError, match="log is full"), mutex.hold(broken):
            pass
    finally:
        end(other)
    with mutex.hold():
        assert mutex.held


def test_holding_it_twice_in_one_thread_is_an_error_and_no_deadlock() -> None:
    mutex = GpuMutex()
    with mutex.hold():
        with pytest.raises(RuntimeError, match="already"), mutex.hold():
            pass
        assert mutex.held


def test_an_unusable_lock_file_is_an_error_that_leaves_no_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    mutex = GpuMutex(tmp_path / "lock")
    with pytest.raises(OSError), mutex.hold():
        pass
    (tmp_path / "lock").rmdir()
    with mutex.hold():
        assert mutex.held


def test_a_symbolic_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    """In a folder that all users write to, a link could make us empty a file of the user who runs the server."""
    victim = tmp_path / "precious"
    victim.write_text("data")
    (tmp_path / "lock").symlink_to(victim)

    with pytest.raises(OSError), GpuMutex(tmp_path / "lock").hold():
        pass
    assert victim.read_text() == "data"


def test_the_lock_file_may_be_used_by_every_user(tmp_path: Path) -> None:
    with GpuMutex(tmp_path / "lock").hold():
        assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o666


def test_each_gpu_has_its_own_file_for_the_whole_machine(tmp_path: Path) -> None:
    first = lock_file_for("cuda:0", tmp_path / "a", gpu_uuid="GPU-1234/../x", folder=tmp_path)
    same = lock_file_for("cuda:1", tmp_path / "b", gpu_uuid="GPU-1234/../x", folder=tmp_path)
    other = lock_file_for("cuda:0", tmp_path / "a", gpu_uuid="GPU-9", folder=tmp_path)

    assert first == same != other
    assert first.parent == tmp_path


def test_a_cpu_is_locked_per_outputs_folder(tmp_path: Path) -> None:
    assert lock_file_for("cpu", tmp_path / "new") == tmp_path / "new" / "engine.lock"
    assert (tmp_path / "new").is_dir()
