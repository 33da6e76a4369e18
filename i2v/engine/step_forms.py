"""Two faster forms of the denoising step: compiled, and recorded as a CUDA graph.

Only how each is made; whether one is worth its trial, agrees with the plain step and is faster is decided in
`faster_steps.py`. Knows nothing of what a step computes.
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from i2v.notes import Note

Tensors = tuple[Tensor, ...]
Call = Callable[[Sequence[Tensor]], Tensors]  # a step as a function of tensors alone

WARM_UP = 1  # runs on the recording's own stream before it, so that libraries have made their workspaces there
COMPILED, CUDA_GRAPH = Note("compiled"), Note("cuda_graph")


class StepForm(Protocol):
    """One way of making a step faster."""

    name: Note

    def make(self, call: Call, inputs: Tensors) -> tuple[Call, int]:
        """A faster `call` for tensors shaped like `inputs`, and the bytes it holds. Raises what goes wrong."""

    def needs(self, activations: int) -> int:
        """Bytes that one form keeps of a step whose activations are so many."""

    def forget(self, kept: OrderedDict[Hashable, Any], most: int) -> None:
        """Drop the least recently used of `kept` until `most` are left, or all of them."""

    def lost(self) -> int | None:
        """Bytes that one which broke off holds for good, after which none can be made in this process; None before."""


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

    def forget(self, kept: OrderedDict[Hashable, Any], most: int) -> None:
        if len(kept) > most:  # versions of one function share one cache, which is emptied as a whole
            kept.clear()
            torch.compiler.reset()

    def lost(self) -> int | None:
        return None


class Captured(Protocol):
    """A recorded step: `replay` runs it again on the same memory and leaves its results in `outputs`."""

    outputs: Tensors
    held: int

    def replay(self) -> None: ...


class Capture(Protocol):
    """Records what `run` does; `reset` when no recording is left, so that their common memory may go."""

    def __call__(self, run: Callable[[], Tensors]) -> Captured: ...

    def reset(self) -> None: ...

    def lost(self) -> int | None:
        """Bytes that recordings hold for good since one broke off in this process; None while none did."""


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

    def forget(self, kept: OrderedDict[Hashable, Any], most: int) -> None:
        while len(kept) > most:
            kept.popitem(last=False)
        if not kept:
            self.capture.reset()

    def lost(self) -> int | None:
        return self.capture.lost()


@dataclass(slots=True)
class CudaCapture:
    """`torch.cuda.graph` with one memory pool for all recordings. Not yet run on a GPU.

    One pool is sound because results are copied out before another graph is replayed.

    A recording that breaks off leaves PyTorch's allocator unsound for the process: the end of the allocation to its
    pool is left out, so `empty_cache` gives nothing back and the pool's memory never returns (pytorch#180395 and
    #190348). So none is tried on that card after it, the pool's handle is kept, and what the pool holds counts as lost.
    """

    broken: ClassVar[dict[torch.device, tuple[Any, int]]] = {}  # by card: the pool of one that broke off, and its bytes

    device: torch.device
    pool: Any = None
    side: Any = None  # the stream of all warm-ups and captures
    taken: int = 0  # bytes that the pool's recordings took

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
        except BaseException:
            self.broken[self.device] = self.pool, self.taken + self._grown(before)
            raise
        finally:
            torch.cuda.set_stream(caller)  # a capture that fails as it ends leaves its own stream current
        held = self._grown(before)
        self.taken += held
        return CudaCaptured(graph, outputs, held)

    def _grown(self, before: int) -> int:
        return max(0, torch.cuda.memory_reserved(self.device) - before)

    def reset(self) -> None:
        self.pool, self.taken = None, 0

    def lost(self) -> int | None:
        return self.broken[self.device][1] if self.device in self.broken else None


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
