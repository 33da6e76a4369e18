"""Two faster forms of the denoising step, compiled or captured as a CUDA graph, and the trial each has to pass.

The first time a form meets a shape it is made, compared with the plain step on the job's own tensors, and timed against
it. It is kept where it agrees and is faster; otherwise the plain step goes on and the reason is kept. Called by
`sampler.denoise` for every step and by `engine.py` around a job. Knows nothing of what a step computes.
"""

import logging
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from i2v.engine import device_memory, failures
from i2v.notes import Note, say

Tensors = tuple[Tensor, ...]
Call = Callable[[Sequence[Tensor]], Tensors]  # a step as a function of tensors alone

log = logging.getLogger(__name__)

KEPT = 8  # forms at once: turbo needs four for one shape. Also the number of versions torch.compile keeps of a function
REASONS = 256  # shapes remembered for which no faster form was found
TRIALS = 3  # timed runs of each side; the best one counts
WORTH = 1.03  # times as fast as the plain step, at least: less is the clock's noise
WARM_UP = 3  # runs before a capture, so that libraries have made their workspaces
COMPILED, CUDA_GRAPH = Note("compiled"), Note("cuda_graph")

# Largest relative difference from the plain step. A graph replays the same kernels; a compiled step keeps more digits
# between its layers, and guidance (9 times a difference of two predictions) magnifies either side's rounding.
BOUNDS = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class StepForm(Protocol):
    """One way of making a step faster."""

    name: Note

    def make(self, call: Call, inputs: Tensors) -> tuple[Call, int]:
        """A faster `call` for tensors shaped like `inputs`, and the bytes it holds. Raises what goes wrong."""

    def needs(self, activations: int) -> int:
        """Bytes that one form keeps of a step whose activations are so many."""

    def forget(self, kept: "OrderedDict[Hashable, Kept]", most: int) -> None:
        """Drop the least recently used of `kept` until `most` are left, or all of them."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A form that passed its trial: `gain` is how many times as fast as the plain step it was, `held` bytes."""

    run: Call
    held: int
    gain: float


