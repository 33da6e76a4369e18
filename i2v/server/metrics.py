"""What `/metrics` shows, in a registry of its own: requests as they are answered, jobs as the queue tells.

Knows the queue's public face only. Values that the queue owns are read when they are asked for, never copied.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from i2v.errors import OutOfMemory, Unavailable
from i2v.jobs.job import Job

if TYPE_CHECKING:
    from i2v.jobs.queue import JobQueue

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300)


class Metrics:
    """One server's measurements; nothing is global, so two servers in one process do not share any."""

    def __init__(self, queue: "JobQueue") -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "i2v_http_requests_total", "Answered requests.", ("method", "route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "i2v_http_request_seconds", "Time to answer.", ("route",), buckets=_SECONDS, registry=self.registry
        )
        self.finished_jobs = Counter(
            "i2v_jobs_finished_total",
            "Jobs that ended in this process.",
            ("status", "code"),
            registry=self.registry,
        )
        self.out_of_memory = Counter(  # apart from the above, because it is there, as 0, before the first one
            "i2v_out_of_memory_total", "Jobs that ended in this process because memory ran out.", registry=self.registry
        )
        self.stages = Histogram(
            "i2v_job_stage_seconds",
            "Time of each stage of a job.",
            ("stage",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.peak = Gauge(
            "i2v_job_peak_memory_bytes", "Device memory the last job needed at its peak.", registry=self.registry
        )
        ProcessCollector(registry=self.registry)  # memory, descriptors, and the start time that shows restarts
        self.registry.register(_QueueCollector(queue))

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        known = method if method in ("GET", "HEAD", "POST", "DELETE") else "other"
        self.requests.labels(known, route, str(status or "none")).inc()
        self.seconds.labels(route).observe(seconds)

    def finished(self, job: Job) -> None:
        """Called by the queue, on its own threads, when a job has ended."""
        self.finished_jobs.labels(job.status, job.error_code or "none").inc()
        self.out_of_memory.inc(job.error_code == OutOfMemory.code)
        if job.result is not None:
            for stage, seconds in job.result.stage_seconds.items():
                self.stages.labels(stage).observe(seconds)
            if job.result.peak_memory_mb is not None:
                self.peak.set(job.result.peak_memory_mb * 1e6)

    def render(self) -> bytes:
        return generate_latest(self.registry)


class _QueueCollector(Collector):
    def __init__(self, queue: "JobQueue") -> None:
        self.queue = queue

    def describe(self) -> Iterable[Metric]:
        return []  # nothing is asked of the queue at registration

    def collect(self) -> Iterable[Metric]:
        with suppress(Unavailable):  # a table that does not answer is no reason to show nothing of the rest
            jobs = GaugeMetricFamily("i2v_jobs", "Jobs in the table by state.", labels=("status",))
            for status, number in self.queue.counts().items():
                jobs.add_metric((status,), number)
            yield jobs
            yield GaugeMetricFamily("i2v_queue_length", "Jobs waiting.", value=self.queue.queue_length)
        yield GaugeMetricFamily("i2v_ready", "1 when jobs can run.", value=float(self.queue.state == "ready"))
        yield GaugeMetricFamily("i2v_storage_ok", "1 when files can be written.", value=float(self.queue.storage_ok()))
        yield GaugeMetricFamily(
            "i2v_job_seconds_average", "Mean inference time of a job.", value=self.queue.average_duration
        )
        starts = self.queue.starts
        yield CounterMetricFamily("i2v_starts", "Starts of a server on this data.", value=starts.number)
        yield CounterMetricFamily(
            "i2v_starts_after_death",
            "Starts after a server that did not end properly.",
            value=starts.after_death,
        )
        if (memory := self.queue.device_memory()) is not None:
            held = GaugeMetricFamily("i2v_device_memory_bytes", "The GPU's memory now.", labels=("kind",))
            for kind in ("held", "free", "total"):
                held.add_metric((kind,), getattr(memory, kind))
            yield held
