"""Tells an outputs folder whose disk is not mounted from one whose videos were deleted.

A table inside the folder comes and goes with it. A table elsewhere outlives it, and would take every video for lost; so
it remembers a word that lies in a small file of the folder, too.
"""

import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from i2v.errors import Unavailable
from i2v.jobs.retention import size_of
from i2v.jobs.schema import DataError
from i2v.jobs.store import JobStore

MARK_NAME = ".i2v.outputs"
_NOTE = "outputs"  # the table's copy of the word
_WORD = re.compile(rb"\w{1,64}")

ABSENT = "the outputs folder is not the one that holds the videos; its disk may not be mounted"


@dataclass(frozen=True, slots=True)
class Mark:
    """`file` lies in the outputs folder; with `word` it must say exactly that, without it must be the very file
    (`identity`: device and inode) that the server has open as its table."""

    file: Path
    word: str | None = None
    identity: tuple[int, int] | None = None

    def is_there(self) -> bool:
        """Whether the folder is the one that the table belongs to."""
        try:
            return (
                _identity(self.file) == self.identity
                if self.word is None
                else self.file.read_text().strip() == self.word
            )
        except (OSError, ValueError):
            return False

    def check(self) -> None:
        """Raises `Unavailable` when the folder is not there: nothing may be concluded from it or written into it."""
        if not self.is_there():
            raise Unavailable(ABSENT, retry_after=30)


def mark_of(folder: Path, own_table: Path | None, store: JobStore) -> Mark:
    """The mark of a folder; `own_table` is the table's file where it lies in it, None for a table elsewhere.

    The first start of a table elsewhere marks the folder, and so does one that knows no video, which has nothing to
    lose; a word that is there already, another table's, is taken over. Raises `DataError` when the folder is another
    one than at the last start, or has none of the videos of a table that knows no word yet; and OSError.
    """
    if own_table is not None:
        return Mark(own_table, identity=_identity(own_table))
    file, word, videos = folder / MARK_NAME, store.note(_NOTE), store.videos()
    if word is None and videos and all(size_of(folder, video.file) is None for video in videos):
        word = uuid.uuid5(uuid.NAMESPACE_OID, videos[0].id).hex  # the same at each try, with nothing written
    if word is None or not Mark(file, word).is_there():
        if word is not None and videos:
            raise DataError(
                f"the outputs folder {folder} is not the one that holds the videos of this job table: mount its disk, "
                f"or name it with --outputs. If they are gone for good, or were moved here: echo {word} > {file}"
            )
        there = _read(file)
        word = there or word or uuid.uuid4().hex
        if not there:
            _write(file, word)
    if store.note(_NOTE) != word:  # last: a table that knows a word which is in no folder would refuse the right one
        store.set_notes({_NOTE: word})
    return Mark(file, word)


def _identity(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_dev, found.st_ino


def _read(file: Path) -> str:
    """The word in a folder, empty when there is none. Raises `DataError` when the file is none of ours."""
    if not file.exists():
        return ""
    found = file.read_bytes().strip()
    if found and _WORD.fullmatch(found) is None:
        raise DataError(f"{file} holds no word of a job table; remove it")
    return found.decode("ascii")


def _write(file: Path, word: str) -> None:
    """Whole or not at all, whenever the machine stops."""
    part = file.with_name(f"{MARK_NAME}.part")
    try:
        with open(part, "w", encoding="ascii") as new:
            new.write(f"{word}\n")
            new.flush()
            os.fsync(new.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
