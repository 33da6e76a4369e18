"""What a server holds of its machine, before and after each group of attacks: it must give back what it took."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from tests.qa.live_server import LiveServer

SETTLED_S = 60.0
MEMORY_KEPT = 200_000_000  # bytes: libraries that the first photo loads, and what the allocator has not given back
DESCRIPTORS_KEPT = 16  # of the database and of the test's own kept connections
LOG_A_REQUEST = 400  # bytes: an accepted job has three lines
LOG_KEPT = 20_000


@dataclass(frozen=True)
class Footprint:
    """`memory` is the resident set in bytes, `log` the size of the log in bytes; all others are counts."""

    memory: int
    descriptors: int
    processes: int
    temporary: int
    log: int
    requests: int

    @classmethod
    def of(cls, server: LiveServer) -> Self:
        process = psutil.Process(server.process.pid)
        return cls(
            memory=process.memory_info().rss,
            descriptors=process.num_fds(),
            processes=len(process.children(recursive=True)),
            temporary=sum(1 for _ in server.temporary.rglob("*")),
            log=server.log_file.stat().st_size,
            requests=answered(server),
        )

    def too_much(self, before: "Footprint") -> str:
        """What has not been given back since `before`; empty where all is well."""
        allowed_log = LOG_KEPT + LOG_A_REQUEST * (self.requests - before.requests)
        kept = {
            "bytes of memory": max(0, self.memory - before.memory - MEMORY_KEPT),
            "descriptors": max(0, self.descriptors - before.descriptors - DESCRIPTORS_KEPT),
            "processes": self.processes,
            "temporary files": max(0, self.temporary - before.temporary),
            "bytes of log": max(0, self.log - before.log - allowed_log),
        }
        return ", ".join(f"{count} {what} too many" for what, count in kept.items() if count)


def answered(server: LiveServer) -> int:
    """Requests that the server has answered, by its own metrics."""
    text = server.session.get(f"{server.url}/metrics", timeout=60).text
    lines = [line for line in text.splitlines() if line.startswith("i2v_http_requests_total{")]
    return int(sum(float(line.rpartition(" ")[2]) for line in lines))


def look_again(server: LiveServer, before: Footprint, group: str) -> tuple[str, ...]:
    """A row of the table in tests/conftest.py, once the server has given back what it took.

    Fails when it does not within a minute.
    """
    end = time.monotonic() + SETTLED_S
    while (wrong := (after := Footprint.of(server)).too_much(before)) and time.monotonic() < end:
        time.sleep(0.2)
    assert not wrong, f"after {group} the server at {server.url} holds {wrong}"
    return (
        group,
        str(after.requests - before.requests),
        f"{before.memory / 1e6:.0f} -> {after.memory / 1e6:.0f}",
        f"{before.descriptors} -> {after.descriptors}",
        f"{before.processes} -> {after.processes}",
        f"{before.temporary} -> {after.temporary}",
        f"{before.log / 1e3:.0f} -> {after.log / 1e3:.0f}",
    )


def group_of(module: object) -> str:
    return Path(str(module.__file__)).stem.removeprefix("test_").replace("_", " ")
