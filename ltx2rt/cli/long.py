"""`ltx2rt long BUNDLE PLAN -o out.mp4`: minutes of video by windows that go on from each other."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ltx2rt.bundle.bundle import Bundle, open_bundle
from ltx2rt.cli.common import print_json
from ltx2rt.cli.fields import all_flags, spell
from ltx2rt.cli.generate import enhanced, given_in
from ltx2rt.cli.job_file import VARIABLES_KEY, read_flags, read_table
from ltx2rt.cli.preview import PreviewWriter, check_preview
from ltx2rt.cli.progress import printer_of
from ltx2rt.cli.requests import Asked, asked_of
from ltx2rt.errors import Ltx2rtError, OptionError, Problem
from ltx2rt.pipelines.long import OVERLAP, Segment, make_long, segment_problems
from ltx2rt.pipelines.request import Request
from ltx2rt.progress import Job

__all__ = ["add_arguments", "run", "spell"]

#: flags of the whole clip
SHARED = (
    "output", "stream", "codec", "quality", "preset", "encoder", "threads", "max_batch_size",
    "device", "weights_dir", "quiet", "progress", "json", "work_dir", "resume", "preview",
    "preview_every",
)  # fmt: skip
SEGMENTS = "segments"
#: keys that a segment may not have: they belong to the whole clip, or to the other segments
REFUSED = {*SHARED, "after", "before", "joined", "frames", "audio_output", "save_latents",
           "save_embeddings", "num_videos", "fragmented"}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "plan",
        type=Path,
        metavar="PLAN",
        help="a .toml or .json file: flags of `ltx2rt generate` for all segments, and a list "
        "`segments` of tables with those of each: prompt, num_frames, seed, image, lora, ...",
    )
    parser.add_argument(
        "--overlap",
        type=int,
        default=OVERLAP,
        metavar="N",
        help="frames that two segments share, 8k+1; default %(default)s",
    )
    for key in SHARED:
        flag = all_flags()[key]
        parser.add_argument(*flag.names, **flag.arguments())


def run(options: argparse.Namespace) -> int:
    given = given_in(options)
    if "output" not in given:
        raise OptionError("nothing is to be written: name an output (-o out.mp4).")
    everything = read_plan(options.plan, given)
    output = everything[0].output
    if output.is_sound or output.clip is None:
        raise OptionError(f"a long clip goes to a video file, not to '{given['output']}'.")
    for asked in everything:
        output.check(asked.pipeline, asked.request)
    bundle = open_bundle(options.bundle, weights_dir=options.weights_dir)
    segments = [_segment(asked, bundle) for asked in everything]
    if problems := segment_problems(segments, options.overlap):
        raise OptionError(f"{options.plan} cannot be made", problems)
    work_dir = options.work_dir or f"{output.clip}.work"
    job = Job(printer_of(options), preview_every=everything[0].run.preview_every)
    if options.preview is not None:
        preview = everything[0].run.preview
        assert preview is not None
        check_preview(preview)
        job.on_preview = PreviewWriter(preview)
    segments = [
        _written_out(segment, asked, bundle, job)
        for segment, asked in zip(segments, everything, strict=True)
    ]
    stream = sys.stderr if output.is_stdout else sys.stdout
    try:
        frames = make_long(
            bundle,
            segments,
            sys.stdout.buffer if output.is_stdout else output.clip,
            work_dir,
            overlap=options.overlap,
            resume=bool(options.resume),
            runtime=everything[0].runtime,
            encoding=output.encoding,
            fragmented=output.stream,
            job=job,
            on_window=None if options.quiet else _say,
        )
    except BaseException as error:
        if not isinstance(error, OptionError):
            error.add_note(f"finished segments are kept in {work_dir}: go on with --resume.")
        raise
    config = segments[0].config
    if options.json:
        print_json({"output": str(output.clip), "num_frames": frames, "work_dir": work_dir}, stream)
    else:
        print(
            f"{output.clip}: {frames} frames of {config.width}x{config.height} at "
            f"{config.frame_rate:g} fps, {len(segments)} segments, kept in {work_dir}",
            file=stream,
        )
    return 0


def read_plan(path: Path, given: dict[str, Any]) -> list[Asked]:
    """Every segment of a plan as a request; seeds count up from the plan's where none is named.

    Raises:
        OptionError: lists what is wrong in every segment.
    """
    table = {name.replace("-", "_"): value for name, value in read_table(path).items()}
    parts = table.pop(SEGMENTS, None)
    if not isinstance(parts, list) or not parts or not all(isinstance(p, dict) for p in parts):
        raise OptionError(f"{path} needs a list `{SEGMENTS}` of tables, one for each segment.")
    found: list[Asked] = []
    problems: list[str] = []
    for number, part in enumerate(parts, 1):
        flags = {**table, **{name.replace("-", "_"): value for name, value in part.items()}}
        if isinstance(shared := table.get(VARIABLES_KEY), dict):
            flags[VARIABLES_KEY] = {**shared, **part.get(VARIABLES_KEY, {})}
        if refused := sorted(REFUSED & flags.keys()):
            problems.append(f"segment {number}: {', '.join(refused)} cannot be used in a plan")
            continue
        try:
            read, record = read_flags(flags, path.absolute().parent, str(path))
            if "seed" not in part:
                read["seed"] = [read.get("seed", [10])[0] + number - 1]
            asked = asked_of({**read, **given}, record)
            found.append(asked.without_key() if "enhance_url" in read else asked)
        except Ltx2rtError as error:
            problems += [Problem(f"segment {number}: ", problem) for problem in error.problems]
    if problems:
        raise OptionError(f"{path} cannot be made", problems[:20])
    return found


def _segment(asked: Asked, bundle: Bundle) -> Segment:
    """A request with the defaults of its pipeline for this bundle."""
    with asked.pipeline(bundle, asked.runtime) as pipe:
        request = asked.for_pipeline(pipe).request
    return Segment(
        pipeline=asked.pipeline.name,
        config=request.config,
        guidance=request.guidance,
        inputs=request.inputs,
    )


def _written_out(segment: Segment, asked: Asked, bundle: Bundle, job: Job) -> Segment:
    """A segment whose prompt a language model has written out, where the plan asks for that; what
    it said once is kept, so that `--resume` goes on with the same prompts.
    """
    if asked.enhance is None:
        return segment
    with asked.pipeline(bundle, asked.runtime) as pipe:
        request = Request(config=segment.config, guidance=segment.guidance, inputs=segment.inputs)
        pipe.accept(request)  # refuse a bad request before anybody is asked
        config = enhanced(pipe, segment.config, asked.enhance, segment.config.seed, job)
    return replace(segment, config=config)


def _say(index: int, count: int, kept: bool) -> None:
    text = f"segment {index + 1} of {count}" + (", kept from before" if kept else "")
    print(text, file=sys.stderr, flush=True)
