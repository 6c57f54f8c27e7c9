"""The queue: by priority, then by time, and by which bundle is loaded; takers wait for it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from ltx2rt.service.jobs import JobRow

#: seconds between two looks at who waits
_LOOK_S = 0.5
#: how often the first job is passed over for one of a bundle that is loaded already
MOST_PASSED = 8


class Waiting:
    """Jobs that wait for a worker; any thread may call it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: dict[str, JobRow] = {}
        #: takers that wait, by the bundle that they have loaded
        self._idle: Counter[str] = Counter()
        self._passed = 0
        self.is_closed = False

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: JobRow) -> None:
        """Add a job."""
        with self._changed:
            self._jobs[job.id] = job
            self._changed.notify_all()

    def take(self, is_gone: Callable[[], bool], model: str = "") -> JobRow | None:
        """The next job, as soon as there is one; None: the queue was closed, or `is_gone` says that
        nobody is there to make it.

        Among jobs of the first one's priority those of `model`, which this taker has loaded, go
        first, so that bundles are not exchanged for every clip; one is passed over `MOST_PASSED`
        times. A job of a bundle that another taker has loaded, which waits too, is left to that.
        """
        with self._changed:
            self._idle[model] += 1
            try:
                while not self.is_closed and not is_gone():
                    if (job := self._choice(model)) is not None:
                        self._passed = 0 if job is self._sorted()[0] else self._passed + 1
                        return self._jobs.pop(job.id)
                    self._changed.wait(_LOOK_S)
                return None
            finally:
                self._idle[model] -= 1

    def peek(self, model: str) -> JobRow | None:
        """What such a taker would get now, if it is of this model."""
        with self._changed:
            job = self._choice(model)
        return job if job is not None and job.model == model else None

    def _choice(self, model: str) -> JobRow | None:
        jobs = [j for j in self._sorted() if j.model == model or not self._idle[j.model]]
        if not jobs or self._passed >= MOST_PASSED:
            return jobs[0] if jobs else None
        first = jobs[0]
        return next((j for j in jobs if j.model == model and j.priority == first.priority), first)

    def remove(self, job: str) -> bool:
        """Take a job out; False if it was not there."""
        with self._changed:
            return self._jobs.pop(job, None) is not None

    def order(self) -> list[str]:
        """Ids in the order in which they will be taken."""
        with self._changed:
            return [job.id for job in self._sorted()]

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

    def _sorted(self) -> list[JobRow]:
        return sorted(self._jobs.values(), key=lambda j: (j.priority, j.created, j.id))
