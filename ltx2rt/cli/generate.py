"""`ltx2rt generate BUNDLE --prompt "..." -o out.mp4`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx2rt.bundle.bundle import Bundle, open_bundle
from ltx2rt.cli import enhancement as enhancement_flags
from ltx2rt.cli import job_file
from ltx2rt.cli import outputs as output_flags
from ltx2rt.cli.common import ProgressPrinter, print_json
from ltx2rt.cli.generate_flags import HelpAction, add_arguments, add_runtime_arguments
from ltx2rt.cli.outputs import Outputs
from ltx2rt.cli.requests import (
    Asked,
    asked_of,
    runtime_of,
)
from ltx2rt.config import GenerationConfig, GuidanceConfig
from ltx2rt.errors import CheckpointError, OptionError
from ltx2rt.pipelines.request import Request
from ltx2rt.progress import Job
from ltx2rt.results.stage_store import kept_stages, remove_stages

if TYPE_CHECKING:
    from ltx2rt.pipelines.base import Pipeline

__all__ = ["HelpAction", "add_arguments", "add_runtime_arguments", "run"]


def flags() -> job_file.Flags:
    """The flags that a job may hold."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    return job_file.Flags.of(parser)


def run(options: argparse.Namespace) -> int:
    options, record = job_file.complete(options, options.job, flags())
    if options.dump_job is not None:
        from ltx2rt.media.files import check_file_path

        check_file_path(options.dump_job)
        asked_of(options, record)
        job_file.dump_job(options.dump_job, options, record, flags())
        return 0
    asked = asked_of(options, record)
    results = generate(asked)
    stream = sys.stderr if options.output == output_flags.STDOUT else sys.stdout
    made = []
    for result in results:
        made.append(result)
        if not options.json:
            print(_sentence(result), file=stream, flush=True)
    if options.json:
        print_json(made[0] if len(asked.seeds) == 1 else made, stream)
    return 0


def _sentence(result: dict[str, Any]) -> str:
    if result.get("skipped"):
        return f"{result['output']}: made before by this same request, seed {result['seed']}"
    if "duration_s" in result:
        what = f"{result['duration_s']:.2f} s of sound at {result['audio_sampling_rate']} Hz"
    else:
        what = (
            f"{result['num_frames']} frames of {result['width']}x{result['height']} at "
            f"{result['frame_rate']:g} fps"
        )
    return (
        f"{result['output']}: {what}, seed {result['seed']}, bundle {result['bundle']}, "
        f"ltx2rt {result['ltx2rt_version']}"
    )


def generate(asked: Asked) -> Iterator[dict[str, Any]]:
    """Check everything that can be checked, then generate and write clip by clip; yields what was
    made and how long it took.
    """
    options, count = asked.options, len(asked.seeds)
    every = Outputs.of(options)
    outputs = [every.numbered(i) if count > 1 else every for i in range(1, count + 1)]
    for output in outputs:
        output.check(asked.pipeline, asked.inputs, asked.config)
    check_files(options)
    bundle = open_bundle(options.bundle, weights_dir=options.weights_dir)
    asked = asked.for_bundle(bundle.has)
    with asked.pipeline(bundle, runtime_of(options, asked.record)) as pipe:
        warn_of_other_bundle(asked, bundle)
        guidance = asked.guidance(pipe)
        for number, (config, output) in enumerate(zip(asked.configs, outputs, strict=True), 1):
            work_dir = work_dir_of(options, output, number if count > 1 else None)
            yield make(pipe, asked, config, guidance, output, work_dir)


