"""Progress of a job: which stage, which step, how long it still takes; and cancelling it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ltx2rt.errors import Ltx2rtError
from ltx2rt.trace import active, note

if TYPE_CHECKING:  # what only shows progress imports no numpy
    import numpy as np
    from numpy.typing import NDArray


#: of a clip's expected seconds that must have passed before their pace counts for the rest
PACE_SHARE = 0.1

#: a stage that another clip may have done already: it says nothing of the pace
OFTEN_KEPT = "prompt"


class Cancelled(Ltx2rtError):
    """The job was cancelled between two steps or tiles."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One report: `step` of `total` in `stage` is done; `eta_s`, of the stage, is None until a step
    was timed. The first step, which also loads, counts only until a second one was timed.

    `clip_eta_s`, of the whole clip, is None unless this bundle made a clip of this pipeline before
    and its stages were timed.
    """

    stage: str
    step: int
    total: int
    elapsed_s: float
    eta_s: float | None
    detail: str = ""
    clip_eta_s: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Preview:
    """What the clip looks like after a step.

    Attributes:
        stage, step, total: as of `Progress`.
        frames: `[F, h, w, 3]` uint8: a frame for every latent frame, a pixel for every cell of it;
            colours are estimated.
        frame_rate: of these frames.
    """

    stage: str
    step: int
    total: int
    frames: NDArray[np.uint8]
    frame_rate: float


ProgressCallback = Callable[[Progress], None]
PreviewCallback = Callable[[Preview], None]


@dataclass(slots=True)
class Job:
    """Reports progress, keeps timings per stage, and stops when `cancel` is set.

    ```python
    job = ltx2rt.Job(on_progress=lambda report: print(report.stage, report.step, report.total))
    pipe(prompt="A lake.", job=job)
    print(job.timings_s)
    ```

    Another thread stops it: `job.cancel.set()`.

    Attributes:
        on_progress: called after every step, on the thread that runs the step.
        cancel: set it from any thread; the job raises `Cancelled` at the next step or tile.
        timings_s: seconds spent in each finished or running stage.
        on_preview: called with what the clip looks like, on the thread that runs the step.
        preview_every: after every so many-th step, and the last one of a stage.
        host_work: stage -> why the host did what a device of engines does: sampled, or blended
            tiles.
    """

    on_progress: ProgressCallback | None = None
    cancel: threading.Event = field(default_factory=threading.Event)
    timings_s: dict[str, float] = field(default_factory=dict)
    on_preview: PreviewCallback | None = None
    preview_every: int = 1
    host_work: dict[str, str] = field(default_factory=dict)
    _started: dict[str, float] = field(default_factory=dict)
    _costs: dict[str, Sequence[float]] = field(default_factory=dict)
    _first: dict[str, tuple[int, float]] = field(default_factory=dict)
    _finished: set[str] = field(default_factory=set)
    _untimed: set[str] = field(default_factory=set)
    _expected: dict[str, float] = field(default_factory=dict)
    _clips: int = 0
    _last: float | None = None
    _loading: dict[str, float] = field(default_factory=dict)

    def report(
        self,
        stage: str,
        step: int,
        total: int,
        detail: str = "",
        *,
        costs: Sequence[float] | None = None,
    ) -> None:
        """Say that `step` of `total` steps of `stage` are done; step 0 starts the clock.

        Args:
            costs: of every step beside the others, where they differ: the rest of the stage is
                estimated by them. Holds for all reports of the stage.
        """
        if self.cancel.is_set():
            raise Cancelled(f"cancelled in {stage}, step {step} of {total}.")
        now = time.perf_counter()
        if stage not in self._started:
            self._loading[stage] = 0.0 if self._last is None else now - self._last
            if step:  # taken over from before
                self._untimed.add(stage)
        self._last = now
        started = self._started.setdefault(stage, now)
        elapsed = now - started
        self.timings_s[stage] = elapsed
        if (trace := active()) is not None:
            trace.step(stage, step, total)
        if costs is not None:
            self._costs[stage] = costs
        if step >= total:
            self._finished.add(stage)
        if self.on_progress is not None:
            eta = self._eta(stage, step, total, elapsed)
            rest = self._clip_eta(stage, step, eta, now)
            self.on_progress(Progress(stage, step, total, elapsed, eta, detail, rest))

    def on_host(self, stage: str, reason: str, total: int = 1) -> None:
        """Say that the host does a part of a stage that a device does otherwise."""
        self.host_work[stage] = reason
        note(f"{stage} on the host: {reason}")
        self.report(stage, 0, total, f"on the host: {reason}")

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Say what the stages of the next clip are likely to take: of a clip of before."""
        self._clips += 1
        self._last = time.perf_counter()
        self._expected = {} if self._clips > 1 else dict(seconds)

    def stage_seconds(self) -> dict[str, float] | None:
        """What every stage took, with what was loaded before it, for later clips to expect; None
        where that is not known: stages were taken over, or the job made several clips.
        """
        if self._clips != 1 or self._untimed or self._finished < self._started.keys():
            return None
        return {name: self._took(name) for name in self.timings_s}

    def _took(self, stage: str) -> float:
        return self.timings_s[stage] + self._loading[stage]

    def _clip_eta(self, stage: str, step: int, eta: float | None, now: float) -> float | None:
        """Seconds that the rest of the clip takes: what its stages are expected to take, at the
        pace of those that are finished.
        """
        if not self._expected:
            return None
        timed = self._expected.keys() & (self._finished - self._untimed - {OFTEN_KEPT})
        before = sum(self._expected[name] for name in timed)
        pace = 1.0
        if before > PACE_SHARE * sum(self._expected.values()):
            pace = sum(map(self._took, timed)) / before
        rest = 0.0
        for name in {*self._expected, stage} - self._finished:
            spent = now - self._started.get(name, now) + self._loading.get(name, 0.0)
            left = max(0.0, self._expected.get(name, 0.0) * pace - spent)
            if name == stage and eta is not None:  # its own steps know better, once two are timed
                is_known = self._first[name][0] < step or name not in self._expected
                left = eta if is_known else left
            rest += left
        return rest

    def _eta(self, stage: str, step: int, total: int, elapsed: float) -> float | None:
        """Seconds that the rest of a stage takes at the pace of its steps so far."""
        if not step:
            return None
        costs = self._costs.get(stage)

        def cost(start: int, stop: int) -> float:
            """Of these steps; without costs all are alike, and may be as many as bytes."""
            return float(sum(costs[start:stop]) if costs else max(0, stop - start))

        first, first_s = self._first.setdefault(stage, (step, elapsed))
        if cost(first, step) > 0:
            pace = (elapsed - first_s) / cost(first, step)
        else:
            pace = elapsed / (cost(0, step) or 1.0)
        return pace * cost(step, total)
