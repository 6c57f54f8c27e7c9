"""Makes clips on one device, one at a time, and says what happens meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from ltx2rt.bundle.bundle import Bundle
from ltx2rt.config import RuntimeConfig
from ltx2rt.errors import OptionError, UnsupportedError
from ltx2rt.names import VIDEO_ENCODER
from ltx2rt.pipelines.base import Pipeline, pipeline_class
from ltx2rt.progress import Job, Progress
from ltx2rt.results.clip import Clip
from ltx2rt.results.record import record_text
from ltx2rt.results.stage_store import remove_stages
from ltx2rt.service.ahead import ahead_of
from ltx2rt.service.contexts import take_contexts
from ltx2rt.service.events import Event, preview_event, progress_event
from ltx2rt.service.requests import Order

Emit = Callable[[Event], None]
#: writes a clip that is a picture, a sound or a video; gives back facts of what was written
Write = Callable[[Clip, str, Emit], dict[str, Any]]
#: what a clip's file is called while it grows
PART = ".part"
#: what a clip is -> its file
FILES = {"video": "clip.mp4", "audio": "clip.m4a", "image": "clip.png"}


@dataclass(slots=True)
class Growing:
    """A binary stream that says how many bytes it was given; for a fragmented mp4.

    Attributes:
        target: where the bytes go.
        emit: takes a `fragment` event after every piece.
        count: bytes so far.
        first_at: when the first of them came, as `time.perf_counter` tells; None: not yet.
    """

    target: BinaryIO
    emit: Emit
    count: int = 0
    first_at: float | None = None

    def write(self, data: bytes) -> int:
        """Hand on all of `data`."""
        self.target.write(data)
        self.target.flush()
        self.first_at = self.first_at or time.perf_counter()
        self.count += len(data)
        self.emit(Event(kind="fragment", data={"bytes": self.count}))
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""


class Maker:
    """The engines of one device.

    Args:
        bundle: opened.
        runtime: which device, and how. Engines stay loaded between clips if it says so; those of
            one pipeline at a time.
    """

    def __init__(self, bundle: Bundle, runtime: RuntimeConfig) -> None:
        self.bundle = bundle
        self._runtime = runtime
        self._pipes: dict[str, Pipeline] = {}
        self._text = ahead_of(bundle, runtime)

    def close(self) -> None:
        """Free every engine."""
        self._close_pipes()
        if self._text is not None:
            self._text.close()
            self._text = ahead_of(self.bundle, self._runtime)

    def _close_pipes(self) -> None:
        while self._pipes:
            self._pipes.popitem()[1].close()

    def encode_ahead(self, order: Mapping[str, Any]) -> None:
        """Encode the prompts of the next clip, an `Order.plain`, on a thread of its own, while this
        one is decoded; nothing where there is no room for that. Any thread may call it.
        """
        if self._text is not None:
            self._text.want(order)

    def make(
        self,
        order: Order,
        write: Write,
        emit: Emit,
        cancel: threading.Event,
        work_dir: Path | None = None,
        *,
        contexts: Path | None = None,
    ) -> dict[str, Any]:
        """Make one clip.

        Args:
            order: what.
            write: takes the clip: `into_folder`, `into_stream`.
            emit: takes `progress`, `preview` and `fragment` events.
            cancel: ends it between two steps or tiles.
            work_dir: keeps finished stages, and has those of a run that was cut off; removed at the
                end.
            contexts: its text contexts, see `contexts.take_contexts`; None: the text encoder makes
                them.

        Returns:
            What was made: sizes, seed, bundle, `record`, `timings_s` (every stage, `save`: decoding
            and encoding together, `first_fragment`, `total`), and what `write` gives.

        Raises:
            Cancelled: it was ended.
            Ltx2rtError: it cannot be made.
        """
        began = time.perf_counter()

        def report(progress: Progress) -> None:
            emit(progress_event(progress))

        job = Job(report, cancel)
        if order.preview:
            check_previews(self.bundle, order.pipeline)
            job.preview_every = order.preview
            job.on_preview = lambda preview: emit(preview_event(preview))
        pipe = self._pipe(order.pipeline)
        request = pipe.accept(order.request)
        if contexts is not None:
            take_contexts(pipe, request, contexts)
        with nullcontext() if self._text is None else self._text.ready_for(pipe, request):
            clip = pipe.run_accepted(
                request, job=job, work_dir=work_dir, resume=work_dir is not None
            )
        saving = time.perf_counter()
        kind = kind_of(order)
        facts = write(clip, kind, emit)
        if work_dir is not None:
            remove_stages(work_dir)
        now = time.perf_counter()
        first = facts.pop("first_at") or now
        timings = {**job.timings_s, "save": now - saving}
        timings |= {"first_fragment": first - began, "total": now - began}
        return {
            **facts,
            "kind": kind,
            **clip.metadata(),
            "seed": request.config.seed,
            "num_frames": clip.num_frames or clip.config.frame_count,
            "width": clip.width,
            "height": clip.height,
            "frame_rate": clip.frame_rate,
            "record": record_text(clip.record),
            "timings_s": {k: round(v, 4) for k, v in timings.items()},
        }

    def _pipe(self, name: str) -> Pipeline:
        if name not in self._pipes:
            self._close_pipes()
            self._pipes[name] = pipeline_class(name)(self.bundle, self._runtime)
            if self._text is not None:
                self._pipes[name].engines.text_from = self._text.engines
        return self._pipes[name]


def kind_of(order: Order) -> str:
    """What a clip will be: a key of `FILES`."""
    return pipeline_class(order.pipeline).output_kinds(order.request.inputs)[0]


def can_preview(bundle: Bundle, pipeline: str) -> bool:
    """Whether clips of a pipeline are seen while they are made."""
    return pipeline_class(pipeline).makes != "audio" and bundle.has(VIDEO_ENCODER)


def check_previews(bundle: Bundle, pipeline: str) -> None:
    """Refuse previews that there cannot be.

    Raises:
        OptionError, UnsupportedError: says why.
    """
    if pipeline_class(pipeline).makes == "audio":
        raise OptionError(f"the {pipeline} pipeline makes sound, which has no previews.")
    if not can_preview(bundle, pipeline):
        raise UnsupportedError(
            f"previews need the {VIDEO_ENCODER}, which this bundle does not hold: leave them out."
        )


def into_folder(folder: Path) -> Write:
    """Writes the clip's file (see `FILES`); a video grows as `clip.mp4.part`, and has its name only
    when it is complete.
    """

    def write(clip: Clip, kind: str, emit: Emit) -> dict[str, Any]:
        path = folder / FILES[kind]
        if kind != "video":
            clip.save(path)
            return {"file": path.name, "bytes": path.stat().st_size, "first_at": None}
        part = path.with_name(path.name + PART)
        try:
            with part.open("wb") as file:
                facts = into_stream(file, folder)(clip, kind, emit)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return {"file": path.name, **facts}

    return write


def into_stream(target: BinaryIO, folder: Path | None = None) -> Write:
    """Writes a fragmented mp4, as it is made, into a binary stream, whose file lies in `folder`.

    The writer raises OptionError for a clip without a picture.
    """

    def write(clip: Clip, kind: str, emit: Emit) -> dict[str, Any]:
        if kind != "video":
            raise OptionError(f"a stream takes video; this request makes {kind}.")
        stream = Growing(target, emit)
        clip.save(cast(BinaryIO, stream), folder=folder)
        return {"bytes": stream.count, "first_at": stream.first_at}

    return write
