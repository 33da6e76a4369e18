"""What the command line shows: progress bars on a terminal, plain lines in a log, tables. Writes to stderr.

Knows the engine's and the client's progress reports, and nothing of how a video is made.
"""

import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from i2v.client import Video
from i2v.engine.interface import Progress as StepProgress
from i2v.notes import Note, say

LOG_EVERY = 0.1  # without a terminal, a line for each tenth of a stage


class Display:
    """One line of work at a time: a bar that is redrawn on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._live = console.is_terminal and not quiet
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not self._live,
        )
        self._task: TaskID | None = None
        self._what: str | None = None
        self._logged = -1.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, what: str, fraction: float | None, count: str = "") -> None:
        """`what` is being done, `fraction` 0..1 of it is done (None: unknown)."""
        new = what != self._what
        self._what = what
        if self._live:
            if new and self._task is not None:
                self._progress.remove_task(self._task)
            if new or self._task is None:
                self._task = self._progress.add_task(escape(_plain(what)), total=None, count=count)
            total = None if fraction is None else 1.0
            self._progress.update(self._task, total=total, completed=fraction or 0.0, count=count)
        elif not self._quiet:
            self._log(what, fraction, count, new)

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def loading(self, what: Note, fraction: float | None) -> None:
        """`OnLoad` of the engine."""
        self.show(say(what), fraction, "" if fraction is None else f"{fraction:.0%}")

    def waiting(self, who: str) -> None:
        """`on_wait` of the GPU mutex."""
        self.show(f"waiting for {who}", None)

    def step(self, progress: StepProgress) -> None:
        """`OnStep` of the engine."""
        self.show(progress.stage, progress.step / progress.steps, f"{progress.step}/{progress.steps}")

    def video(self, video: Video) -> None:
        """`on_progress` of the client."""
        if video.status == "queued":
            places = {None: "", 0: ", next in line"}
            self.show("queued" + places.get(video.position, f", {video.position} before it"), None)
        else:
            eta = "" if video.eta_s is None else f", {video.eta_s:.0f} s left"
            self.show(video.status.replace("_", " "), video.progress / 100, f"{video.progress}%{eta}")

    def _log(self, what: str, fraction: float | None, count: str, new: bool) -> None:
        if new:
            self._logged = -1.0
        if new or (fraction is not None and (fraction >= self._logged + LOG_EVERY or fraction >= 1.0 > self._logged)):
            self._logged = fraction or 0.0
            self.say(f"{what} {count}".rstrip())


def facts_lines(facts: Mapping[str, object]) -> list[str]:
    """Name and value, one pair a line; not folded, so that a pipe gets them whole."""
    width = max((len(name) for name in facts), default=0)
    return [f"{_plain(name):<{width}}  {_plain(str(value))}".rstrip() for name, value in facts.items()]


def seconds_table(seconds: Mapping[str, Sequence[float]]) -> Table:
    """Median, least and most of each measured thing."""
    table = Table("seconds", *("median", "least", "most"), box=SIMPLE)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, found in seconds.items():
        table.add_row(name, *(f"{value:.3f}" for value in (statistics.median(found), min(found), max(found))))
    return table


def jobs_lines(videos: Iterable[Video]) -> list[str]:
    """A heading and one line a job; the id is never shortened, because `i2v jobs cancel` wants all of it."""
    lines = [f"{'id':<30} {'status':<11} {'done':>4} {'created':<16} {'size':<9} {'seed':<16} prompt"]
    for video in videos:
        created = "" if video.created_at is None else f"{video.created_at.astimezone():%Y-%m-%d %H:%M}"
        seed = "" if video.seed is None else video.seed
        line = f"{video.id:<30} {video.status:<11} {video.progress:>3}% {created:<16} {video.size or '':<9} {seed:<16} "
        lines.append(_plain(line + textwrap.shorten(video.prompt or "", 60, placeholder=" ...")).rstrip())
    return lines


def _plain(text: str) -> str:
    """Text of others, shown as it is: no line ends and no control characters that would move the cursor."""
    return "".join(character if character.isprintable() else " " for character in text)
