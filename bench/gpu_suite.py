"""Everything a GPU should answer, in under nine minutes: starts the sections of `gpu_sections.py` and outlives them.

`bash bench/gpu_suite.sh [FOLDER]` on a GPU; with I2V_SUITE=toy in the environment a rehearsal at toy size on a CPU.

One process builds the full-size model once and goes through the sections in the order of their worth. Each figure is a
line of FOLDER/figures.jsonl as soon as it is known. A section that raises costs itself; one that hangs, dies or loses
the GPU costs its process, and another goes on with the section after it. What compiles, or needs other libraries, comes
last, each in a process of its own and only while time is left: TOTAL_S seconds (520) bound it all.

This process loads no torch: what hangs there cannot hang it.
"""

import argparse
import ctypes
import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

# The sections in the order of their worth, and the seconds that each may take. The first builds the model, and so does
# the next one where a process was lost.
SHARED = {
    "machine": 60,
    "kernels": 60,
    "parity": 90,
    "step": 110,
    "profile": 60,
    "graphs": 60,
    "jobs": 120,
    "peaks": 90,
    "sizes": 60,
    "decoding": 30,
    "recovery": 90,
}
ALONE = {"cudnn_search": 120, "gpu_tests": 90, "upstream_compiled": 240, "ours_compiled": 300, "old_pipeline": 150}
LIMITS = SHARED | ALONE

LEAST_S = {"upstream_compiled": 60, "ours_compiled": 60, "old_pipeline": 60}  # what a section is not begun without
LEAST = 15  # of the others
START_S = 120  # to start a process and load the libraries
GRACE_S = 3  # after its limit a section's process writes where it hangs, then it is killed
BROKEN_S = 2  # what a section that hangs on purpose is given

KINDS = ("raise", "hang", "kill", "lost")


@dataclass(frozen=True)
class Suite:
    """One run: where its figures go, when it has to end (in seconds since the epoch), what it rehearses."""

    folder: Path
    started: float
    total_s: float
    toy: bool
    compiles: bool
    broken: dict[str, str]
    reference: str | None

    @property
    def figures(self) -> Path:
        return self.folder / "figures.jsonl"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def left(self) -> float:
        """Seconds that are left for sections."""
        return self.started + self.total_s - GRACE_S - time.time()

    def say(self, section: str, **figures: Any) -> None:
        """One line, on the disk when this returns."""
        line = json.dumps({"section": section, "at_s": round(time.time() - self.started, 1), **figures}, default=str)
        print(line[:400], flush=True)
        with self.figures.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())


def main(arguments: list[str] | None = None) -> int:
    suite, start = read_options(arguments)
    suite.folder.mkdir(parents=True, exist_ok=True)
    for file in (suite.figures, suite.log):
        file.write_text("", encoding="utf-8")
    waiting = list(SHARED)
    while waiting:
        waiting = run(suite, waiting, start)
    for name in ALONE:
        run(suite, [name], start)
    lines = [json.loads(line) for line in suite.figures.read_text(encoding="utf-8").splitlines()]
    failed, skipped = (sorted({line["section"] for line in lines if kind in line}) for kind in ("failed", "skipped"))
    ended = f"failed: {', '.join(failed) or 'none'}; skipped: {', '.join(skipped) or 'none'}"
    print(f"{len(lines)} lines in {suite.figures}; {ended}")
    return 1 if failed else 0


def read_options(arguments: list[str] | None) -> tuple[Suite, BaseContext]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("gpu_results"))
    parser.add_argument(
        "--reference", help="a folder with diffusers 0.33.1 and transformers 4.57, for the old pipeline"
    )
    parser.add_argument("--no-compiler", action="store_true", help="run uncompiled what would be compiled")
    faults = "a rehearsal's faults: SECTION=" + "|".join(KINDS)
    parser.add_argument("--break", nargs="*", default=[], dest="broken", metavar="SECTION=KIND", help=faults)
    parser.add_argument("--start", choices=["spawn", "fork"], default="spawn", help="fork: not with a GPU")
    options = parser.parse_args(arguments)
    broken = dict(one.split("=") for one in options.broken)
    if not set(broken) <= set(LIMITS) or not set(broken.values()) <= set(KINDS):
        parser.error(f"--break {options.broken}: it takes one of {', '.join(LIMITS)} = one of {', '.join(KINDS)}")
    suite = Suite(
        folder=options.folder.absolute(),
        started=time.time(),
        total_s=float(os.environ.get("TOTAL_S", "520")),
        toy=os.environ.get("I2V_SUITE") == "toy",
        compiles=not options.no_compiler,
        broken=broken,
        reference=options.reference,
    )
    return suite, multiprocessing.get_context(options.start)


