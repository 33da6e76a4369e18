"""Two faster forms of the denoising step, compiled or captured as a CUDA graph, and the trial each has to pass.

The first time a form meets a shape it is made, compared with the plain step on the job's own tensors, and timed against
it. It is kept where it agrees and is faster; otherwise the plain step goes on and the reason is kept. Called by
`sampler.denoise` for every step and by `engine.py` around a job. Knows nothing of what a step computes.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from i2v.engine import memory

Accelerate = Literal["auto", "off", "compile", "graph"]
Tensors = tuple[Tensor, ...]
Call = Callable[[Sequence[Tensor]], Tensors]  # a step as a function of tensors alone

log = logging.getLogger(__name__)

KEPT = 8  # forms at once: turbo needs four for one shape. Also the number of versions torch.compile keeps of a function
REASONS = 256  # shapes that were tried in vain and are remembered
TRIALS = 2  # timed runs of each side; the better one counts
NO_MEMORY = "there was no memory for it"  # another job may find some, so this reason is forgotten
WARM_UP = 3  # runs before a capture, so that libraries have made their workspaces

# Largest relative difference from the plain step. A graph replays the same kernels; a compiled step keeps more digits
# between its layers, and guidance (9 times a difference of two predictions) magnifies either side's rounding.
BOUNDS = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Form(Protocol):
    """One way of making a step faster."""

    name: str

    def make(self, call: Call, inputs: Tensors) -> tuple[Call, int]:
        """A faster `call` for tensors shaped like `inputs`, and the bytes it holds. Raises what goes wrong."""

    def forget(self, kept: "OrderedDict[Hashable, Kept]", most: int) -> None:
        """Drop the least recently used of `kept` until `most` are left, or all of them."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A form that passed its trial: `gain` is how many times as fast as the plain step it was, `held` bytes."""

    run: Call
    held: int
    gain: float


class Compiled:
    """torch.compile, one version a shape. Inductor is imported when the first is made: it wants a C++ compiler."""

    name = "compiled"

    def make(self, call: Call, inputs: Tensors) -> tuple[Call, int]:
        def tensors(*flat: Tensor) -> Tensors:
            return call(flat)

        compiled = torch.compile(tensors, dynamic=False, fullgraph=True)
        return (lambda given: compiled(*given)), 0

    def forget(self, kept: "OrderedDict[Hashable, Kept]", most: int) -> None:
        if len(kept) > most:  # versions of one function share one cache, which is emptied as a whole
            kept.clear()
            torch.compiler.reset()


class Captured(Protocol):
    """A recorded step: `replay` runs it again on the same memory and leaves its results in `outputs`."""

    outputs: Tensors
    held: int

    def replay(self) -> None: ...


class Capture(Protocol):
    """Records what `run` does; `reset` when no recording is left, so that their common memory may go."""

    def __call__(self, run: Callable[[], Tensors]) -> Captured: ...

    def reset(self) -> None: ...


@dataclass(slots=True)
class Graph:
    """CUDA graphs. Inputs are copied into buffers of its own, results out of them, so callers see ordinary tensors.

    An input that is the same tensor as last time is not copied again: callers write into none of theirs.
    """

    capture: Capture
    name: str = "a CUDA graph"

    def make(self, call: Call, inputs: Tensors) -> tuple[Call, int]:
        own = tuple(tensor.clone() for tensor in inputs)
        captured = self.capture(lambda: call(own))
        last: list[Tensor] = list(inputs)

        def run(given: Sequence[Tensor]) -> Tensors:
            for place, (buffer, tensor) in enumerate(zip(own, given, strict=True)):
                if tensor is not last[place]:
                    buffer.copy_(tensor)
                    last[place] = tensor
            captured.replay()
            return tuple(output.clone() for output in captured.outputs)

        return run, captured.held + sum(buffer.untyped_storage().nbytes() for buffer in own)

    def forget(self, kept: "OrderedDict[Hashable, Kept]", most: int) -> None:
        while len(kept) > most:
            kept.popitem(last=False)
        if not kept:
            self.capture.reset()


