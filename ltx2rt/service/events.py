"""What happens to a job, as it happens: plain data that every door hands on in its own way."""

from __future__ import annotations

import base64
import dataclasses
import errno
from dataclasses import dataclass, field
from typing import Any, Literal

from ltx2rt.errors import Ltx2rtError
from ltx2rt.progress import Cancelled, Preview, Progress
from ltx2rt.results.preview import preview_webp

Kind = Literal["queued", "started", "progress", "preview", "fragment", "result", "error"]
#: events after which none follow
FINAL: tuple[Kind, ...] = ("result", "error")
#: why a clip was not made, besides the names of our error classes
CANCELLED, DEADLINE, WORKER_LOST = "Cancelled", "Deadline", "WorkerLost"
OUT_OF_MEMORY, DISK_FULL = "OutOfMemory", "DiskFull"

#: share of the whole that is done when a stage ends; others leave it where it was
_DONE_AFTER = {
    "prompt": 5, "stage_1": 45, "upsample": 50, "stage_2": 70,
    "decode audio": 75, "decode video": 99,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event of a job.

    Attributes:
        kind: `queued` (`position`), `started` (`attempt`), `progress` (`stage`, `step`, `total`,
            `elapsed_s`, `eta_s`, `detail`, `clip_eta_s`), `preview` (`stage`, `step`, `total`,
            `webp`: an animation as base64), `fragment` (`bytes` that the file has now), `result`
            (see `maker.Maker.make`), `error` (`kind`, `message`).
        data: the rest, JSON data.
    """

    kind: Kind
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        return {"event": self.kind, **self.data}

    @property
    def is_final(self) -> bool:
        return self.kind in FINAL


def progress_event(progress: Progress) -> Event:
    """A report of a pipeline."""
    return Event(kind="progress", data=dataclasses.asdict(progress))


def preview_event(preview: Preview) -> Event:
    """What a clip looks like after a step."""
    facts = {"stage": preview.stage, "step": preview.step, "total": preview.total}
    webp = base64.b64encode(preview_webp(preview)).decode()
    return Event(kind="preview", data={**facts, "webp": webp})


def error_event(error: BaseException) -> Event:
    """Why a clip was not made: a class of ours, and a sentence."""
    if isinstance(error, MemoryError):
        text = "this takes more memory than there is: ask for a smaller or shorter clip."
        return failure(OUT_OF_MEMORY, text)
    if isinstance(error, Cancelled):
        return failure(CANCELLED, str(error))
    if _is_disk_full(error):
        return failure(DISK_FULL, "the server's disk is full; nothing was kept of the clip.")
    if isinstance(error, Ltx2rtError):
        return failure(type(error).__name__, str(error))
    return failure("InternalError", f"{type(error).__name__}: {error}")


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is that of a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def failure(kind: str, message: str) -> Event:
    """The last event of a job that was not made."""
    return Event(kind="error", data={"kind": kind, "message": message})


def percent(stage: str, step: int, total: int, before: int) -> int:
    """How much of a clip is done, roughly; never less than `before`.

    Args:
        stage, step, total: of a progress event.
        before: what was said last.
    """
    names = [*_DONE_AFTER]
    if stage not in names:
        return before
    index = names.index(stage)
    low = _DONE_AFTER[names[index - 1]] if index else 0
    return max(before, low + (_DONE_AFTER[stage] - low) * step // max(total, 1))
