"""Runs each denoising step plainly or in a faster form (`step_forms.py`), and holds the trial that a form has to pass.

The job's own steps are the trial. The first steps of a shape run plainly and are timed; where a form can still win back
what it costs to make, it is made, compared with the plain step on the job's own tensors, and timed on the steps that
follow. It is kept where it agrees and is faster; otherwise the plain step goes on and the reason is kept. Called by
`sampler.denoise` for every step and by `engine.py` around a job. Knows nothing of what a step computes.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from i2v.engine import device_memory, failures
from i2v.engine.device_work import wait
from i2v.engine.step_forms import WARM_UP, Call, Graph, StepForm, Tensors, choose_form
from i2v.notes import Note, say

log = logging.getLogger(__name__)

KEPT = 8  # forms at once; a preset with DeepCache has four for one shape. Also what torch.compile keeps of a function
SHAPES = 256  # shapes remembered for which no faster form was found, or not yet
TIMED = 3
WORTH = 1.03  # times as fast as the plain step, at least: less is the clock's noise

# A recording saves the host's work. Where the device is still busy when the host has queued a step, there is none to
# save: the next step is queued in that time.
HOST_BOUND = 0.9  # of a plain step's time went into queueing it, at least
MOST_WON = 0.5  # of a plain step's time, at most: what is assumed before a form has been seen
COST = WARM_UP + 2  # plain steps that making a recording takes: warm-up, capture, comparison
NO_GAIN = ("plain_device_bound", "plain_not_faster")  # reasons that are no fault of the form

# Largest relative difference from the plain step. A graph replays the same kernels; a compiled step keeps more digits
# between its layers, and guidance (9 times a difference of two predictions) magnifies either side's rounding.
BOUNDS = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(slots=True)
class PlainSteps:
    """What is known of the plain step of one shape: seconds to queue it and to finish it, at best."""

    seen: int = 0  # the first is not timed: libraries make their plans in it
    queued: float = float("inf")
    finished: float = float("inf")

    @property
    def host_bound(self) -> bool:
        return self.queued >= HOST_BOUND * self.finished


@dataclass(slots=True)
class Kept:
    """A form that agrees with the plain step, and the bytes it holds. `plain` and `seconds` are a step's, at best.

    `timed` of its steps have been timed so far; when there are enough it is faster, or not kept any longer.
    """

    run: Call
    held: int
    plain: float
    seconds: float = float("inf")
    timed: int = 0

    @property
    def gain(self) -> float:
        """How many times as fast as the plain step; 0 before it was timed."""
        return self.plain / self.seconds


@dataclass(slots=True)
class Accelerator:
    """Runs steps, in the faster form where one has passed its trial. `start` begins a job, `report` ends it.

    With `thrifty` no form is made that the job cannot win back; without it (the operator named the form) every shape
    gets its trial.
    """

    form: StepForm | None = None
    reason: str = "accelerate is off"
    clock: Callable[[], float] = time.perf_counter
    thrifty: bool = False
    timed: int = TIMED  # steps that are timed of each side; the fastest counts
    kept: OrderedDict[Hashable, Kept] = field(default_factory=OrderedDict)
    refused: dict[Hashable, Note] = field(default_factory=dict)
    warm_up: float = 0.0  # seconds of this job that went into making forms and comparing them
    _plain: dict[Hashable, PlainSteps] = field(default_factory=dict)
    _weights: tuple[int, ...] = ()
    _forbidden: Note | None = None
    _used: bool = False  # whether the job took any step in the faster form
    _job: Hashable = None
    _met: dict[Hashable, set[Hashable]] = field(default_factory=dict)  # per job the keys of its steps
    _told: list[Note] = field(default_factory=list)

    @classmethod
    def of(cls, wanted: str, device: torch.device) -> "Accelerator":
        form, reason = choose_form(wanted, device)
        return cls(form, reason, thrifty=wanted == "auto")

    @property
    def held(self) -> int:
        """Bytes of the device's memory that the kept forms hold between jobs."""
        return sum(kept.held for kept in self.kept.values())

    def start(self, forbidden: Note | None = None, job: Hashable = None) -> None:
        """A new job; `forbidden` says why its steps have to be plain. Steps of equal `job` come in the same shapes."""
        self.warm_up, self._job = 0.0, job
        self.refused = {key: reason for key, reason in self.refused.items() if not _is_passing(reason)}
        for bounded in (self._met, self._plain):
            if len(bounded) >= SHAPES:
                bounded.clear()
        broken = self.form is not None and self.form.lost() is not None
        self.forbid(forbidden or (Note("plain_capture_failed") if broken else None))

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

    def run(
        self, step: Callable[..., tuple[Any, ...]], unet: Any, kind: Hashable, inputs: tuple[Any, ...], left: int
    ) -> Any:
        """`step(unet, kind, *inputs)` in the fastest form that is known to agree with it.

        `inputs` are the request's state and then tensors, the last of which may be None; so are the results. `left`
        steps of this kind follow in the job.
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
        if key in self.kept:
            results = self._run_kept(self.form, key, given)
        elif key in self.refused:
            self._tell(self.refused[key])
            results = call(given)
        else:
            results = self._run_plain(self.form, key, call, given, left, state.image_term.dtype)
        return (*results, *[None] * (4 - len(results)))

    # --- the trial

    def _run_plain(
        self, form: StepForm, key: Hashable, call: Call, given: Tensors, left: int, dtype: torch.dtype
    ) -> Tensors:
        """A plain step of a shape that is not decided yet: timed, and the last of these decides what comes of it.

        A job that is too short for the rest of the trial is not held up by its beginning either.
        """
        plain, device = self._plain.setdefault(key, PlainSteps()), given[0].device
        left -= max(0, self.timed - plain.seen)  # plain steps that are still to be timed after this one
        if self.thrifty and left * MOST_WON <= COST:
            self._tell(Note("plain_too_few", {"form": form.name}))
            return call(given)
        plain.seen += 1
        wait(device)
        start = self.clock()
        results = call(given)
        queued = self.clock() - start
        wait(device)
        if plain.seen > 1:
            plain.queued, plain.finished = min(plain.queued, queued), min(plain.finished, self.clock() - start)
        if plain.seen <= self.timed:
            return results
        if self.thrifty and not plain.host_bound:
            share = round(100 * plain.queued / plain.finished)
            self._refuse(key, Note("plain_device_bound", {"form": form.name, "share": share}), device)
        elif bool(torch.isfinite(results[0]).all()):  # nothing can be compared with numbers that are not finite
            self._try(form, key, call, given, results, BOUNDS[dtype])
        return results

    def _try(self, form: StepForm, key: Hashable, call: Call, given: Tensors, wanted: Tensors, bound: float) -> None:
        """Make a form for `key`, and keep it for now if it gives what `wanted` holds."""
        start, device = self.clock(), given[0].device
        form.forget(self.kept, KEPT - 1)
        try:
            reason = self._make(form, key, call, given, wanted, bound)
        except Exception as error:
            if failures.is_fatal(error):
                raise
            first = next(iter(str(error).splitlines()), "")[:200]
            reason = Note("plain_failed", {"form": form.name, "error": f"{type(error).__name__}: {first}"})
            if failures.is_out_of_memory(error):
                reason = Note("plain_no_memory", {"form": form.name})
        if reason is not None:
            self._refuse(key, reason, device)
        if (lost := form.lost()) is not None:
            self.drop()
            device_memory.lose(device, lost)
            self.forbid(Note("plain_capture_failed"))
        self.warm_up += self.clock() - start

    def _make(
        self, form: StepForm, key: Hashable, call: Call, given: Tensors, wanted: Tensors, bound: float
    ) -> Note | None:
        """Keep what `form` makes, or say why not. It is made on other numbers: one that does nothing would show."""
        others = tuple(tensor * 0.5 + 0.01 if tensor.is_floating_point() else tensor for tensor in given)
        run, held = form.make(call, others)
        difference = largest_difference(run(given), wanted)
        if not difference <= bound:
            return Note("plain_differed", {"form": form.name, "difference": f"{difference:.1e}"})
        self.kept[key] = Kept(run, held, self._plain[key].finished)
        return None

    def _run_kept(self, form: StepForm, key: Hashable, given: Tensors) -> Tensors:
        """A step in the form of `key`; its first ones are timed, and the last of these decides whether it stays."""
        kept, device = self.kept[key], given[0].device
        self.kept.move_to_end(key)
        self._used = True
        if kept.timed == self.timed:
            return kept.run(given)
        wait(device)
        start = self.clock()
        results = kept.run(given)
        wait(device)
        kept.seconds, kept.timed = min(kept.seconds, self.clock() - start), kept.timed + 1
        if kept.timed == self.timed:
            if kept.gain >= WORTH:
                log.info("steps run as %s: %.2f times as fast", say(form.name), kept.gain)
            else:
                reason = Note("plain_not_faster", {"form": form.name, "gain": round(kept.gain, 2)})
                del kept, self.kept[key]
                self._refuse(key, reason, device)
        return results

    def _refuse(self, key: Hashable, reason: Note, device: torch.device) -> None:
        """Here the attempt and its exception are gone, so what they held can be given back."""
        log.log(logging.INFO if reason.code in NO_GAIN else logging.WARNING, "%s", say(reason))
        if len(self.refused) >= SHAPES:
            self.refused.clear()
        self.refused[key] = reason
        self._tell(reason)
        if self.form is not None:  # with nothing kept, the recordings' common memory goes too
            self.form.forget(self.kept, 0 if _is_passing(reason) else KEPT)
        device_memory.recover(device)

    def _tell(self, reason: Note) -> None:
        if reason not in self._told:
            self._told.append(reason)


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
