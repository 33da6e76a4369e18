"""How long jobs take here, learnt from finished ones, and the position and ETA of each waiting job.

Decoding is counted in denoising steps: how many of them would take as long. That hardly depends on the size.
"""

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from i2v.errors import Unavailable
from i2v.jobs.job import DECODE_STEPS, Job
from i2v.jobs.running import RunningJob, RunningJobs
from i2v.request import GenerateRequest

SHAPES_KEPT: Final = 200
RECENT: Final = 50  # jobs in the overall average
WEIGHT: Final = 0.3  # of the newest job in a shape's moving average
MOST_STEPS: Final = 20  # decoding counts for at most so many times the job's own steps

Shape = tuple[int, int, int, int, str, bool]


def shape_of(request: GenerateRequest) -> Shape:
    """What decides the time: size, frames, steps, preset, and whether guidance doubles the passes."""
    guided = request.guidance_scale > 1.0
    return request.width, request.height, request.num_frames, request.steps, request.preset, guided


class Pace:
    """Thread-safe. Remembers `SHAPES_KEPT` shapes, the least recently run forgotten first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_shape: OrderedDict[Shape, float] = OrderedDict()
        self._decode: OrderedDict[Shape, float] = OrderedDict()  # in steps of the shape
        self._recent: deque[float] = deque(maxlen=RECENT)

    def record(self, request: GenerateRequest, seconds: float, stages: Mapping[str, float] | None = None) -> None:
        """A job took `seconds`, of them `stages["denoise"]` and `stages["decode"]` where they were measured."""
        shape, stages = shape_of(request), stages or {}
        with self._lock:
            _learn(self._by_shape, shape, seconds)
            self._recent.append(seconds)
            if (denoise := stages.get("denoise", 0.0)) > 0 and "decode" in stages:
                _learn(self._decode, shape, request.steps * min(MOST_STEPS, stages["decode"] / denoise))

    def seconds(self, request: GenerateRequest) -> float | None:
        """The shape's own average; else that of the last shape run, scaled by pixels x frames x steps; else None."""
        shape = shape_of(request)
        with self._lock:
            if shape in self._by_shape:
                return self._by_shape[shape]
            if not self._by_shape:
                return None
            other, seconds = next(reversed(self._by_shape.items()))
        return seconds * _work(shape) / _work(other)

    def decode_steps(self, request: GenerateRequest) -> float:
        """Decoding in steps of this request: the shape's own; else the last shape's, by guidance; else a guess."""
        shape = shape_of(request)
        with self._lock:
            if shape in self._decode:
                return self._decode[shape]
            if not self._decode:
                return DECODE_STEPS
            other, steps = next(reversed(self._decode.items()))
        return steps * _passes(other) / _passes(shape)

    @property
    def average(self) -> float:
        """Mean seconds of the last `RECENT` jobs; 0.0 before the first."""
        with self._lock:
            return sum(self._recent) / len(self._recent) if self._recent else 0.0


def _work(shape: Shape) -> float:
    width, height, frames, steps, _preset, _guided = shape
    return width * height * frames * steps * _passes(shape)


def _passes(shape: Shape) -> int:
    """Through the network in one step."""
    return 2 if shape[-1] else 1


def _learn(averages: OrderedDict[Shape, float], shape: Shape, value: float) -> None:
    known = averages.pop(shape, value)
    averages[shape] = known + WEIGHT * (value - known)
    if len(averages) > SHAPES_KEPT:
        averages.popitem(last=False)


UNKNOWN_PACE_S = 5  # Retry-After before the first job has finished
MAX_RETRY_S = 600


class Positions:
    """The queue's order, kept in memory between two changes so that polling costs no table scan. Thread-safe.

    `waiting()` reads the queued jobs, next one first.
    """

    def __init__(self, waiting: Callable[[], Sequence[Job]], running: RunningJobs, pace: Pace) -> None:
        self._waiting = waiting
        self._running = running
        self._pace = pace
        self._lock = threading.Lock()
        self._places: dict[str, tuple[int, float]] | None = None  # position, seconds of work ahead

    def moved(self) -> None:
        """The queue has changed: read it again when next asked."""
        with self._lock:
            self._places = None

    def __len__(self) -> int:
        return len(self._read())

    def fill_in(self, job: Job, live: RunningJob | None = None) -> Job:
        """The stored row with what only memory knows: step and stage of a running job, the place of a waiting one.

        `live` is the running job as it was known before the row was read, if it was.
        """
        seconds = self._pace.seconds(job.request)
        if job.status == "in_progress" and (live := self._running.get(job.id) or live) is not None:
            return live.snapshot(seconds, self._pace.decode_steps(job.request))
        if job.status == "queued" and (place := self._place(job.id)) is not None:
            position, ahead = place
            eta = None if seconds is None else round(self.seconds_busy() + ahead + seconds, 1)
            return replace(job, position=position, eta_s=eta)
        return job

    def _place(self, id: str) -> tuple[int, float] | None:
        """None too where the table cannot be asked now: the job is known, and its place can be told later."""
        try:
            return self._read().get(id)
        except Unavailable:
            return None

    def seconds_busy(self) -> float:
        """Until the running job leaves the engine; 0 when the engine is idle or the time unknown."""
        pace = self._pace
        running = (
            live.snapshot(pace.seconds(live.job.request), pace.decode_steps(live.job.request))
            for live in self._running.all()
        )
        return sum(job.eta_s or 0.0 for job in running if job.stage != "write")

    def retry_after(self) -> int:
        """Whole seconds until a place in a full queue frees: when the running job leaves the engine."""
        busy = self.seconds_busy()  # known from its own steps, too, before any job has finished
        if not busy and not self._pace.average:
            return UNKNOWN_PACE_S
        return min(MAX_RETRY_S, max(1, math.ceil(busy)))

    def _read(self) -> dict[str, tuple[int, float]]:
        with self._lock:
            if self._places is None:
                places, ahead = {}, 0.0
                for position, job in enumerate(self._waiting()):
                    places[job.id] = (position, ahead)
                    ahead += self._pace.seconds(job.request) or 0.0
                self._places = places
            return self._places
