"""One device's worker, kept alive: takes jobs from the queue, has them made, tells what happens.

A worker that ends is started again after a while, which doubles as long as it fails; its job goes
back to the queue and goes on after its last finished stage, or fails with a sentence.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ltx2rt.service.events import CANCELLED, DEADLINE, WORKER_LOST, Event, failure
from ltx2rt.service.jobs import JobRow
from ltx2rt.service.process import WorkerProcess, WorkerSetup
from ltx2rt.service.waiting import Waiting

logger = logging.getLogger(__name__)

BACKOFF_S, MAX_BACKOFF_S = 1.0, 60.0
#: how often a worker may be lost over one job
MAX_ATTEMPTS = 2
#: seconds that a clip has to end in after it was cancelled; then its worker is killed
CANCEL_GRACE_S = 60.0


class Owner(Protocol):
    """What a runner tells."""

    def begun(self, job: JobRow) -> JobRow:
        """A worker begins this job: gives it back as it is now."""

    def happened(self, job: JobRow, event: Event) -> None:
        """Something happened to this job."""

    def is_unwanted(self, job: str) -> bool:
        """Whether it was cancelled, be it before its worker had it."""

    def lost(self, job: JobRow) -> None:
        """Its worker is gone; it should be tried again."""

    def worker_ended(self, device: int | None, how: str) -> None:
        """A worker ended that was not told to."""


class Runner(threading.Thread):
    """Runs the jobs of one device.

    Args:
        device: its number, or None.
        setups: what its workers are started with, by the name of their bundle. A worker has one
            bundle, and a device one worker: another bundle's job ends it and starts one for that.
        model: which it starts with.
        waiting: the queue.
        owner: is told everything.
        folder_of: a job's folder.
    """

    def __init__(
        self,
        device: int | None,
        setups: Mapping[str, WorkerSetup],
        model: str,
        waiting: Waiting,
        owner: Owner,
        folder_of: Callable[[str], Path],
    ) -> None:
        super().__init__(name=f"device-{device or 0}", daemon=True)
        self.device = device
        self._setups = setups
        self.model = model
        self._waiting = waiting
        self._owner = owner
        self._folder_of = folder_of
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._worker: WorkerProcess | None = None
        self._job: JobRow | None = None
        self._why: tuple[str, str] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether it makes a clip."""
        return self._job is not None

    @property
    def pid(self) -> int | None:
        """Of its worker."""
        return None if self._worker is None else self._worker.pid

    def answers(self, timeout_s: float) -> bool:
        """Whether its worker is up and answers."""
        worker = self._worker
        return worker is not None and worker.answers(timeout_s)

    def cancel(self, job: str, kind: str = CANCELLED, message: str = "it was cancelled.") -> bool:
        """End a job that is being made; False if it is not."""
        with self._lock:
            if self._job is None or self._job.id != job or self._worker is None:
                return False
            self._why = self._why or (kind, message)
            worker = self._worker
        worker.cancel(job)
        threading.Thread(target=self._insist, args=(worker, job), daemon=True).start()
        return True

    def _insist(self, worker: WorkerProcess, job: str) -> None:
        """A step that lasts too long, or hangs, is ended with its process."""
        until = time.monotonic() + CANCEL_GRACE_S
        while time.monotonic() < until:
            if self._job is None or self._job.id != job:
                return
            time.sleep(0.2)
        logger.warning("job %s did not end within %.0f s of its cancel", job, CANCEL_GRACE_S)
        worker.kill()

    def stop(self) -> JobRow | None:
        """End the worker; gives back the clip that it was making, which stays unfinished. Call it
        after the queue was closed.
        """
        self._stopping.set()
        with self._lock:
            worker, job = self._worker, self._job
        if worker is not None:
            worker.kill() if job is not None else worker.close(2)
        return job

    def run(self) -> None:
        """Until the queue closes."""
        wait = BACKOFF_S
        while not self._stopping.is_set():
            worker = WorkerProcess(self._setups[self.model])
            self._worker = worker
            if self._serve(worker):
                wait = BACKOFF_S
            self._worker = None
            if self._stopping.is_set() or (self._waiting.is_closed and self._job is None):
                break
            if (job := self._job) is not None:
                logger.info("device %s goes from %s to %s", self.device or 0, self.model, job.model)
                self.model = job.model
                continue
            how = worker.ended()
            logger.error(
                "worker of device %s ended (%s); next in %.0f s", self.device or 0, how, wait
            )
            self._owner.worker_ended(self.device, how)
            self._stopping.wait(wait)
            wait = min(2 * wait, MAX_BACKOFF_S)

    def _serve(self, worker: WorkerProcess) -> bool:
        """Have one worker make clips until it ends, or another bundle is wanted: then there is a
        job of that; whether it made any.
        """
        lines = worker.lines()
        if next(lines, None) is None:
            self._not_ready(worker)
            return False
        made = False
        while (job := self._job or self._next(worker)) is not None:
            if job.model != self.model:
                worker.close()
                return True
            if not self._make(worker, job, lines):
                with self._lock:
                    self._job = None
                return made
            made = True
        if worker.is_gone:
            return made
        worker.close()
        return True

    def _next(self, worker: WorkerProcess) -> JobRow | None:
        """The next job, begun; None: the worker is gone, or the queue closed."""
        job = self._waiting.take(lambda: worker.is_gone, self.model)
        if job is None:
            return None
        with self._lock:
            self._job, self._why = self._owner.begun(job), None
        return self._job

    def _not_ready(self, worker: WorkerProcess) -> None:
        """A bundle could not be loaded: that costs its job a try, and the next one is loaded."""
        with self._lock:
            job, self._job = self._job, None
        if self._stopping.is_set():
            return
        if job is not None:
            self._gone(worker, job)
        names = [*self._setups]
        self.model = names[(names.index(self.model) + 1) % len(names)]

    def _make(self, worker: WorkerProcess, job: JobRow, lines: Any) -> bool:
        """Have a clip made; False: the worker is gone."""
        folder = self._folder_of(job.id)
        timer, told_ahead = self._deadline(job), False
        worker.make(
            {
                "id": job.id,
                "order": job.order,
                "folder": str(folder),
                "work_dir": str(folder / "stages"),
            }
        )
        if self._owner.is_unwanted(job.id):
            self.cancel(job.id)
        try:
            for line in lines:
                if line.get("job") != job.id:
                    continue
                event = Event(
                    kind=line["event"],
                    data={k: v for k, v in line.items() if k not in ("job", "event")},
                )
                if event.kind == "error" and event.data["kind"] == CANCELLED and self._why:
                    event = failure(*self._why)
                if event.is_final:
                    with self._lock:
                        self._job = None
                self._owner.happened(job, event)
                if not told_ahead and str(event.data.get("stage", "")).startswith("decode"):
                    told_ahead = self._ahead(worker)
                if event.is_final:
                    return True
        finally:
            if timer is not None:
                timer.cancel()
        if not self._stopping.is_set():
            self._gone(worker, job)
        return False

    def _ahead(self, worker: WorkerProcess) -> bool:
        """Let the worker encode the next clip's prompts while it decodes this one; whether there is
        one to tell of.
        """
        job = self._waiting.peek(self.model)
        if job is not None:
            worker.ahead(job.order)
        return job is not None

    def _gone(self, worker: WorkerProcess, job: JobRow) -> None:
        how = worker.ended()
        if self._why is not None:
            self._owner.happened(job, failure(*self._why))
        elif job.attempts >= MAX_ATTEMPTS:
            text = f"the worker ended {job.attempts} times while it made this clip ({how})."
            self._owner.happened(job, failure(WORKER_LOST, text))
        else:
            self._owner.lost(job)

    def _deadline(self, job: JobRow) -> threading.Timer | None:
        if not job.timeout_s:
            return None
        left = max(job.created + job.timeout_s - time.time(), 0.001)
        text = f"it was not finished within {job.timeout_s:g} s."
        timer = threading.Timer(left, self.cancel, (job.id, DEADLINE, text))
        timer.daemon = True
        timer.start()
        return timer
