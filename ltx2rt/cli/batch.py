"""`ltx2rt batch BUNDLE JOBS.jsonl -o DIR`: one job a line, engines loaded once.

Whatever is wrong with a job is a line of JSON; the others are made all the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from ltx2rt.bundle.bundle import Bundle, open_bundle
from ltx2rt.cli.batch_clips import (
    FAILURES,
    BatchJob,
    close_pipelines,
    in_turn,
    make_on_device,
    sentence,
)
from ltx2rt.cli.batch_devices import on_devices, parse_devices, parse_shard
from ltx2rt.cli.batch_ray import on_ray
from ltx2rt.cli.fields import all_flags
from ltx2rt.cli.flags import key_of
from ltx2rt.cli.job_file import read_flags
from ltx2rt.cli.outputs import real_path
from ltx2rt.cli.prompt_file import COMMENT, SUFFIX, entries_of, job_of_entry, job_of_line
from ltx2rt.cli.requests import Asked, asked_of
from ltx2rt.errors import OptionError
from ltx2rt.partial import remove_all_leftovers
from ltx2rt.plain_data import parse_json, to_plain
from ltx2rt.user_files import read_user_text

MAX_JOBS = 100_000
MAX_JOBS_BYTES = MAX_JOBS * 10_000
EXIT_FAILED_JOBS = 1
#: of a clip that its line names no file for, by what it is
SUFFIXES = {"video": ".mp4", "audio": ".wav", "image": ".png", "frames": ""}
#: keys of a job that name what it writes
OUTPUTS = {"output", "frames", "audio_output", "save_latents"}
#: flags of the whole batch, which win
SHARED = (
    "threads", "spinning", "max_batch_size", "device", "weights_dir", "quiet", "progress",
    "plugin_modules", "engine_host_code", "enhance_insecure", "no_record", "record_paths",
    "allow_nan",
)  # fmt: skip
#: flags of those lines that do not say it themselves
DEFAULTS = ("pipeline", "lora")
#: keys that a job of a batch may not have; a stream is under its name before it is complete
REFUSED = {
    "resume", "work_dir", "save_embeddings", "trace", "stream", "fragmented", "preview",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "jobs",
        type=Path,
        metavar="JOBS",
        help="one JSON object a line: the flags of `ltx2rt generate` (`output` is a name in -o); "
        "or a .txt file of prompts with options, as trainers take them: TEXT --n TEXT --w 768 ...",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the clips"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="leave clips alone that are there and were made by the same line",
    )
    parser.add_argument("--json", action="store_true", help="results are lines of JSON anyway")
    parser.add_argument(
        "--devices", type=parse_devices, metavar="N,N", help="a process each; cpu,cpu without GPUs"
    )
    parser.add_argument(
        "--runner", choices=("local", "ray"), default="local",
        help="ray: an actor a GPU of the cluster at RAY_ADDRESS, or of this machine",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, metavar="N",
        help="actors of --runner ray; default one for every GPU, without GPUs for every processor",
    )  # fmt: skip
    parser.add_argument(
        "--shard", type=parse_shard, metavar="I/N", help="only every N-th clip, from the I-th on"
    )
    for key in (*DEFAULTS, *SHARED):
        flag = all_flags()[key]
        parser.add_argument(flag.name, **flag.arguments())


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """A line that is no job, or whose output another line writes, and why."""

    number: int
    error: str


def run(options: argparse.Namespace) -> int:
    """Every result is a line of JSON on stdout, bad lines first; 1 if a job failed."""
    from ltx2rt.media.files import check_folder

    if options.devices is not None and options.device is not None:
        raise OptionError("--device and --devices exclude each other.")
    if options.runner == "ray" and (options.devices, options.device) != (None, None):
        raise OptionError("--runner ray gives devices to its workers: leave out --device(s).")
    if options.workers is not None and (options.runner != "ray" or options.workers < 1):
        raise OptionError(f"--workers={options.workers}: --runner ray takes a number above 0.")
    lines = _lines(options.jobs)
    check_folder(options.output)
    bundle = open_bundle(options.bundle, weights_dir=options.weights_dir)
    jobs, bad = read_jobs(lines, options)
    if options.shard is not None:
        jobs = jobs[options.shard.index :: options.shard.count]
        bad = bad[options.shard.index :: options.shard.count]
    said = sys.stdout
    for line in bad:
        _say(said, {"job": line.number, "error": line.error})
    if jobs:
        options.output.mkdir(parents=True, exist_ok=True)
        remove_all_leftovers(options.output)
    failed = len(bad)
    try:
        with redirect_stdout(sys.stderr):  # what Ray itself prints is no result
            for job, made in _results(jobs, bundle, options):
                failed += "error" in made
                _say(said, {"job": job.number, "output": str(job.output.paths[0]), **made})
    finally:
        close_pipelines()
    if failed:
        print(f"ltx2rt: {failed} of {len(jobs) + len(bad)} jobs failed.", file=sys.stderr)
    return EXIT_FAILED_JOBS if failed else 0


def _results(
    jobs: list[BatchJob], bundle: Bundle, options: argparse.Namespace
) -> Iterator[tuple[BatchJob, dict[str, Any]]]:
    """What became of every job: in their order, or as several devices make them."""
    place = options.bundle.absolute(), options.weights_dir and options.weights_dir.absolute()
    make = partial(make_on_device, *place)
    if options.runner == "ray":
        uses_gpu = not bundle.manifest.runs_on_cpu
        return on_ray(jobs, make, uses_gpu=uses_gpu, workers=options.workers)
    if options.devices is not None:
        return on_devices(jobs, options.devices, make)
    return in_turn(jobs, bundle)


def _say(stream: TextIO, result: dict[str, Any]) -> None:
    print(json.dumps(result, ensure_ascii=False, default=str), file=stream, flush=True)


def read_jobs(
    lines: list[tuple[int, str]], options: argparse.Namespace
) -> tuple[list[BatchJob], list[BadLine]]:
    """The clips of every line, and the lines that cannot be run."""
    jobs: list[BatchJob] = []
    bad: list[BadLine] = []
    writers: dict[Path, int] = {}
    for number, line in lines:
        try:
            clips = list(_clips(_asked(line, number, options), number, options.output))
        except FAILURES as error:
            bad.append(BadLine(number=number, error=sentence(error)))
            continue
        paths = {real_path(p): p for job in clips for p in job.output.paths}
        taken = [
            f"'{p}' is the output of line {writers[r]}" for r, p in paths.items() if r in writers
        ]
        if taken:
            bad.append(BadLine(number=number, error="; ".join(taken)))
            continue
        writers |= dict.fromkeys(paths, number)
        jobs += clips
    return jobs, bad


def _lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines that are not empty; entries of a list, where the file is one.

    Raises:
        OptionError: it is not a file of so many lines of text.
    """
    text = read_user_text(path, MAX_JOBS_BYTES)
    entries = entries_of(path, text)
    if entries is not None:
        lines = [(i, json.dumps(entry, default=str)) for i, entry in enumerate(entries, 1)]
    else:
        lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if _is_prompt_file(path):
        lines = [(i, line) for i, line in lines if not line.startswith(COMMENT)]
    if not lines:
        raise OptionError(f"{path} holds no jobs.")
    if len(lines) > MAX_JOBS:
        raise OptionError(f"{path} has {len(lines)} jobs; at most {MAX_JOBS} run in one batch.")
    return lines


