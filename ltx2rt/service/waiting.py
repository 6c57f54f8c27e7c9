"""The queue: by priority, then by time; takers wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from ltx2rt.service.jobs import JobRow

#: seconds between two looks at who waits
_LOOK_S = 0.5


class Waiting:
    """Jobs that wait for a worker; any thread may call it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: dict[str, JobRow] = {}
        self.is_closed = False

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: JobRow) -> None:
        """Add a job."""
        with self._changed:
            self._jobs[job.id] = job
            self._changed.notify()

    def take(self, is_gone: Callable[[], bool]) -> JobRow | None:
        """The next job, as soon as there is one; None: the queue was closed, or `is_gone` says that
        nobody is there to make it.
        """
        with self._changed:
            while not self.is_closed and not is_gone():
                if self._jobs:
                    return self._jobs.pop(self._order()[0])
                self._changed.wait(_LOOK_S)
            return None

    def remove(self, job: str) -> bool:
        """Take a job out; False if it was not there."""
        with self._changed:
            return self._jobs.pop(job, None) is not None

    def order(self) -> list[str]:
        """Ids in the order in which they will be taken."""
        with self._changed:
            return self._order()

    def expired(self, now: float) -> list[JobRow]:
        """Jobs that cannot be finished in time any more; they are taken out."""
        with self._changed:
            late = [j for j in self._jobs.values() if j.timeout_s and now > j.created + j.timeout_s]
            return [self._jobs.pop(j.id) for j in late]

    def close(self) -> None:
        """Nobody gets a job any more."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()

    def _order(self) -> list[str]:
        waiting: Iterable[JobRow] = self._jobs.values()
        return [j.id for j in sorted(waiting, key=lambda j: (j.priority, j.created, j.id))]
