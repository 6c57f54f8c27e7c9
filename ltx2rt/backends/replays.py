"""Work that is enqueued again and again: captured when it comes for the second time, and replayed
as one launch from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ltx2rt.backends.device_memory import DeviceMemory
from ltx2rt.device.device import Graph
from ltx2rt.trace import COMPUTE

T = TypeVar("T")


@dataclass(slots=True)
class _Work(Generic[T]):
    """What ran once: what it gave, and its graph once it is captured."""

    gave: T
    graph: Graph | None = None


class Replays(Generic[T]):
    """Graphs of work on a device's compute stream, by what they depend on.

    Args:
        memory: of everything in them. Where a buffer of it moved, what was captured is not used.
    """

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._kept: dict[Hashable, _Work[T]] = {}

    def run(
        self,
        key: Hashable,
        enqueue: Callable[[], T],
        *,
        name: str,
        steady: bool,
        may_capture: Callable[[], bool],
    ) -> T:
        """Enqueue work, or launch its graph.

        Args:
            key: all shapes and addresses that the work depends on, beside those of buffers.
            enqueue: does the same for the same key, and gives the same.
            name: of a launch, in a trace.
            steady: what was captured may be replayed now: weights lie where they lay.
            may_capture: asked once it ran.
        """
        key = self._memory.moves, key
        work = self._kept.get(key)
        if work is None or not steady:
            gave = enqueue()
            if work is None and may_capture():
                # what ran may have moved buffers: then it is captured one time later
                self._kept[key] = _Work(gave)
            return gave
        if work.graph is None:
            with self._memory.timeline.pause():
                work.graph = self._memory.device.capture(enqueue)
        with self._memory.timeline.span(self._memory.device.compute, COMPUTE, f"{name}, replayed"):
            work.graph.launch()
        return work.gave

    def close(self) -> None:
        """Free the graphs, once none of them runs."""
        while self._kept:
            work = self._kept.popitem()[1]
            if work.graph is not None:
                work.graph.close()
