"""How long jobs take here, learnt from those that finished: seconds per shape for an ETA and for Retry-After."""

import threading
from collections import OrderedDict, deque
from typing import Final

from i2v.request import GenerateRequest

SHAPES_KEPT: Final = 200
RECENT: Final = 50  # jobs in the overall average
WEIGHT: Final = 0.3  # of the newest job in a shape's moving average

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
        self._recent: deque[float] = deque(maxlen=RECENT)

    def record(self, request: GenerateRequest, seconds: float) -> None:
        shape = shape_of(request)
        with self._lock:
            known = self._by_shape.pop(shape, seconds)
            self._by_shape[shape] = known + WEIGHT * (seconds - known)
            if len(self._by_shape) > SHAPES_KEPT:
                self._by_shape.popitem(last=False)
            self._recent.append(seconds)

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

    @property
    def average(self) -> float:
        """Mean seconds of the last `RECENT` jobs; 0.0 before the first."""
        with self._lock:
            return sum(self._recent) / len(self._recent) if self._recent else 0.0


def _work(shape: Shape) -> float:
    width, height, frames, steps, _preset, guided = shape
    return width * height * frames * steps * (2 if guided else 1)
