"""Tells an outputs folder whose disk is not mounted from one whose videos were deleted.

A table inside the folder comes and goes with it. A table elsewhere outlives it, and would take every video for lost; so
it remembers a word that lies in a small file of the folder, too.
"""

import uuid
from dataclasses import dataclass
from pathlib import Path

from i2v.jobs.schema import DataError
from i2v.jobs.store import JobStore

MARK_NAME = ".i2v.outputs"
_NOTE = "outputs"  # the table's copy of the word

ABSENT = "the outputs folder is not the one that holds the videos; its disk may not be mounted"


@dataclass(frozen=True, slots=True)
class Mark:
    """`file` lies in the outputs folder; with `word` it must say exactly that."""

    file: Path
    word: str | None = None

    def is_there(self) -> bool:
        """Whether the folder is the one that the table belongs to."""
        try:
            return self.file.is_file() if self.word is None else self.file.read_text().strip() == self.word
        except (OSError, ValueError):
            return False


def mark_of(folder: Path, own_table: Path | None, store: JobStore) -> Mark:
    """The mark of a folder; `own_table` is the table's file where it lies in it, None for a table elsewhere.

    The first start of a table elsewhere marks the folder, and so does one that knows no video, which has nothing to
    lose. Raises `DataError` when the folder is another one than at the last start, and OSError.
    """
    if own_table is not None:
        return Mark(own_table)
    file, word = folder / MARK_NAME, store.note(_NOTE)
    if word is None:
        word = file.read_text().strip() if file.is_file() else uuid.uuid4().hex
        store.set_note(_NOTE, word)
        file.write_text(f"{word}\n")
    mark = Mark(file, word)
    if mark.is_there():
        return mark
    if store.videos_total()[0]:
        raise DataError(
            f"the outputs folder {folder} is not the one that holds the videos of this job table: mount its disk, or "
            f"name it with --outputs. If they are gone for good, or were moved here: echo {word} > {file}"
        )
    file.write_text(f"{word}\n")
    return mark
