"""How long jobs take here, learnt from those that finished: seconds per shape for an ETA and for Retry-After.

Decoding is counted in denoising steps: how many of them would take as long. That hardly depends on the size.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Final

from i2v.jobs.job import DECODE_STEPS
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
