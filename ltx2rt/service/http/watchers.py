"""Events of jobs from the service's threads to those who wait for them on the loop."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from ltx2rt.service.events import Event
from ltx2rt.service.jobs import JobRow

#: events that wait for a slow reader; progress beyond that is left out
_MOST = 500
Watched = asyncio.Queue[tuple[JobRow, Event]]


class Watchers:
    """Who waits for what.

    Args:
        loop: on which they wait.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queues: defaultdict[str, set[Watched]] = defaultdict(set)

    def happened(self, job: JobRow, event: Event) -> None:
        """From any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hand_out, job, event)

    def _hand_out(self, job: JobRow, event: Event) -> None:
        for waiting in self._queues.get(job.id, ()):
            if waiting.qsize() < _MOST or event.is_final:
                waiting.put_nowait((job, event))

    @contextmanager
    def watching(self, job: str) -> Iterator[Watched]:
        """The events of a job, from now on."""
        waiting: Watched = asyncio.Queue()
        self._queues[job].add(waiting)
        try:
            yield waiting
        finally:
            self._queues[job].discard(waiting)
            if not self._queues[job]:
                del self._queues[job]
