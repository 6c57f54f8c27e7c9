"""A clip of any length: windows one after the other, each of which goes on from the last frames of
the one before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from ltx2rt.bundle.bundle import Bundle
from ltx2rt.bundle.source import ModelSource
from ltx2rt.config import GenerationConfig, GuidanceConfig, NeighbourClip, RuntimeConfig
from ltx2rt.errors import OptionError
from ltx2rt.media.encoding import VideoEncoding
from ltx2rt.media.reader import probe_video
from ltx2rt.pipelines.base import Pipeline, pipeline_class
from ltx2rt.pipelines.catalog import PIPELINES
from ltx2rt.pipelines.request import Request
from ltx2rt.plain_data import unknown_name
from ltx2rt.progress import Job
from ltx2rt.results.joined import Stretch, file_stretch, write_joined
from ltx2rt.results.record import reasons_to_make
from ltx2rt.results.stage_store import remove_stages

#: frames that windows share
OVERLAP = 25
#: windows are kept without loss, so that a run that goes on reads what the first one wrote
LOSSLESS = VideoEncoding(codec="ffv1")

#: number of the window from 0, their count, and whether it was kept from before
OnWindow = Callable[[int, int, bool], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One window of a long clip: what it shows, in any way that a clip can be asked for.

    Attributes:
        config: what to make; its first frames, as many as windows share, are those of the window
            before. Size and frame rate are the same in all segments.
        pipeline: its name.
        guidance: for guided pipelines.
        inputs: further inputs of the pipeline.
    """

    config: GenerationConfig
    pipeline: str = "distilled"
    guidance: GuidanceConfig | None = None
    inputs: object = None


def make_long(
    source: Bundle | ModelSource,
    segments: Sequence[Segment],
    path: str | Path | BinaryIO,
    work_dir: str | Path,
    *,
    overlap: int = OVERLAP,
    resume: bool = False,
    runtime: RuntimeConfig | None = None,
    encoding: VideoEncoding | None = None,
    fragmented: bool = False,
    job: Job | None = None,
    on_window: OnWindow | None = None,
) -> int:
    """Make a clip of many windows, cross-faded over the frames that they share, and write it while
    they are made. Memory is that of one window.

    ```python
    texts = ["A lake at dawn.", "The sun is up."]
    configs = [ltx2rt.GenerationConfig(prompt=text, num_frames=25) for text in texts]
    segments = [ltx2rt.Segment(config=config) for config in configs]
    ltx2rt.make_long(bundle, segments, "long.mp4", "long.work", overlap=9)
    ```

    Args:
        source: an opened bundle.
        segments: at least one.
        path: the video file, see `Clip.save`; with `fragmented` it can be played meanwhile.
        work_dir: keeps every finished window (lossless, one file each) and the finished stages of
            the one in work.
        overlap: frames that two windows share, `8k+1`.
        resume: take over windows and stages that `work_dir` has from these same segments; the
            result has the same bits.
        runtime: how to run.
        encoding: codec, quality, preset and encoder.
        job: progress, cancelling and timings.
        on_window: called before each window.

    Returns:
        Frames of the result.

    Raises:
        OptionError: segments do not fit together, or one cannot be made.
        MediaError: a file cannot be written.
    """
    problems = segment_problems(segments, overlap)
    if problems:
        raise OptionError("a long clip cannot be made", problems)
    folder = Path(work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"window-{number + 1:04d}.mkv" for number in range(len(segments))]
    windows = _windows(source, segments, files, overlap, resume, runtime, job or Job(), on_window)
    first = next(windows)
    info = probe_video(first)

    def stretches() -> Iterator[Stretch]:
        for index, file in enumerate((first, *[None] * (len(segments) - 1))):
            yield file_stretch(
                file or next(windows),
                (info.height, info.width),
                float(info.frame_rate),
                shared_before=overlap if index else 0,
                shared_after=overlap if index + 1 < len(segments) else 0,
            )

    return write_joined(
        path,
        stretches(),
        info.height,
        info.width,
        float(info.frame_rate),
        info.audio_sampling_rate if info.has_audio else None,
        encoding=encoding,
        fragmented=fragmented,
        metadata={"segments": str(len(segments))},
    )


def _windows(
    source: Bundle | ModelSource,
    segments: Sequence[Segment],
    files: Sequence[Path],
    overlap: int,
    resume: bool,
    runtime: RuntimeConfig | None,
    job: Job,
    on_window: OnWindow | None,
) -> Iterator[Path]:
    """Every window's file, once it is there; engines stay open while the pipeline is the same."""
    pipe: Pipeline | None = None
    try:
        for index, (segment, file) in enumerate(zip(segments, files, strict=True)):
            if pipe is None or pipe.name != segment.pipeline:
                if pipe is not None:
                    pipe.close()
                pipe = pipeline_class(segment.pipeline)(source, runtime)
            config = segment.config
            if index:
                shared = NeighbourClip(path=files[index - 1], frames=overlap)
                config = replace(config, after=shared)
            request = Request(config=config, guidance=segment.guidance, inputs=segment.inputs)
            kept = resume and not reasons_to_make(file, pipe.record(pipe.prepare(request), {}))
            if on_window is not None:
                on_window(index, len(segments), kept)
            if not kept:
                _make(pipe, request, file, job, resume=resume)
            yield file
    finally:
        if pipe is not None:
            pipe.close()


def _make(pipe: Pipeline, request: Request, file: Path, job: Job, *, resume: bool) -> None:
    stages = file.with_suffix(".work")
    clip = pipe(
        request.config,
        request.guidance,
        request.inputs,
        job=job,
        work_dir=stages,
        resume=resume,
    )
    clip.save(file, encoding=LOSSLESS)
    remove_stages(stages)


def segment_problems(segments: Sequence[Segment], overlap: int) -> list[str]:
    """What is wrong with the segments of a long clip, as far as one can say without a bundle."""
    problems: list[str] = []
    if not segments:
        return ["it has no segments"]
    if overlap < 9 or overlap % 8 != 1:
        problems.append(f"an overlap of {overlap} frames is not 8k+1 and at least 9")
    first = segments[0].config
    for number, segment in enumerate(segments, 1):
        config = segment.config
        if segment.pipeline not in PIPELINES:
            problems.append(
                f"segment {number}: pipeline {unknown_name(segment.pipeline, PIPELINES)}"
            )
        elif number > 1 and not pipeline_class(segment.pipeline).takes("config.after"):
            problems.append(f"segment {number}: {segment.pipeline} cannot go on from a clip")
        for name in ("height", "width", "frame_rate"):
            if (found := getattr(config, name)) != (want := getattr(first, name)):
                problems.append(
                    f"segment {number}: {name.replace('_', ' ')} {found:g} is not the {want:g} of "
                    "the first one"
                )
        if config.after is not None or config.before is not None:
            problems.append(f"segment {number}: clips before and after it are the other segments")
        if isinstance(config.num_frames, int) and config.num_frames <= 2 * overlap:
            problems.append(
                f"segment {number}: {config.num_frames} frames are not more than the {2 * overlap} "
                "that it shares with its neighbours"
            )
    return problems
