"""`ltx2rt batch BUNDLE JOBS.jsonl -o DIR`: one job a line, engines loaded once."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ltx2rt.backends.tensorrt_api import APIS
from ltx2rt.bundle.bundle import Bundle, open_bundle
from ltx2rt.cli import generate as generate_command
from ltx2rt.cli.batch_devices import on_devices, parse_devices, parse_shard
from ltx2rt.cli.fields import all_flags, spell
from ltx2rt.cli.flags import key_of
from ltx2rt.cli.job_file import read_flags
from ltx2rt.cli.outputs import Outputs
from ltx2rt.cli.requests import Asked, asked_of
from ltx2rt.config import RuntimeConfig
from ltx2rt.errors import Ltx2rtError, OptionError, Problem
from ltx2rt.pipelines.base import Pipeline
from ltx2rt.plain_data import parse_json

MAX_JOBS = 100_000
EXIT_FAILED_JOBS = 1
#: keys of a job that name what it writes
OUTPUTS = {"output", "frames", "audio_output", "save_latents"}
#: flags of the whole batch, which win
SHARED = ("threads", "spinning", "max_batch_size", "device", "weights_dir", "quiet")
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
        help="one JSON object a line: the flags of `ltx2rt generate` (`output` is a name in -o)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the clips"
    )
    parser.add_argument(
        "--resume", action="store_true", help="skip jobs whose output is there already"
    )
    parser.add_argument("--json", action="store_true", help="results are lines of JSON anyway")
    parser.add_argument(
        "--devices", type=parse_devices, metavar="N,N", help="a process each; cpu,cpu without GPUs"
    )
    parser.add_argument(
        "--shard", type=parse_shard, metavar="I/N", help="only every N-th clip, from the I-th on"
    )
    for key in SHARED:
        flag = all_flags()[key]
        parser.add_argument(flag.name, **flag.arguments())


#: what this process has open
_bundles: dict[Path, Bundle] = {}
_pipes: dict[tuple[str, RuntimeConfig], Pipeline] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """One clip of a batch: the number of its line, what is asked, which of its clips it is, and
    where it goes.
    """

    number: int
    asked: Asked
    index: int
    output: Outputs

    @property
    def is_done(self) -> bool:
        """Whether every output is there; files appear under their names only when complete."""
        return all(path.exists() for path in self.output.paths)


def run(options: argparse.Namespace) -> int:
    """Every result is a line of JSON on stdout; 1 if a job failed."""
    from ltx2rt.media.files import check_folder

    if options.devices is not None and options.device is not None:
        raise OptionError("--device and --devices exclude each other.")
    jobs = read_jobs(options)
    check_folder(options.output)
    bundle = open_bundle(options.bundle, weights_dir=options.weights_dir)
    options.output.mkdir(parents=True, exist_ok=True)
    failed = False
    try:
        for job, made in _results(jobs, bundle, options):
            result = {"job": job.number, "output": str(job.output.paths[0]), **made}
            failed = failed or "error" in result
            print(json.dumps(result, ensure_ascii=False, default=str), flush=True)
    finally:
        _close()
    return EXIT_FAILED_JOBS if failed else 0


def _results(
    jobs: list[BatchJob], bundle: Bundle, options: argparse.Namespace
) -> Iterator[tuple[BatchJob, dict[str, Any]]]:
    """What became of every job: in their order, or as several devices make them."""
    if options.shard is not None:
        jobs = jobs[options.shard.index :: options.shard.count]
    if options.devices is None:
        return ((job, _result(job, bundle, options.resume)) for job in jobs)
    place = options.bundle.absolute(), options.weights_dir and options.weights_dir.absolute()
    return on_devices(jobs, options.devices, partial(make_on_device, *place, options.resume))


def make_on_device(
    folder: Path, weights_dir: Path | None, resume: bool, job: BatchJob, device: int | None
) -> dict[str, Any]:
    """As `_result`, in a process of its own, which opens the bundle once."""
    if folder not in _bundles:
        _bundles[folder] = open_bundle(folder, weights_dir=weights_dir)
    asked = replace(job.asked, runtime=replace(job.asked.runtime, device=device))
    return _result(replace(job, asked=asked), _bundles[folder], resume)


def _result(job: BatchJob, bundle: Bundle, resume: bool) -> dict[str, Any]:
    """What was made, that it was there already, or why not."""
    if resume and job.is_done:
        return {"skipped": True}
    try:
        return _made(job, bundle)
    except Ltx2rtError as error:
        return {"error": error.told(spell)}


def _close() -> None:
    while _pipes:
        _pipes.popitem()[1].close()


def _made(job: BatchJob, bundle: Bundle) -> dict[str, Any]:
    """Generate one clip; the engines of one pipeline at a time stay loaded: on a GPU only if asked
    for, since few cards hold them all.
    """
    asked = job.asked
    job.output.check(asked.pipeline, asked.request)
    runtime = asked.runtime
    if bundle.manifest.backend not in APIS:
        runtime = replace(runtime, residency="resident")
    key = (asked.pipeline.name, runtime)
    if key not in _pipes:
        _close()
        _pipes[key] = asked.pipeline(bundle, runtime)
    pipe = _pipes[key]
    return generate_command.make(pipe, asked.for_pipeline(pipe), job.index, job.output)


def read_jobs(options: argparse.Namespace) -> list[BatchJob]:
    """Every line of the file, checked.

    Raises:
        OptionError: lists what is wrong in every line.
    """
    jobs: list[BatchJob] = []
    problems: list[str] = []
    for number, line in _lines(options.jobs):
        try:
            jobs += _clips(_asked(line, number, options), number, options.output)
        except Ltx2rtError as error:
            problems += [Problem(f"line {number}: ", problem) for problem in error.problems]
    paths = Counter(p for job in jobs for p in job.output.paths)
    problems += [f"{p} is the output of several jobs" for p, count in paths.items() if count > 1]
    if problems:
        raise OptionError(f"{options.jobs} cannot be run", problems[:20])
    if not jobs:
        raise OptionError(f"{options.jobs} holds no jobs.")
    return jobs


def _lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines that are not empty."""
    try:
        if path.stat().st_size > MAX_JOBS * 10_000:
            raise OptionError(f"{path} is too large for a file of jobs.")
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise OptionError(f"cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise OptionError(f"cannot read {path}: it is not UTF-8 text.") from error
    lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if len(lines) > MAX_JOBS:
        raise OptionError(f"{path} has {len(lines)} jobs; at most {MAX_JOBS} run in one batch.")
    return lines


def _asked(line: str, number: int, options: argparse.Namespace) -> Asked:
    """A line as a request; its outputs are in the batch's folder, other paths beside the file."""
    try:
        job = parse_json(line)
    except ValueError as error:
        raise OptionError(f"it is not JSON: {error}") from error
    if not isinstance(job, dict):
        raise OptionError("it is not an object of flags")
    job = {key_of(name): value for name, value in job.items()}
    refused = sorted(REFUSED & job.keys())
    if refused:
        raise OptionError(f"{', '.join(refused)} cannot be used in a batch")
    outputs = {"output": f"{number:04d}.mp4", **{k: job.pop(k) for k in OUTPUTS & job.keys()}}
    where = f"{options.jobs} line {number}"
    named, _ = read_flags(outputs, options.output.absolute(), where)
    given, record = read_flags(job, options.jobs.absolute().parent, where)
    shared = {key: v for key in SHARED if (v := getattr(options, key)) is not None}
    return asked_of({**given, **named, **shared}, record)


def _clips(asked: Asked, number: int, folder: Path) -> list[BatchJob]:
    """The clips of one line.

    Raises:
        OptionError: a name that leads out of the batch's folder.
    """
    every, count = asked.output, len(asked.seeds)
    inside = folder.resolve()
    outside = [str(p) for p in every.paths if not p.resolve().is_relative_to(inside)]
    if outside or every.is_stdout:
        raise OptionError(f"output {', '.join(outside) or '-'} is not inside {folder}")
    return [
        BatchJob(
            number=number,
            asked=asked,
            index=i,
            output=every.numbered(i + 1) if count > 1 else every,
        )
        for i in range(count)
    ]
