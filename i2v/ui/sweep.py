"""The seed sweep: the form's job four times at few steps with four seeds; the chosen one is then run in full.

`Shown` is what a tab shows, as one short text that fits into a link: a job, the four drafts of a sweep, or one of those
four: `A`, `A,B,C,D` and `B;A,B,C,D`. Whatever a browser sends is read; a text that means nothing shows nothing.
"""

from dataclasses import dataclass
from typing import Any, Self

from i2v.request import MAX_SEED, GenerateRequest, PublicLimits, draw_seed

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


def drafts(request: GenerateRequest, limits: PublicLimits) -> list[GenerateRequest]:
    """Four of the fewest steps; a chosen seed and the three after it, or four that are drawn."""
    first = request.seed
    seeds = [draw_seed() if first is None else (first + i) % (MAX_SEED + 1) for i in range(DRAFTS)]
    steps = min(request.steps, int(limits.range("steps")[0]))
    return [request.model_copy(update={"seed": seed, "steps": steps}) for seed in seeds]


def in_full(draft: GenerateRequest, chosen: Any, standard: int, limits: PublicLimits) -> GenerateRequest:
    """The draft with the form's `chosen` steps; where those are no more than the draft's, with `standard` steps."""
    low, high = map(int, limits.range("steps"))
    steps = min(high, max(low, int(chosen))) if isinstance(chosen, int | float) else low
    return draft.model_copy(update={"steps": steps if steps > draft.steps else standard})