def make(
    pipe: Pipeline,
    asked: Asked,
    config: GenerationConfig,
    guidance: GuidanceConfig | None,
    output: Outputs,
    work_dir: Path | None = None,
) -> dict[str, Any]:
    """Generate and write one clip."""
    options = asked.options
    job = Job(ProgressPrinter(quiet=bool(options.quiet)))
    request = Request(config=config, guidance=guidance, inputs=asked.inputs)
    if options.enhance_prompt:  # refuse a bad request before anybody is asked
        pipe.prepare(request)
        config = enhancement_flags.enhanced(config, options, asked.config.seed)
        request = replace(request, config=config)
    if options.resume and options.save_embeddings is None and _is_made(pipe, request, output):
        return {"output": str(output.paths[0]), "seed": config.seed, "skipped": True}
    try:
        clip = pipe(
            config,
            guidance,
            asked.inputs,
            job=job,
            work_dir=work_dir,
            resume=bool(options.resume),
        )
        if options.save_embeddings is not None:
            pipe.save_embeddings(options.save_embeddings)
        output.write(clip)
    except BaseException as error:
        refused = isinstance(error, OptionError | CheckpointError)
        if work_dir is not None and not refused and kept_stages(work_dir):
            error.add_note(
                f"finished stages ({', '.join(kept_stages(work_dir))}) are kept in {work_dir}: "
                "repeat the command with --resume to go on after them."
            )
        raise
    if work_dir is not None and options.work_dir is None:
        remove_stages(work_dir)
    size: dict[str, float] = {"num_frames": clip.num_frames or clip.config.frame_count}
    if pipe.makes == "video":
        size |= {"height": clip.height, "width": clip.width}
    if pipe.makes == "audio" or output.is_sound:
        rate = clip.audio_sampling_rate
        size |= {"duration_s": clip.audio.shape[1] / rate, "audio_sampling_rate": rate}
    return {
        "output": str(output.paths[0]),
        **clip.metadata(),
        "seed": config.seed,
        **size,
        "frame_rate": clip.frame_rate,
        "timings_s": {k: round(v, 3) for k, v in job.timings_s.items()},
    }


def _is_made(pipe: Pipeline, request: Request, output: Outputs) -> bool:
    """Whether every file of a clip is there, made by this same request. EXR frames do not say what
    they were made by.
    """
    from ltx2rt.results.record import is_made

    record = pipe.record(pipe.prepare(request), {})
    is_exr = pipe.makes_exr or request.config.hdr is not None
    return not is_exr and all(is_made(path, record) for path in output.paths)


def check_files(options: argparse.Namespace) -> None:
    """Refuse further files that cannot be written, and flags that do not go together.

    Raises:
        OptionError, MediaError: says what is wrong.
    """
    from ltx2rt.media.files import check_file_path, check_folder, check_writable

    if options.save_embeddings is not None:
        if options.embeddings is not None:
            raise OptionError("--embeddings and --save-embeddings exclude each other.")
        check_file_path(options.save_embeddings)
        if options.save_embeddings in Outputs.of(options).paths:
            raise OptionError(f"'{options.save_embeddings}' is named for 2 outputs.")
    if options.work_dir is not None:
        check_folder(options.work_dir)
        check_writable(options.work_dir)
    if options.resume and options.work_dir is None and options.output == output_flags.STDOUT:
        raise OptionError("--resume needs --work-dir DIR when the clip goes to standard output.")


def work_dir_of(
    options: argparse.Namespace, output: Outputs, number: int | None = None
) -> Path | None:
    """Where the finished stages of a clip are kept; None: nowhere."""
    if options.work_dir is not None:
        folder: Path = options.work_dir
        return folder if number is None else folder / f"{number:04d}"
    if not options.resume:
        return None
    target = output.paths[0]
    return target.with_name(f"{target.name}.work")


def warn_of_other_bundle(asked: Asked, bundle: Bundle) -> None:
    """Say on stderr that a record was made with another bundle."""
    record = asked.record
    if record is not None and record.bundle != bundle.bundle_id and not asked.options.quiet:
        print(
            f"ltx2rt: note: this was made with bundle {record.bundle or 'unknown'}, not with "
            f"{bundle.bundle_id}: the clip will differ.",
            file=sys.stderr,
        )