@dataclass(slots=True)
class CudaCapture:
    """`torch.cuda.graph` with one memory pool for all recordings. Not yet run on a GPU.

    One pool is sound because results are copied out before another graph is replayed.
    """

    device: torch.device
    pool: Any = None

    def __call__(self, run: Callable[[], Tensors]) -> Captured:
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                run()
        torch.cuda.current_stream(self.device).wait_stream(side)
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        before = torch.cuda.memory_reserved(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            outputs = run()
        return CudaCaptured(graph, outputs, max(0, torch.cuda.memory_reserved(self.device) - before))

    def reset(self) -> None:
        self.pool = None


@dataclass(slots=True)
class CudaCaptured:
    """A `torch.cuda.CUDAGraph` and the tensors it writes."""

    graph: Any
    outputs: Tensors
    held: int

    def replay(self) -> None:
        self.graph.replay()


def choose_form(wanted: str, device: torch.device) -> tuple[Form | None, str]:
    """The form for a device, and why. `auto` is a graph on CUDA, none elsewhere. Raises ValueError for other names."""
    if wanted not in ("auto", "off", "compile", "graph"):
        raise ValueError(f"accelerate is {wanted!r}; auto, off, compile or graph is wanted")
    if wanted == "off":
        return None, "accelerate is off"
    if wanted == "compile":
        return Compiled(), "accelerate is compile"
    if device.type == "cuda":
        return Graph(CudaCapture(device)), f"accelerate is {wanted}"
    if wanted == "graph":
        return None, f"CUDA graphs want a CUDA device, and this is {device.type}"
    return None, f"accelerate is auto: {device.type} has no kernel launches to save, and compiling takes minutes"


@dataclass(slots=True)
class Accelerator:
    """Runs steps, in the faster form where one has passed its trial. `start` begins a job, `report` tells of it."""

    form: Form | None = None
    reason: str = "accelerate is off"
    clock: Callable[[], float] = time.perf_counter
    kept: OrderedDict[Hashable, Kept] = field(default_factory=OrderedDict)
    refused: dict[Hashable, str] = field(default_factory=dict)
    warm_up: float = 0.0  # seconds of this job that went into making and trying forms
    _weights: tuple[int, ...] = ()
    _forbidden: str | None = None
    _used: set[str] = field(default_factory=set)
    _told: dict[str, None] = field(default_factory=dict)

    @classmethod
    def of(cls, wanted: str, device: torch.device) -> "Accelerator":
        form, reason = choose_form(wanted, device)
        return cls(form, reason)

    @property
    def held(self) -> int:
        """Bytes of the device's memory that the kept forms hold between jobs."""
        return sum(kept.held for kept in self.kept.values())

    def start(self, forbidden: str | None = None) -> None:
        """A new job; `forbidden` says why its steps have to be plain, None where they need not."""
        self.warm_up, self._forbidden = 0.0, forbidden
        self.refused = {key: reason for key, reason in self.refused.items() if NO_MEMORY not in reason}
        self._used, self._told = set(), {}
        if forbidden is not None and self.form is not None:
            self._told[forbidden] = None

    def report(self) -> tuple[str, tuple[str, ...]]:
        """How the job's steps ran, for its plan ("" where plainly), and why some did not run as wanted."""
        used = " and ".join(sorted(self._used))
        return (f"steps as {used}" if used else ""), tuple(f"Steps ran plainly: {reason}." for reason in self._told)

    def drop(self) -> None:
        """Forget every form and give its memory back."""
        if self.form is not None:
            self.form.forget(self.kept, 0)

    def watch(self, unet: Any) -> None:
        """Before a request's steps: forms that were made on weights at other addresses are dropped."""
        if isinstance(self.form, Graph):
            addresses = tuple(parameter.data_ptr() for parameter in unet.parameters())
            if addresses != self._weights:
                self.drop()
                self._weights = addresses

    def run(self, step: Callable[..., tuple[Any, ...]], unet: Any, kind: Hashable, inputs: tuple[Any, ...]) -> Any:
        """`step(unet, kind, *inputs)` in the fastest form that is known to agree with it.

        `inputs` are the request's state and then tensors, the last of which may be None; so are the results.
        """
        if self.form is None or self._forbidden is not None:
            return step(unet, kind, *inputs)
        state, *rest = inputs
        given = (*state.tensors(), *(tensor for tensor in rest if tensor is not None))
        constants, missing = len(state.tensors()), [None] * sum(tensor is None for tensor in rest)

        def call(flat: Sequence[Tensor]) -> Tensors:
            results = step(unet, kind, state.with_tensors(flat[:constants]), *flat[constants:], *missing)
            return tuple(result for result in results if result is not None)

        key = (kind, state.ff_chunks, state.guidance_passes, *(described(tensor) for tensor in given))
        found = self.kept.get(key)
        if found is not None:
            self.kept.move_to_end(key)
            self._used.add(self.form.name)
            results = found.run(given)
        else:
            results = call(given)
            if key in self.refused:
                self._told[self.refused[key]] = None
            elif bool(torch.isfinite(results[0]).all()):  # nothing can be compared with numbers that are not finite
                self._try(self.form, key, call, given, results, state.image_term.dtype)
        return (*results, *[None] * (4 - len(results)))

    def _try(self, form: Form, key: Hashable, call: Call, given: Tensors, wanted: Tensors, dtype: torch.dtype) -> None:
        """Make a form for `key` and keep it if it gives what `wanted` holds, and faster."""
        start, device = self.clock(), given[0].device
        form.forget(self.kept, KEPT - 1)
        reason = None
        try:
            fast, held = form.make(call, given)
            difference = largest_difference(fast(given), wanted)
            if not difference <= BOUNDS[dtype]:
                reason = f"{form.name} differed by {difference:.1e} from the plain step"
            else:
                gain = self._best(call, given, device) / self._best(fast, given, device)
                if gain > 1.0:
                    self.kept[key] = Kept(fast, held, gain)
                    log.info("steps run as %s: %.2f times as fast, within %.1e", form.name, gain, difference)
                else:
                    reason = f"{form.name} was not faster ({gain:.2f} times)"
        except Exception as error:
            if memory.is_fatal(error):
                raise
            short = memory.is_out_of_memory(error)
            first = next(iter(str(error).splitlines()), "")[:200]
            cause = NO_MEMORY if short else f"{type(error).__name__}: {first}"
            reason = f"{form.name} could not be made, {cause}"
        if reason is not None:
            self._refuse(key, reason, device)
        self.warm_up += self.clock() - start

    def _refuse(self, key: Hashable, reason: str, device: torch.device) -> None:
        """Here the failed attempt's exception is gone, so what it held can be given back."""
        log.warning("steps run plainly: %s", reason)
        if len(self.refused) >= REASONS:
            self.refused.clear()
        self.refused[key] = reason
        self._told[reason] = None
        if NO_MEMORY in reason:
            self.drop()
        memory.recover(device)

    def _best(self, call: Call, given: Tensors, device: torch.device) -> float:
        """Seconds of the fastest of `TRIALS` runs, the device's queued work included."""
        taken = []
        for _ in range(TRIALS):
            wait(device)
            start = self.clock()
            call(given)
            wait(device)
            taken.append(self.clock() - start)
        return min(taken)


def described(tensor: Tensor) -> tuple[Hashable, ...]:
    """What a form depends on, of a tensor: its shape, strides, dtype and device."""
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def largest_difference(found: Iterable[Tensor], wanted: Iterable[Tensor]) -> float:
    """The largest relative difference of any pair, in the Euclidean norm; NaN counts as infinite."""
    largest = 0.0
    for one, other in zip(found, wanted, strict=True):
        error = float((one.float() - other.float()).norm() / other.float().norm().clamp(min=1e-12))
        largest = max(largest, error if error == error else float("inf"))
    return largest


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
