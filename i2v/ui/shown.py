"""What a tab shows, as one short text that fits into a link: a job, the four drafts of a sweep, or one of those four.

`A`, `A,B,C,D` and `B;A,B,C,D`. Whatever a browser sends is read; what it means nothing by shows nothing.
"""

from dataclasses import dataclass
from typing import Any, Self

DRAFTS = 4


@dataclass(frozen=True, slots=True)
class Shown:
    """`job` None and `sheet` filled: the contact sheet. Both: one job, with the way back to its sheet."""

    job: str | None = None
    sheet: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: Any) -> Self:
        if not isinstance(text, str) or not text:
            return cls()
        head, _, tail = text.partition(";")
        sheet = tuple(part for part in (tail or head).split(",")[:DRAFTS] if part)
        if not tail:
            return cls(sheet=sheet) if "," in head else cls(job=head)
        return cls(job=head or None, sheet=sheet)

    @property
    def is_sheet(self) -> bool:
        return self.job is None and bool(self.sheet)

    def ids(self) -> tuple[str, ...]:
        """The jobs that are to be seen."""
        return self.sheet if self.is_sheet else ((self.job,) if self.job else ())

    def one(self, job_id: str) -> str:
        """The text that shows one job, on the same sheet."""
        return f"{job_id};{self.sheet_text()}" if self.sheet else job_id

    def sheet_text(self) -> str:
        return ",".join(self.sheet) + ("," if len(self.sheet) == 1 else "")
