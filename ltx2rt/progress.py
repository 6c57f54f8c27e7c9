"""Progress of a job: which stage, which step, how long it still takes; and cancelling it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ltx2rt.errors import Ltx2rtError
from ltx2rt.trace import active, note

if TYPE_CHECKING:  # what only shows progress imports no numpy
    import numpy as np
    from numpy.typing import NDArray


class Cancelled(Ltx2rtError):
    """The job was cancelled between two steps or tiles."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One report: `step` of `total` in `stage` is done; `eta_s`, of the stage, is None until a step
    was timed. The first step, which also loads, counts only until a second one was timed.
    """

    stage: str
    step: int
    total: int
    elapsed_s: float
    eta_s: float | None
    detail: str = ""


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
        started = self._started.setdefault(stage, now)
        elapsed = now - started
        self.timings_s[stage] = elapsed
        if (trace := active()) is not None:
            trace.step(stage, step, total)
        if costs is not None:
            self._costs[stage] = costs
        if self.on_progress is not None:
            eta = self._eta(stage, step, total, elapsed)
            self.on_progress(Progress(stage, step, total, elapsed, eta, detail))

    def on_host(self, stage: str, reason: str, total: int = 1) -> None:
        """Say that the host does a part of a stage that a device does otherwise."""
        self.host_work[stage] = reason
        note(f"{stage} on the host: {reason}")
        self.report(stage, 0, total, f"on the host: {reason}")

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
