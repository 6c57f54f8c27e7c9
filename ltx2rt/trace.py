"""What ran when on host and devices, written as a Chrome trace (chrome://tracing, Perfetto)."""

from __future__ import annotations

import functools
import importlib
import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ltx2rt.partial import Partial

#: tracks: what a pipeline does, and what keeps a CPU or a GPU busy meanwhile
STAGES, STEPS, ENGINES, COMPUTE, SOUND, PICTURE, UPLOAD, DOWNLOAD, WEIGHTS, ENCODER = (
    "stages",
    "steps",
    "engines on the host",
    "GPU compute stream",
    "GPU sound stream",
    "GPU picture stream",
    "GPU upload stream",
    "GPU download stream",
    "weights",
    "encoder",
)
#: what explains the time of a stage; the rest is its residual
WORK = (ENGINES, COMPUTE, SOUND, PICTURE, UPLOAD, DOWNLOAD, WEIGHTS, ENCODER)


@dataclass(frozen=True, slots=True)
class Span:
    """One piece of work on a track; `start_s` and `end_s` are of `time.perf_counter`."""

    track: str
    name: str
    start_s: float
    end_s: float


class Trace:
    """Collects spans of everything that this process does while it is open.

    ```python
    with ltx2rt.Trace() as trace:
        pipe(prompt="a bell").save("out.mp4")
    trace.write("trace.json")
    ```
    """

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._lock = threading.Lock()
        self._stages: dict[int, tuple[str, float, float]] = {}  # of each thread
        self._notes: list[tuple[str, float]] = []

    def __enter__(self) -> Self:
        _ACTIVE.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for thread in list(self._stages):
            self._end_stage(thread)
        _ACTIVE.remove(self)

    @property
    def spans(self) -> tuple[Span, ...]:
        """All that are finished, in the order in which they ended."""
        with self._lock:
            return tuple(self._spans)

    def add(self, track: str, name: str, start_s: float, end_s: float) -> None:
        """A span that is over."""
        with self._lock:
            self._spans.append(Span(track, name, start_s, end_s))

    @property
    def notes(self) -> tuple[str, ...]:
        """What was said meanwhile, such as why the host does something."""
        with self._lock:
            return tuple(text for text, _ in self._notes)

    def note(self, text: str) -> None:
        """Something to know about what follows: an instant event of the file."""
        with self._lock:
            self._notes.append((text, time.perf_counter()))

    def step(self, stage: str, done: int, total: int) -> None:
        """A step of a stage is done; `done == 0` begins the stage, and another stage of the same
        thread ends it.
        """
        now, thread = time.perf_counter(), threading.get_ident()
        if thread not in self._stages or self._stages[thread][0] != stage:
            self._end_stage(thread)
            self._stages[thread] = stage, now, now
        name, started, last = self._stages[thread]
        if done:
            self.add(STEPS, f"{stage} {done}/{total}", last, now)
        self._stages[thread] = name, started, now

    def totals(self) -> list[dict[str, Any]]:
        """Seconds of every stage: in all, by kind of work, and `residual_s`, which no work
        explains. Kinds of work overlap.
        """
        spans, rows = self.spans, []
        for stage in spans:
            if stage.track != STAGES:
                continue
            inside = [s for s in spans if s.track in WORK]
            by_kind = {
                track: covered([s for s in inside if s.track == track], stage) for track in WORK
            }
            rows.append(
                {
                    "stage": stage.name,
                    "total_s": stage.end_s - stage.start_s,
                    **{f"{track}_s": seconds for track, seconds in by_kind.items() if seconds},
                    "residual_s": stage.end_s - stage.start_s - covered(inside, stage),
                }
            )
        return rows

    def write(self, path: Path | str) -> None:
        """Write the JSON file, whole or not at all; `stageTotals` holds `totals`."""
        spans = self.spans
        tracks = list(dict.fromkeys((STAGES, STEPS, *(s.track for s in spans))))
        origin = min((s.start_s for s in spans), default=0.0)
        events: list[Mapping[str, Any]] = [
            {"ph": "M", "name": "thread_name", "pid": 1, "tid": i, "args": {"name": track}}
            for i, track in enumerate(tracks)
        ]
        for span in spans:
            events.append(
                {
                    "ph": "X",
                    "name": span.name,
                    "cat": span.track,
                    "pid": 1,
                    "tid": tracks.index(span.track),
                    "ts": round((span.start_s - origin) * 1e6, 3),
                    "dur": round((span.end_s - span.start_s) * 1e6, 3),
                }
            )
        for text, at in self._notes:
            moment = round((max(at, origin) - origin) * 1e6, 3)
            events.append({"ph": "i", "name": text, "pid": 1, "tid": 0, "ts": moment, "s": "g"})
        document = {
            "traceEvents": events,
            "displayTimeUnit": "ms",
            "stageTotals": self.totals(),
        }
        with Partial(Path(path)) as part:
            part.file.write(json.dumps(document, indent=1).encode())

    def _end_stage(self, thread: int) -> None:
        if (stage := self._stages.pop(thread, None)) is not None:
            name, started, last = stage
            self.add(STAGES, name, started, last)


_ACTIVE: list[Trace] = []


def active() -> Trace | None:
    """The trace that was opened last and is still open, if any."""
    return _ACTIVE[-1] if _ACTIVE else None


def note(text: str) -> None:
    """Note something to know about what follows, if a trace is open."""
    if (trace := active()) is not None:
        trace.note(text)


@contextmanager
def span(track: str, name: str) -> Iterator[None]:
    """Time a piece of work on the host, if a trace is open; and name it in NVIDIA's profilers, if
    the package `nvtx` is installed.
    """
    trace, nvtx = active(), _nvtx()
    if trace is None and nvtx is None:
        yield
        return
    start = time.perf_counter()
    if nvtx is not None:
        nvtx.push_range(f"{track}: {name}")
    try:
        yield
    finally:
        if nvtx is not None:
            nvtx.pop_range()
        if trace is not None:
            trace.add(track, name, start, time.perf_counter())


def covered(spans: Iterable[Span], within: Span) -> float:
    """Seconds of `within` in which at least one of the spans runs."""
    total, reached = 0.0, within.start_s
    for each in sorted(spans, key=lambda s: s.start_s):
        start, end = max(each.start_s, reached), min(each.end_s, within.end_s)
        if end > start:
            total += end - start
            reached = end
    return total


@functools.cache
def _nvtx() -> Any:
    try:
        return importlib.import_module("nvtx")
    except ImportError:
        return None