# --- this process: watches


def run(suite: Suite, names: list[str], start: BaseContext) -> list[str]:
    """Go through the sections `names` in a new process. Returns those that it did not come to."""
    if suite.left() < LEAST:
        for name in names:
            suite.say(name, skipped="no time is left")
        return []
    here, there = start.Pipe(duplex=False)
    process = start.Process(target=work, args=(suite, names, there))
    logged = suite.log.stat().st_size
    process.start()
    there.close()
    hung = True
    try:
        waiting, current, hung = follow(suite, names, here)
    finally:
        status = end(process, hung)
    if current is None and waiting == names:
        current = waiting.pop(0)  # it came to none: the next process begins after this one
    if current is not None:
        log = suite.log.read_bytes()[logged:].decode(errors="replace")
        _, hangs, where = log.rpartition("Timeout (")  # the innermost call comes first
        how = "it hung and was killed" if hung else f"its process died: exit code {status}"
        suite.say(current, failed=how, log=(hangs + where)[:3000] if hangs else log[-3000:])
    elif hung:
        suite.say(names[-1], ended="its process hung at its end and was killed")
    return waiting


def follow(suite: Suite, names: list[str], line: Connection) -> tuple[list[str], str | None, bool]:
    """Until the process ends or is late: the sections not begun, the one that did not end, and whether it is late."""
    waiting, current, limit = list(names), None, float(START_S)
    while True:
        if not line.poll(max(0.0, min(limit, suite.left()) + GRACE_S)):
            return waiting, current, True
        try:
            current, limit = line.recv() or (None, START_S)
        except (EOFError, OSError):
            return waiting, current, False
        waiting = [name for name in waiting if name != current]


def end(process: Any, hung: bool) -> int | None:
    """End the process and what it started, whatever they are doing. Returns its exit code, None for one that stays."""
    if not hung:
        process.join(10)
    for kill in (lambda: os.killpg(process.pid, signal.SIGKILL), process.kill):
        with suppress(ProcessLookupError, PermissionError):
            kill()
    process.join(10)
    status: int | None = process.exitcode
    return status


# --- the process of the sections


def work(suite: Suite, names: list[str], line: Connection) -> None:
    """One section after the other. Sends name and limit of each as it begins, and None as it ends."""
    os.setsid()
    log = suite.log.open("a", encoding="utf-8")
    os.dup2(log.fileno(), 2)
    from gpu_bench import Bench

    bench = Bench(suite)
    for name in names:
        begin(suite, name, LIMITS[name], line)
        if suite.left() < LEAST_S.get(name, LEAST):
            suite.say(name, skipped="too little time is left")
        else:
            lost = answer(suite, name, bench, line)
            if lost:
                os._exit(3)  # nothing works in a process that has lost its GPU, its own end included
        faulthandler.cancel_dump_traceback_later()
        line.send(None)


def begin(suite: Suite, name: str, limit: float, line: Connection) -> None:
    limit = max(1.0, min(limit, suite.left()))
    line.send((name, limit))
    faulthandler.dump_traceback_later(limit, file=2)


def answer(suite: Suite, name: str, bench: Any, line: Connection) -> bool:
    """Run one section. Whether the GPU was lost in it."""
    import gpu_sections
    from gpu_bench import is_lost

    started, lost, trouble = time.time(), False, {}
    try:
        getattr(gpu_sections, name)(bench)
        if name in suite.broken:
            begin(suite, name, BROKEN_S, line)
            break_down(suite.broken[name])
    except Exception as error:
        lost = is_lost(error)
        trouble = {"failed": "".join(traceback.format_exception(error))[-1500:]}
    suite.say(name, took_s=round(time.time() - started, 1), **trouble)
    if trouble and not lost:
        try:
            bench.recover()
        except Exception:  # the GPU was lost after all
            lost = True
    if lost:
        line.send(None)
    return lost


def break_down(kind: str) -> None:
    """What `--break` asks for: each way in which a section may end on a GPU."""
    if kind == "raise":
        raise RuntimeError("broken on purpose")
    if kind == "lost":
        raise RuntimeError("CUDA error: an illegal memory access was encountered (on purpose)")
    if kind == "hang":
        ctypes.PyDLL(None).sleep(10_000)  # holds the interpreter, as a call of CUDA may
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as it ends, so does the process that it watches
    sys.exit(main())