class Compiled:
    """torch.compile, one version a shape. Inductor is imported when the first is made: it needs a C++ compiler."""

    name = COMPILED

    def make(self, call: Call, inputs: Tensors) -> tuple[Call, int]:
        def tensors(*flat: Tensor) -> Tensors:
            return call(flat)

        compiled = torch.compile(tensors, dynamic=False, fullgraph=True)
        return (lambda given: compiled(*given)), 0

    def needs(self, activations: int) -> int:
        return 0  # it records nothing

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

    An input that is the same tensor as last time, unwritten since, is not copied again. It is known by a weak
    reference: between jobs no request's tensors are kept.
    """

    capture: Capture
    name: Note = CUDA_GRAPH

    def make(self, call: Call, inputs: Tensors) -> tuple[Call, int]:
        own = tuple(tensor.clone() for tensor in inputs)
        captured = self.capture(lambda: call(own))
        last: list[tuple[weakref.ref[Tensor], int] | None] = [None] * len(own)

        def run(given: Sequence[Tensor]) -> Tensors:
            for place, (buffer, tensor) in enumerate(zip(own, given, strict=True)):
                known = last[place]
                if known is None or known[0]() is not tensor or known[1] != tensor._version:
                    buffer.copy_(tensor)
                    last[place] = weakref.ref(tensor), tensor._version
            captured.replay()
            return tuple(output.clone() for output in captured.outputs)

        return run, captured.held + sum(buffer.untyped_storage().nbytes() for buffer in own)

    def needs(self, activations: int) -> int:
        return activations  # a second set, for the recording alone

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
    side: Any = None  # the stream of all warm-ups and captures

    def __call__(self, run: Callable[[], Tensors]) -> Captured:
        with torch.cuda.device(self.device):
            return self._record(run)

    def _record(self, run: Callable[[], Tensors]) -> Captured:
        caller = torch.cuda.current_stream(self.device)
        if self.side is None:
            self.side = torch.cuda.Stream(self.device)
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        self.side.wait_stream(caller)
        with torch.cuda.stream(self.side):
            for _ in range(WARM_UP):
                run()
        caller.wait_stream(self.side)
        # A capture empties the cache as it begins; what it takes shows only against what is left after that
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(self.device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.side, capture_error_mode="thread_local"):
                outputs = run()
        finally:
            torch.cuda.set_stream(caller)  # a capture that fails as it ends leaves its own stream current
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


def choose_form(wanted: str, device: torch.device) -> tuple[StepForm | None, str]:
    """The form for a device, and why. `auto` is a graph on CUDA, none elsewhere. Raises ValueError for other names."""
    if wanted not in ("auto", "off", "compile", "graph"):
        raise ValueError(f"accelerate is {wanted!r}; it must be auto, off, compile or graph")
    if wanted == "off":
        return None, "accelerate is off"
    if wanted == "compile":
        return Compiled(), "accelerate is compile"
    if device.type == "cuda":
        return Graph(CudaCapture(device)), f"accelerate is {wanted}"
    if wanted == "graph":
        return None, f"CUDA graphs need a CUDA device, and this is {device.type}"
    return None, f"accelerate is auto: {device.type} has no kernel launches to save, and compiling takes minutes"


@dataclass(slots=True)
class Accelerator:
    """Runs steps, in the faster form where one has passed its trial. `start` begins a job, `report` ends it."""

    form: StepForm | None = None
    reason: str = "accelerate is off"
    clock: Callable[[], float] = time.perf_counter
    kept: OrderedDict[Hashable, Kept] = field(default_factory=OrderedDict)
    refused: dict[Hashable, Note] = field(default_factory=dict)
    warm_up: float = 0.0  # seconds of this job that went into making and trying forms
    _weights: tuple[int, ...] = ()
    _forbidden: Note | None = None
    _used: bool = False  # whether the job took any step in the faster form
    _job: Hashable = None
    _met: dict[Hashable, set[Hashable]] = field(default_factory=dict)  # per job the keys of its steps
    _told: list[Note] = field(default_factory=list)

    @classmethod
    def of(cls, wanted: str, device: torch.device) -> "Accelerator":
        form, reason = choose_form(wanted, device)
        return cls(form, reason)

    @property
    def held(self) -> int:
        """Bytes of the device's memory that the kept forms hold between jobs."""
        return sum(kept.held for kept in self.kept.values())

    def start(self, forbidden: Note | None = None, job: Hashable = None) -> None:
        """A new job; `forbidden` says why its steps have to be plain. Steps of equal `job` come in the same shapes."""
        self.warm_up, self._job = 0.0, job
        self.refused = {key: reason for key, reason in self.refused.items() if not _is_passing(reason)}
        if len(self._met) >= REASONS:
            self._met.clear()
        self.forbid(forbidden)

    def forbid(self, reason: Note | None) -> None:
        """From here on the job's steps are plain, and its plan and notes describe only these."""
        self._forbidden, self._used, self._told = reason, False, []
        if reason is not None and self.form is not None:
            self._told.append(reason)

    def serves(self, job: Hashable) -> bool:
        """Whether every step that such a job was seen to take is kept in a faster form: it will make no more."""
        return job in self._met and all(key in self.kept for key in self._met[job])

    def report(self) -> tuple[tuple[Note, ...], tuple[Note, ...]]:
        """How the job's steps ran, for its plan (nothing where plainly), and why some did not in the faster form."""
        used = (Note("steps_as", {"form": self.form.name}),) if self.form is not None and self._used else ()
        return used, tuple(self._told)

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
        empty = state.with_tensors([torch.empty(0)] * constants)  # forms outlive the request, its tensors do not

        def call(flat: Sequence[Tensor]) -> Tensors:
            results = step(unet, kind, empty.with_tensors(flat[:constants]), *flat[constants:], *missing)
            return tuple(result for result in results if result is not None)

        key = (kind, state.ff_chunks, state.guidance_passes, *(described(tensor) for tensor in given))
        if self._job is not None:
            self._met.setdefault(self._job, set()).add(key)
        found = self.kept.get(key)
        if found is not None:
            self.kept.move_to_end(key)
            self._used = True
            results = found.run(given)
        else:
            results = call(given)
            if key in self.refused:
                self._tell(self.refused[key])
            elif bool(torch.isfinite(results[0]).all()):  # nothing can be compared with numbers that are not finite
                self._try(self.form, key, call, given, results, state.image_term.dtype)
        return (*results, *[None] * (4 - len(results)))

    def _try(
        self, form: StepForm, key: Hashable, call: Call, given: Tensors, wanted: Tensors, dtype: torch.dtype
    ) -> None:
        """Make a form for `key` and keep it if it gives what `wanted` holds, and faster."""
        start, device = self.clock(), given[0].device
        form.forget(self.kept, KEPT - 1)
        try:
            reason = self._examine(form, key, call, given, wanted, BOUNDS[dtype])
        except Exception as error:
            if failures.is_fatal(error):
                raise
            first = next(iter(str(error).splitlines()), "")[:200]
            reason = Note("plain_failed", {"form": form.name, "error": f"{type(error).__name__}: {first}"})
            if failures.is_out_of_memory(error):
                reason = Note("plain_no_memory", {"form": form.name})
        if reason is not None:
            self._refuse(key, reason, device)
        self.warm_up += self.clock() - start

    def _examine(
        self, form: StepForm, key: Hashable, call: Call, given: Tensors, wanted: Tensors, bound: float
    ) -> Note | None:
        """Keep what `form` makes, or say why not. Other numbers go first: a form that does nothing would show."""
        fast, held = form.make(call, given)
        others = tuple(tensor * 0.5 + 0.01 if tensor.is_floating_point() else tensor for tensor in given)
        difference = largest_difference(fast(others), call(others))
        if difference <= bound:
            difference = max(difference, largest_difference(fast(given), wanted))
        if not difference <= bound:
            return Note("plain_differed", {"form": form.name, "difference": f"{difference:.1e}"})
        device = given[0].device
        gain = self._best(call, given, device) / self._best(fast, given, device)
        if not gain >= WORTH:
            return Note("plain_not_faster", {"form": form.name, "gain": round(gain, 2)})
        self.kept[key] = Kept(fast, held, gain)
        log.info("steps run as %s: %.2f times as fast, within %.1e", say(form.name), gain, difference)
        return None

    def _refuse(self, key: Hashable, reason: Note, device: torch.device) -> None:
        """Here the attempt and its exception are gone, so what they held can be given back."""
        log.warning("%s", say(reason))
        if len(self.refused) >= REASONS:
            self.refused.clear()
        self.refused[key] = reason
        self._tell(reason)
        if self.form is not None:  # with nothing kept, the recordings' common memory goes too
            self.form.forget(self.kept, 0 if _is_passing(reason) else KEPT)
        device_memory.recover(device)

    def _tell(self, reason: Note) -> None:
        if reason not in self._told:
            self._told.append(reason)

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


def _is_passing(reason: Note) -> bool:
    """Whether another job may find what this one lacked, so that the reason is forgotten."""
    return reason.code == "plain_no_memory"


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
