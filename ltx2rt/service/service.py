"""The service: takes orders, queues them, has them made, keeps what became of them."""

from __future__ import annotations

import logging
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ltx2rt.config import RuntimeConfig
from ltx2rt.errors import Field, OptionError, Problem
from ltx2rt.service.events import CANCELLED, DEADLINE, WORKER_LOST, Event, failure, percent
from ltx2rt.service.jobs import JobRow, JobStore
from ltx2rt.service.limits import Limits
from ltx2rt.service.maker import FILES, PART
from ltx2rt.service.models import Models
from ltx2rt.service.process import WorkerSetup
from ltx2rt.service.requests import read_order
from ltx2rt.service.runner import MAX_ATTEMPTS, Runner
from ltx2rt.service.sources import Allowed, Sources
from ltx2rt.service.waiting import Waiting

logger = logging.getLogger(__name__)
#: seconds between two looks at what waits
LOOK_S = 1.0
Listener = Callable[[JobRow, Event], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a service is.

    Attributes:
        models: folders of bundles by name, the first of which is meant where none is named.
        data_dir: of jobs and clips; made if it is missing.
        devices: GPU numbers, a worker each; None: the first, or the CPU, as the bundle needs.
        runtime: how they run.
        weights_dir: where weight files are now, if they moved.
        allowed: what requests may name.
        limits: what one request may ask for.
        max_queue: jobs that may wait.
        max_timeout_s: seconds that a job may take from when it was accepted; also where it asks for
            none.
        max_data_bytes: of finished clips; the oldest go.
        max_age_h: hours that finished jobs are kept.
    """

    models: Mapping[str, Path]
    data_dir: Path
    devices: tuple[int | None, ...] = (None,)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    weights_dir: Path | None = None
    allowed: Allowed = field(default_factory=Allowed)
    limits: Limits = field(default_factory=Limits)
    max_queue: int = 100
    max_timeout_s: float = 24 * 3600.0
    max_data_bytes: int = 50_000_000_000
    max_age_h: float = 7 * 24.0

    def __post_init__(self) -> None:
        problems: list[str] = []
        if not self.devices or len(set(self.devices)) < len(self.devices):
            problems.append(Problem(Field("devices"), f"={self.devices} names none, or one twice"))
        for name in ("max_queue", "max_timeout_s", "max_data_bytes", "max_age_h"):
            if not getattr(self, name) > 0:
                problems.append(Problem(Field(name), f"={getattr(self, name)} is not above 0"))
        if problems:
            raise OptionError("a service cannot run so", problems)


class QueueFullError(OptionError):
    """As many jobs wait as may."""


@dataclass(frozen=True, slots=True)
class Live:
    """What is known of an unfinished job besides its row."""

    progress: int = 0
    stage: str = ""
    eta_s: float | None = None
    clip_eta_s: float | None = None
    bytes: int = 0
    #: the last preview: its event's data
    preview: Mapping[str, Any] | None = None


class Service:
    """Orders in, clips out; any thread may call it.

    Args:
        settings: what it is.
        listener: is told every event, on the thread where it happens; may be set later.

    Raises:
        BundleError, OptionError: it cannot be opened, or its data folder cannot be used.
    """

    def __init__(self, settings: Settings, listener: Listener | None = None) -> None:
        self.settings = settings
        self.listener = listener
        self.started = time.time()
        self.models = Models(settings.models, settings.runtime, settings.weights_dir)
        (settings.data_dir / "jobs").mkdir(parents=True, exist_ok=True)
        self.store = JobStore(settings.data_dir / "jobs.sqlite")
        self.waiting = Waiting()
        self._lock = threading.Lock()
        #: held while a row is looked at and then written or removed
        self._rows = threading.RLock()
        self._live: dict[str, Live] = {}
        self._removed: set[str] = set()
        #: jobs that were cancelled while a worker had them, or was about to
        self._unwanted: set[str] = set()
        #: device -> how often its worker ended by itself
        self.worker_restarts: dict[int | None, int] = {}
        #: rows that the database could not take, such as on a full disk
        self._unkept: dict[str, JobRow] = {}
        self.is_stopping = False
        self._stopped = threading.Event()
        self._watch = threading.Thread(target=self._look, name="watch", daemon=True)
        self.runners = [self._runner(i, device) for i, device in enumerate(settings.devices)]

    def _runner(self, number: int, device: int | None) -> Runner:
        setups = {
            name: WorkerSetup(
                bundle=folder.absolute(),
                weights_dir=self.settings.weights_dir,
                runtime=replace(self.settings.runtime, device=device),
            )
            for name, folder in self.settings.models.items()
        }
        first = [*setups][number % len(setups)]
        return Runner(device, setups, first, self.waiting, self, self.folder_of)

    def folder_of(self, job: str) -> Path:
        """Where a job's files are."""
        return self.settings.data_dir.absolute() / "jobs" / job

    def start(self) -> None:
        """Take up the jobs of an earlier run, and start the workers."""
        for found in self.store.unfinished():
            job = replace(found, model=found.model or self.models.default)
            if job.model not in self.models:
                text = f"this server has no model {job.model!r} any more."
                self.happened(job, failure("OptionError", text))
                continue
            if job.attempts > MAX_ATTEMPTS:
                text = f"the server ended {job.attempts} times while it made this clip."
                self.happened(job, failure(WORKER_LOST, text))
                continue
            again = replace(job, state="queued")
            self.store.put(again)
            self.waiting.put(again)
        self.clean()
        for runner in self.runners:
            runner.start()
        self._watch.start()

    def close_queue(self) -> None:
        """Take no more orders and begin no more clips."""
        self.is_stopping = True
        self.waiting.close()

    def stop(self, grace_s: float) -> None:
        """Take no more orders; clips that are being made have so long to be finished. Those that
        are not go on after their last finished stage when a service of this data folder starts.
        """
        self.close_queue()
        until = time.monotonic() + grace_s
        while time.monotonic() < until and any(r.is_busy for r in self.runners):
            time.sleep(0.05)
        for runner in self.runners:
            if (job := runner.stop()) is not None:
                self._keep(replace(job, attempts=job.attempts - 1))  # it was not its fault
        for runner in self.runners:
            if runner.is_alive():
                runner.join(15)
        self._stopped.set()
        if self._watch.is_alive():
            self._watch.join(5)
        self.store.close()

    def submit(
        self,
        data: Any,
        *,
        owner: str = "",
        model: str = "",
        uploads: Mapping[str, Path] | None = None,
        priority: int = 0,
        timeout_s: float = 0.0,
        asked: Mapping[str, Any] | None = None,
    ) -> JobRow:
        """Check an order and queue it.

        Args:
            data: JSON data, see `schema.request_schema`.
            owner: who may see the job.
            model: the name of a bundle; "": the first.
            uploads: files that came with it; they are moved.
            priority, timeout_s: see `JobRow`.
            asked: kept for the answers.

        Raises:
            QueueFullError: come back later.
            Ltx2rtError: it cannot be made; says everything that is wrong.
        """
        if self.is_stopping:
            raise QueueFullError("this server is stopping and takes no more jobs.")
        if len(self.waiting) >= self.settings.max_queue:
            raise QueueFullError(
                f"{self.settings.max_queue} jobs wait already; try again in a while."
            )
        if not 0 <= timeout_s <= self.settings.max_timeout_s:
            raise OptionError(
                f"a timeout of {timeout_s:g} s is not in [0, {self.settings.max_timeout_s:g}]"
            )
        if not -100 <= priority <= 100:
            raise OptionError(f"a priority of {priority} is not in [-100, 100]")
        job = f"video_{secrets.token_hex(12)}"
        folder = self.folder_of(job)
        try:
            folder.mkdir()
            own = {
                n: Path(shutil.move(p, folder / f"upload-{i}{p.suffix}"))
                for i, (n, p) in enumerate((uploads or {}).items())
            }
            sources = Sources(
                folder=folder,
                allowed=self.settings.allowed,
                limits=self.settings.limits,
                uploads=own,
            )
            order = read_order(data, sources)
            model = model or self.models.default
            row = JobRow(
                id=job, owner=owner, model=model, created=time.time(), priority=priority,
                kind=self.models[model].check(order),
                timeout_s=timeout_s or self.settings.max_timeout_s,
                order=order.plain, asked=dict(asked or {}),
            )  # fmt: skip
            self.store.put(row)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.waiting.put(row)
        self._tell(row, Event(kind="queued", data={"position": self.position(job)}))
        return row

    def get(self, job: str, owner: str = "") -> JobRow | None:
        """A job of this owner."""
        found = self._unkept.get(job) or self.store.get(job)
        return found if found is not None and found.owner == owner else None

    def live(self, job: str) -> Live:
        """How far an unfinished job is."""
        return self._live.get(job, Live())

    def position(self, job: str) -> int:
        """How many jobs are before this one; 0: it is next, or not waiting."""
        order = self.waiting.order()
        return order.index(job) if job in order else 0

    def content(self, job: JobRow) -> tuple[Path, bool]:
        """The file of a job's clip, which need not exist, and whether it is complete."""
        path = self.folder_of(job.id) / FILES[job.kind]
        return (
            (path, True) if job.state == "completed" else (path.with_name(path.name + PART), False)
        )

    def cancel(self, job: JobRow) -> None:
        """End a job that is not finished."""
        with self._lock:
            self._unwanted.add(job.id)
        if self.waiting.remove(job.id):
            self.happened(job, failure(CANCELLED, "it was cancelled before it began."))
            return
        for runner in self.runners:
            runner.cancel(job.id)

    def remove(self, job: JobRow) -> None:
        """End a job if need be, and forget it and its files."""
        with self._rows:
            now = self.get(job.id, job.owner)
            self.store.remove(job.id)
            self._unkept.pop(job.id, None)
            if now is None or now.is_finished:
                return self._forget(job.id)
            with self._lock:
                self._removed.add(job.id)
        self.cancel(now)  # it is forgotten when it has ended

    def _forget(self, job: str) -> None:
        shutil.rmtree(self.folder_of(job), ignore_errors=True)
        with self._lock:
            self._removed.discard(job)
            self._unwanted.discard(job)
            self._live.pop(job, None)

    def is_unwanted(self, job: str) -> bool:
        """See `runner.Owner`."""
        with self._lock:
            return job in self._unwanted

    def answers(self, timeout_s: float = 2.0) -> bool:
        """Whether a worker is up and answers; it need not be idle."""
        return not self.is_stopping and any(r.answers(timeout_s) for r in self.runners)

    # what runners tell

    def begun(self, job: JobRow) -> JobRow:
        """See `runner.Owner`."""
        now = replace(job, state="in_progress", started=time.time(), attempts=job.attempts + 1)
        with self._rows:
            if not self._is_removed(job):
                self._keep(now)
        self._tell(now, Event(kind="started", data={"attempt": now.attempts}))
        return now

    def happened(self, job: JobRow, event: Event) -> None:
        """See `runner.Owner`."""
        self._note(job, event)
        row = job
        if event.is_final:
            if event.kind == "result":
                row = replace(job, state="completed", result=event.data, finished=time.time())
            else:
                kind, text = event.data["kind"], event.data["message"]
                row = replace(
                    job, state="failed", error_kind=kind, error=text, finished=time.time()
                )
            with self._rows:
                if self._is_removed(job):
                    self._forget(job.id)
                else:
                    self._keep(row)
            if row.state == "failed":
                shutil.rmtree(self.folder_of(job.id) / "stages", ignore_errors=True)
        self._tell(row, event)
        if event.is_final:
            with self._lock:
                self._live.pop(job.id, None)
                self._unwanted.discard(job.id)
            self.clean()

    def lost(self, job: JobRow) -> None:
        """See `runner.Owner`."""
        again = replace(job, state="queued")
        with self._rows:
            if self._is_removed(job):
                return self._forget(job.id)
            self._keep(again)
        self.waiting.put(again)
        self._tell(again, Event(kind="queued", data={"position": self.position(job.id)}))

    def worker_ended(self, device: int | None, how: str) -> None:
        """See `runner.Owner`."""
        self.worker_restarts[device] = self.worker_restarts.get(device, 0) + 1

    def _keep(self, row: JobRow) -> None:
        """Write what became of a job; what cannot be written now is written later."""
        try:
            self.store.put(row)
            self._unkept.pop(row.id, None)
        except sqlite3.DatabaseError as error:
            logger.error("job %s cannot be written now: %s", row.id, error)
            self._unkept[row.id] = row

    def _look(self) -> None:
        """Now and then: jobs that waited too long, rows that could not be written."""
        while not self._stopped.wait(LOOK_S):
            for job in self.waiting.expired(time.time()):
                text = f"it was not begun within {job.timeout_s:g} s."
                self.happened(job, failure(DEADLINE, text))
            for row in [*self._unkept.values()]:
                self._keep(row)

    def _is_removed(self, job: JobRow) -> bool:
        with self._lock:
            return job.id in self._removed

    def _note(self, job: JobRow, event: Event) -> None:
        live, data = self.live(job.id), event.data
        if event.kind == "progress":
            done = percent(data["stage"], data["step"], data["total"], live.progress)
            eta, rest = data["eta_s"], data["clip_eta_s"]
            live = replace(live, progress=done, stage=data["stage"], eta_s=eta, clip_eta_s=rest)
        elif event.kind == "fragment":
            live = replace(live, bytes=data["bytes"])
        elif event.kind == "preview":
            live = replace(live, preview=data)
        with self._lock:
            self._live[job.id] = live

    def _tell(self, job: JobRow, event: Event) -> None:
        if self.listener is not None:
            self.listener(job, event)

    def clean(self) -> None:
        """Forget the oldest finished jobs, as long as there is more than may be kept."""
        ended = self.store.finished()
        sizes = {job: _bytes_in(self.folder_of(job)) for job, _ in ended}
        total, oldest = sum(sizes.values()), time.time() - self.settings.max_age_h * 3600
        for job, when in ended:
            if total <= self.settings.max_data_bytes and when >= oldest:
                return
            logger.info("job %s is forgotten: finished jobs take %d bytes", job, total)
            total -= sizes[job]
            self.store.remove(job)
            self._forget(job)


def _bytes_in(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
