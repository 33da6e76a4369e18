"""One queued request and what became of it, as every door sees it (`Job`), and what its table takes and gives."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from i2v.notes import Note
from i2v.request import GenerateRequest

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled", "interrupted"]
FINAL: frozenset[Status] = frozenset({"completed", "failed", "cancelled", "interrupted"})
DECODE_STEPS: Final = 10.0  # decoding takes as long as so many steps, before any job was measured: a guess
Door = Literal["predict", "videos", "ui", "cli"]


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a completed job left: the file's name inside the outputs folder and how it came about."""

    file: str  # video_YYYYMMDD_HHMMSS_<6>.mp4
    bytes: int
    seed: int
    guidance_scale: float  # the one that was used
    model: str  # ModelInfo.name
    model_title: str
    device: str
    seconds: float  # inference time: encode + denoise + decode
    stage_seconds: dict[str, float]  # encode, denoise, decode, write
    peak_memory_mb: float | None
    plan: Note | str | None  # rows of older versions hold sentences
    notes: tuple[Note | str, ...]
    warnings: tuple[Note | str, ...]
    model_kind: Literal["real", "demo", "fake"] = "real"  # ModelInfo.kind; rows of older versions do not say it


@dataclass(frozen=True, slots=True)
class Job:
    """A snapshot. `request.seed` is always set. Times are aware UTC; `position` 0 is next in the queue."""

    id: str  # video_<24 hex>
    status: Status
    request: GenerateRequest
    door: Door
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    attempt: int = 0
    stage: str | None = None  # encode, denoise, decode, write while in progress
    step: int = 0  # of request.steps, within denoise
    position: int | None = None  # while queued
    eta_s: float | None = None  # while queued or in progress, once a pace is known
    done: float | None = None  # 0..1 of the job's time, decoding included; only while it runs in this process
    error_code: str | None = None
    error_message: str | None = None
    result: JobResult | None = None
    extends: str | None = None  # id of the job whose video this one continues
    replayed: bool = False  # only from `submit`: an idempotency key named a job that was there already

    @property
    def progress(self) -> int:
        """0..100; 100 only when completed. A job that ended early has what its steps were of the whole."""
        if self.status == "completed":
            return 100
        done = self.step / (self.request.steps + DECODE_STEPS) if self.done is None else self.done
        return min(99, int(100 * done))

    @property
    def is_final(self) -> bool:
        return self.status in FINAL


class InvalidTransition(RuntimeError):
    """The job is not in the state, boot or attempt that the change was meant for; nothing was changed."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """What is stored on arrival. `request.seed` is set; `png` is the normalised photo."""

    id: str
    request: GenerateRequest
    png: bytes
    door: Door
    caller: str | None = None
    idempotency_key: str | None = None
    fingerprint: str | None = None
    extends: str | None = None
    webhook: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to change one running job: the process that runs it, and which of its attempts (1 is the first)."""

    id: str
    boot: str
    attempt: int


@dataclass(frozen=True, slots=True)
class PendingWebhook:
    """An address, and what it has to be told: which job ended how (a final status), and when."""

    job_id: str
    url: str
    status: str
    ended_at: datetime
