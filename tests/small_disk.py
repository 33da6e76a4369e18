"""A real disk of a few megabytes for tests of full disks: mounted in memory, filled to its last byte."""

import contextlib
import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int, *options: str) -> Iterator[Path]:
    """An empty disk at `folder`, which is made; `options` are those of mount. Skips where this user may not mount."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = ",".join((f"size={megabytes}m", *options))
    command = ["mount", "-t", "tmpfs", "-o", chosen, "tmpfs", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip(f"needs the right to mount a disk: {result.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all that is left of the disk, to the last byte."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    return filler
