"""When work ran on a device's streams, by events: spans of a trace."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ltx2rt.device.device import Device, Mark, Stream
from ltx2rt.trace import Trace, active


class Timeline:
    """Marks around pieces of work, which become spans once the work is done.

    While no trace is open, nothing is marked. Work inside a captured graph has no marks: a launch
    of the graph is one span.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._trace: Trace | None = None
        self._origin: tuple[Mark, float] | None = None
        self._pending: list[tuple[str, str, Mark, Mark]] = []
        self._paused = False

    @contextmanager
    def span(self, stream: Stream, track: str, name: str) -> Iterator[None]:
        """What is enqueued on a stream meanwhile."""
        if self._paused or self._opened() is None:
            yield
            return
        start = stream.mark()
        yield
        self._pending.append((track, name, start, stream.mark()))

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Mark nothing meanwhile: work is captured."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def collect(self) -> None:
        """Add to the trace what is done; everything before a synchronisation is."""
        if self._trace is None or self._origin is None:
            return
        mark, at = self._origin
        left = []
        for track, name, start, end in self._pending:
            if end.is_done:
                self._trace.add(track, name, at + start.since(mark), at + end.since(mark))
            else:
                left.append((track, name, start, end))
        self._pending = left

    def _opened(self) -> Trace | None:
        trace = active()
        if trace is not self._trace:
            self._trace, self._pending, self._origin = trace, [], None
            if trace is not None:
                mark = self._device.compute.mark()
                self._device.compute.sync()
                self._origin = mark, time.perf_counter()
        return trace