def _is_prompt_file(path: Path) -> bool:
    return path.suffix.lower() == SUFFIX


def _asked(line: str, number: int, options: argparse.Namespace) -> Asked:
    """A line as a request; its outputs are in the batch's folder, other paths beside the file. A
    clip without a name is called after what is asked for: the same line gives the same name.
    """
    if _is_prompt_file(options.jobs):
        job = job_of_line(line)
    else:
        try:
            job = job_of_entry(parse_json(line))
        except ValueError as error:
            raise OptionError(f"it is not JSON: {error}") from error
    if not isinstance(job, dict):
        raise OptionError("it is not an object of flags")
    job = {key_of(name): value for name, value in job.items()}
    refused = sorted(REFUSED & job.keys())
    if refused:
        raise OptionError(f"{', '.join(refused)} cannot be used in a batch")
    outputs = {k: job.pop(k) for k in OUTPUTS & job.keys()}
    where = f"{options.jobs} line {number}"
    folder = options.output.absolute()
    named, _ = read_flags(outputs, folder, where)
    given, record = read_flags(job, options.jobs.absolute().parent, where)
    shared = {key: v for key in SHARED if (v := getattr(options, key)) is not None}
    resume = {"resume": True} if options.resume else {}
    usual = {key: v for key in DEFAULTS if (v := getattr(options, key)) is not None}
    given = {**usual, **given, **named, **shared, **resume}
    asked = asked_of(given, record).without_key()
    if "output" in named:
        return asked
    clip = folder / _name(asked)
    output = replace(asked.output, clip=clip)
    return replace(asked, output=output)


def _name(asked: Asked) -> str:
    """Of a clip that its line names no file for."""
    content = [asked.pipeline.name, to_plain(asked.request), list(asked.seeds)]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"{digest[:12]}{SUFFIXES[asked.pipeline.output_kinds(asked.request.inputs)[0]]}"


def _clips(asked: Asked, number: int, folder: Path) -> Iterator[BatchJob]:
    """The clips of one line.

    Raises:
        OptionError: a name that leads out of the batch's folder.
    """
    every, count = asked.output, len(asked.seeds)
    inside = real_path(folder)
    outside = [str(p) for p in every.paths if not real_path(p).is_relative_to(inside)]
    if outside or every.is_stdout:
        raise OptionError(f"output {', '.join(outside) or '-'} is not inside {folder}")
    for index in range(count):
        output = every.numbered(index + 1) if count > 1 else every
        yield BatchJob(number=number, asked=asked, index=index, output=output)
