"""Prometheus metrics of a service, made from its events."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ltx2rt.service.events import Event
from ltx2rt.service.jobs import JobRow
from ltx2rt.service.service import Service

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """What happened so far, and what is now.

    Args:
        service: whose events `note` is given.
    """

    def __init__(self, service: Service) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.registry.register(_Now(service))

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"ltx2rt_{name}", text, ("model", *labels), registry=self.registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(
                f"ltx2rt_{name}", text, ("model", *labels), registry=self.registry,
                buckets=_SECONDS,
            )  # fmt: skip

        self._jobs = counter("jobs", "Jobs that ended, by how", "outcome")
        self._frames = counter("frames", "Frames of finished clips")
        self._bytes = counter("bytes", "Bytes of finished clips")
        self._kept = counter("stages_kept", "Stages taken over from a run that was cut off")
        self._prompts = counter("prompts", "Prompts encoded, or found ready", "from")
        self._queue = histogram("queue_seconds", "From acceptance to the worker")
        self._stage = histogram("stage_seconds", "Of every stage of a finished clip", "stage")
        self._first = histogram("first_fragment_seconds", "From the worker to the first bytes")
        self._total = histogram("total_seconds", "From acceptance to the finished clip")

    def note(self, job: JobRow, event: Event) -> None:
        """Count an event."""
        data, model = event.data, job.model
        if event.kind == "started":
            self._queue.labels(model).observe(max(job.started - job.created, 0))
        elif event.kind == "progress" and data["detail"] == "kept from before":
            self._kept.labels(model).inc()
        elif event.kind == "progress" and data["stage"] == "prompt" and data["step"] == 0:
            # one step: the contexts of the last clip serve this one too, or were made ahead
            self._prompts.labels(model, "cache" if data["total"] == 1 else "encoder").inc()
        elif event.kind == "error":
            self._jobs.labels(model, data["kind"]).inc()
        elif event.kind == "result":
            self._jobs.labels(model, "completed").inc()
            self._frames.labels(model).inc(data["num_frames"])
            self._bytes.labels(model).inc(data["bytes"])
            self._total.labels(model).observe(max(time.time() - job.created, 0))
            self._note_timings(model, dict(data["timings_s"]))

    def _note_timings(self, model: str, timings: dict[str, float]) -> None:
        self._first.labels(model).observe(timings.pop("first_fragment"))
        timings.pop("total")
        decoding = timings.get("decode video", 0.0) + timings.get("decode audio", 0.0)
        timings["mux"] = max(timings.pop("save") - decoding, 0.0)
        for stage, seconds in timings.items():
            self._stage.labels(model, stage.replace(" ", "_")).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)


class _Now(Collector):
    """Gauges, read when they are asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        """Prometheus calls this."""
        service = self._service
        yield _gauge("queue_length", "Jobs that wait", len(service.waiting))
        yield _gauge("workers_busy", "Workers that make a clip", _busy(service))
        restarts = GaugeMetricFamily(
            "ltx2rt_worker_restarts", "Workers that ended by themselves", labels=["device"]
        )
        memory = GaugeMetricFamily(
            "ltx2rt_worker_memory_bytes", "Resident memory of a worker", labels=["device"]
        )
        loaded = GaugeMetricFamily(
            "ltx2rt_worker_model", "The bundle that a worker has", labels=["device", "model"]
        )
        for runner in service.runners:
            device = str(runner.device or 0)
            restarts.add_metric([device], service.worker_restarts.get(runner.device, 0))
            memory.add_metric([device], resident_bytes(runner.pid))
            loaded.add_metric([device, runner.model], 1)
        yield restarts
        yield memory
        yield loaded


def _busy(service: Service) -> int:
    return sum(r.is_busy for r in service.runners)


def _gauge(name: str, text: str, value: Any) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"ltx2rt_{name}", text, value=value)


def resident_bytes(process: int | None) -> int:
    """Memory that a process has in RAM; 0 where the system does not tell, or it is gone."""
    try:
        pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
