"""`ltx2rt generate BUNDLE --prompt "..." -o out.mp4`."""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ltx2rt.bundle.bundle import Bundle, open_bundle
from ltx2rt.cli.common import export_module, print_json
from ltx2rt.cli.fields import all_flags, spell
from ltx2rt.cli.generate_help import add_flags
from ltx2rt.cli.job_file import check_targets, dump_job, read_job
from ltx2rt.cli.outputs import Outputs
from ltx2rt.cli.preview import PreviewWriter, check_preview
from ltx2rt.cli.progress import ProgressPrinter, hushed
from ltx2rt.cli.requests import Asked, asked_of
from ltx2rt.components.enhance import EnhanceConfig, enhance_prompt
from ltx2rt.config import GenerationConfig
from ltx2rt.errors import CheckpointError, OptionError
from ltx2rt.partial import remove_leftovers
from ltx2rt.pipelines.base import Pipeline
from ltx2rt.pipelines.request import Request
from ltx2rt.progress import Job
from ltx2rt.results.clip import Clip
from ltx2rt.results.stage_store import kept_stages, remove_stages
from ltx2rt.trace import Trace

__all__ = ["add_arguments", "run", "spell"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags. They default to None, so that a job can fill in the rest."""
    flags = all_flags().values()
    add_flags(parser, ((flag.names, flag.group, flag.arguments()) for flag in flags))


def given_in(options: argparse.Namespace) -> dict[str, Any]:
    """What the flags on a command line hold."""
    return {key: v for key in all_flags() if (v := getattr(options, key, None)) is not None}


def run(options: argparse.Namespace) -> int:
    typed = given_in(options)
    variables = dict(text.partition("=")[::2] for text in options.var or ())
    wrong = [text for text in options.var or () if not text.partition("=")[1]]
    if wrong or (variables and options.job is None):
        raise OptionError(
            f"--var {wrong[0]} is not NAME=VALUE." if wrong else "--var needs --job FILE."
        )
    given, record = ({}, None) if options.job is None else read_job(options.job, variables)
    if options.job is not None:
        check_targets(given, typed, options.job.absolute().parent)
    asked_elsewhere = "enhance_url" in given and "enhance_url" not in typed
    given |= typed
    if options.dump_job is not None:
        from ltx2rt.media.files import check_file_path

        check_file_path(options.dump_job)
        asked_of(given, record)
        dump_job(options.dump_job, given, record)
        return 0
    asked = asked_of(given, record)
    return make_and_say(asked.without_key() if asked_elsewhere else asked, options.bundle)


def make_and_say(asked: Asked, bundle: Path) -> int:
    """Generate, and print what was made."""
    stream = sys.stderr if asked.output.is_stdout else sys.stdout
    made = []
    with hushed(asked.run.quiet):
        for result in traced(asked.run.trace, generate(asked, bundle)):
            made.append(result)
            if not asked.run.json:
                print(_sentence(result), file=stream, flush=True)
            if not asked.run.quiet:
                for stage, reason in result.get("host_work", {}).items():
                    print(f"ltx2rt: note: {stage} on the host: {reason}", file=sys.stderr)
    if asked.run.json:
        print_json(made[0] if len(asked.seeds) == 1 else made, stream)
    return 0


def traced(path: Path | None, results: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same, with a trace of the work written at the end, also after an error."""
    if path is None:
        yield from results
        return
    trace = Trace()
    try:
        with trace:
            yield from results
    finally:
        trace.write(path)


def _sentence(result: dict[str, Any]) -> str:
    if result.get("skipped"):
        return f"{result['output']}: made before by this same request, seed {result['seed']}"
    if "duration_s" in result:
        what = f"{result['duration_s']:.2f} s of sound at {result['audio_sampling_rate']} Hz"
    else:
        cut = ""
        if "rendered_width" in result:
            cut = f" (cut out of {result['rendered_width']}x{result['rendered_height']})"
        what = (
            f"{result['num_frames']} frames of {result['width']}x{result['height']}{cut} at "
            f"{result['frame_rate']:g} fps"
        )
    return (
        f"{result['output']}: {what}, seed {result['seed']}, bundle {result['bundle']}, "
        f"ltx2rt {result['ltx2rt_version']}"
    )


def generate(asked: Asked, path: Path) -> Iterator[dict[str, Any]]:
    """Check everything that can be checked, then generate and write clip by clip; yields what was
    made and how long it took.
    """
    several = len(asked.seeds) > 1
    outputs = [
        asked.output.numbered(i + 1) if several else asked.output for i in range(len(asked.seeds))
    ]
    for output in outputs:
        output.check(asked.pipeline, asked.request, resume=asked.run.resume)
    check_files(asked)
    bundle = open_bundle(path, weights_dir=asked.run.weights_dir)
    with asked.pipeline(bundle, asked.runtime) as pipe:
        warn_of_other_bundle(asked, bundle)
        asked = asked.for_pipeline(pipe)
        for index, output in enumerate(outputs):
            work_dir = work_dir_of(asked, output, index + 1 if several else None)
            yield make(pipe, asked, index, output, work_dir)


@dataclass(slots=True, kw_only=True)
class Begun:
    """A clip whose latents are made, and what is to become of it.

    Attributes:
        changed: what was there under its name is another clip, and how.
    """

    pipe: Pipeline
    asked: Asked
    output: Outputs
    work_dir: Path | None
    clip: Clip
    job: Job
    seed: int
    changed: list[str]


def make(
    pipe: Pipeline, asked: Asked, index: int, output: Outputs, work_dir: Path | None = None
) -> dict[str, Any]:
    """Generate and write one of the clips that were asked for; `skipped` in what is given back: it
    was there already; `changed`: what was there is another clip, and how.
    """
    begun = begin(pipe, asked, index, output, work_dir)
    return finish(begun) if isinstance(begun, Begun) else begun


def begin(
    pipe: Pipeline,
    asked: Asked,
    index: int,
    output: Outputs,
    work_dir: Path | None = None,
    cancel: threading.Event | None = None,
) -> Begun | dict[str, Any]:
    """Generate one of the clips, for `finish`; or say that it was there already, see `make`."""
    run, request = asked.run, asked.request_of(index)
    job = Job(ProgressPrinter(quiet=run.quiet, form=run.progress), preview_every=run.preview_every)
    job.cancel = cancel or job.cancel
    if run.preview is not None:
        job.on_preview = PreviewWriter(run.preview)
    if asked.enhance is not None:
        pipe.accept(request)  # refuse a bad request before anybody is asked
        config = enhanced(pipe, request.config, asked.enhance, asked.seeds[0], job)
        request = replace(request, config=config)
    seed = request.config.seed
    changed: list[str] = []
    if run.resume:
        reasons = reasons_for_clip(pipe, request, output)
        if not reasons and run.save_embeddings is None:
            for path in output.paths:
                remove_leftovers(path)
            return {"output": str(output.paths[0]), "seed": seed, "skipped": True}
        if reasons and any(path.exists() for path in output.paths):
            changed = reasons
        output.check(asked.pipeline, request)
    with _noting_stages(work_dir):
        clip = pipe(
            request.config,
            request.guidance,
            request.inputs,
            job=job,
            work_dir=work_dir,
            resume=run.resume,
        )
        if run.save_embeddings is not None:
            pipe.save_embeddings(run.save_embeddings)
    return Begun(
        pipe=pipe, asked=asked, output=output, work_dir=work_dir, clip=clip, job=job, seed=seed,
        changed=changed,
    )  # fmt: skip


def finish(begun: Begun) -> dict[str, Any]:
    """Decode and write a clip; see `make`."""
    pipe, output, clip, job = begun.pipe, begun.output, begun.clip, begun.job
    with _noting_stages(begun.work_dir):
        output.write(clip)
    if begun.work_dir is not None and begun.asked.run.work_dir is None:
        remove_stages(begun.work_dir)
    size: dict[str, float] = {"num_frames": clip.num_frames or clip.config.frame_count}
    if pipe.makes == "video":
        size |= {"height": clip.height, "width": clip.width}
        if clip.rendered_size != (clip.height, clip.width):
            height, width = clip.rendered_size
            size |= {"rendered_height": height, "rendered_width": width}
    if pipe.makes == "audio" or output.is_sound:
        rate = clip.audio_sampling_rate
        size |= {"duration_s": clip.audio.shape[1] / rate, "audio_sampling_rate": rate}
    return {
        "output": str(output.paths[0]),
        **clip.metadata(),
        "seed": begun.seed,
        **({"changed": begun.changed} if begun.changed else {}),
        **size,
        "frame_rate": clip.frame_rate,
        **({"host_work": dict(job.host_work)} if job.host_work else {}),
        "timings_s": {k: round(v, 3) for k, v in job.timings_s.items()},
    }


@contextlib.contextmanager
def _noting_stages(work_dir: Path | None) -> Iterator[None]:
    """Errors say which finished stages are kept."""
    try:
        yield
    except BaseException as error:
        refused = isinstance(error, OptionError | CheckpointError)
        if work_dir is not None and not refused and kept_stages(work_dir):
            error.add_note(
                f"finished stages ({', '.join(kept_stages(work_dir))}) are kept in {work_dir}: "
                "repeat the command with --resume to go on after them."
            )
        raise


def enhanced(
    pipe: Pipeline, config: GenerationConfig, who: EnhanceConfig, seed: int, job: Job
) -> GenerationConfig:
    """What to make, with its prompt written out."""
    prompt = config.user_prompt or config.prompt
    image = config.images[0].path if config.images else None
    if who.is_own:
        answer = pipe.enhance_prompt(prompt, image=image, seed=seed, job=job)
    else:
        local = None if who.url is not None else export_module("enhance").local_model(who.model)
        answer = enhance_prompt(prompt, who, image=image, seed=seed, local=local)
    return replace(config, prompt=answer, user_prompt=prompt)


def reasons_for_clip(pipe: Pipeline, request: Request, output: Outputs) -> list[str]:
    """Why a clip has to be made; empty if every file of it is there, made by this same request."""
    from ltx2rt.media.exr import exr_folder
    from ltx2rt.results.record import reasons_to_make

    record = pipe.record(pipe.prepare(request), {})
    found = [reason for path in output.paths for reason in reasons_to_make(path, record)]
    # EXR frames do not say what they were made by: they get their name after the clip beside them
    is_exr = pipe.makes_exr or request.config.hdr is not None
    if is_exr and output.clip is not None and not exr_folder(output.clip).is_dir():
        found.append("its EXR frames are not there")
    return [*dict.fromkeys(found)]


def check_files(asked: Asked) -> None:
    """Refuse further files that cannot be written.

    Raises:
        OptionError, MediaError: says what is wrong.
    """
    from ltx2rt.media.files import check_file_path, check_folder, check_writable

    run = asked.run
    further = [path for path in (run.save_embeddings, run.trace, run.preview) if path is not None]
    for path in further:
        check_file_path(path)
        if path in asked.output.paths or further.count(path) > 1:
            raise OptionError(f"'{path}' is named for 2 outputs.")
    if run.preview is not None:
        check_preview(run.preview)
    if run.work_dir is not None:
        check_folder(run.work_dir)
        check_writable(run.work_dir)
    elif run.resume and asked.output.is_stdout:
        raise OptionError("--resume needs --work-dir DIR when the clip goes to standard output.")


def work_dir_of(asked: Asked, output: Outputs, number: int | None = None) -> Path | None:
    """Where the finished stages of a clip are kept; None: nowhere."""
    folder = asked.run.work_dir
    if folder is not None:
        return folder if number is None else folder / f"{number:04d}"
    if not asked.run.resume:
        return None
    target = output.paths[0]
    return target.with_name(f"{target.name}.work")


def warn_of_other_bundle(asked: Asked, bundle: Bundle) -> None:
    """Say on stderr that a record was made with another bundle."""
    record = asked.record
    if record is not None and record.bundle != bundle.bundle_id and not asked.run.quiet:
        print(
            f"ltx2rt: note: this was made with bundle {record.bundle or 'unknown'}, not with "
            f"{bundle.bundle_id}: the clip will differ.",
            file=sys.stderr,
        )
