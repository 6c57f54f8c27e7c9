"""The clips of `ltx2rt batch` in one process: in turn, or the next beside this one's decoding."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ltx2rt.backends.tensorrt_api import APIS
from ltx2rt.bundle.bundle import Bundle, open_bundle
from ltx2rt.cli import generate as generate_command
from ltx2rt.cli.fields import spell
from ltx2rt.cli.outputs import Outputs, real_path
from ltx2rt.cli.requests import Asked
from ltx2rt.config import RuntimeConfig
from ltx2rt.errors import DeviceLostError, Ltx2rtError
from ltx2rt.pipelines.base import Pipeline
from ltx2rt.pipelines.next_clip import Cancel, NextClip
from ltx2rt.plain_data import named_files

#: what fails a job, and not the batch: an error of the user's, or of the machine's
FAILURES = (Ltx2rtError, MemoryError, OSError, RecursionError, UnicodeError)

#: what this process has open
_bundles: dict[Path, Bundle] = {}
_pipes: dict[tuple[str, RuntimeConfig], Pipeline] = {}

#: a clip whose latents are made, or what there is to say without one
Begun = generate_command.Begun | dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """One clip of a batch: the number of its line, what is asked, which of its clips it is, and
    where it goes.
    """

    number: int
    asked: Asked
    index: int
    output: Outputs


def in_turn(jobs: Sequence[BatchJob], bundle: Bundle) -> Iterator[tuple[BatchJob, dict[str, Any]]]:
    """All of them in this process; once it has lost its GPU, there is no sense in the others."""
    lost: dict[str, Any] | None = None
    ahead: NextClip[Begun] | None = None
    told = False
    try:
        for job, following in zip_longest(jobs, jobs[1:]):
            if lost is not None:
                yield job, lost
                continue
            begin: Callable[[], Begun] = ahead.take if ahead else partial(_begun, job, bundle)
            ahead = None
            try:
                begun = begin()
                if following is not None and isinstance(begun, generate_command.Begun):
                    ahead = _begun_ahead(job, following, bundle)
                    if ahead is None and not told:
                        told = _say_in_turn(begun, bundle)
                made = _finished(begun)
            except DeviceLostError as error:
                made = lost = {"error": sentence(error)}
            except FAILURES as error:
                if not isinstance(error, Ltx2rtError):  # what is loaded may be what was too much
                    if ahead is not None:
                        ahead.drop()  # its clip would go with what made it: it is made anew
                        ahead = None
                    close_pipelines()
                made = {"error": sentence(error)}
            yield job, made
    finally:
        if ahead is not None:
            ahead.drop()


def make_on_device(
    folder: Path, weights_dir: Path | None, job: BatchJob, device: int | None
) -> dict[str, Any]:
    """What was made, that it was there already, or why not: in a process of its own, which opens
    the bundle once.

    Raises:
        DeviceLostError: only another process can make it.
    """
    if folder not in _bundles:
        _bundles[folder] = open_bundle(folder, weights_dir=weights_dir)
    asked = replace(job.asked, runtime=replace(job.asked.runtime, device=device))
    try:
        return _finished(_begun(replace(job, asked=asked), _bundles[folder]))
    except DeviceLostError:
        raise
    except FAILURES as error:
        if not isinstance(error, Ltx2rtError):
            close_pipelines()
        return {"error": sentence(error)}


def sentence(error: BaseException) -> str:
    """What a job failed of."""
    if isinstance(error, Ltx2rtError):
        return error.told(spell)
    if isinstance(error, MemoryError):
        return f"this takes more memory than there is. {error}".strip()
    return f"{type(error).__name__}: {error}"


def close_pipelines() -> None:
    """Free what is loaded."""
    while _pipes:
        _pipes.popitem()[1].close()


def _key(job: BatchJob, bundle: Bundle) -> tuple[str, RuntimeConfig]:
    """Which engines a job wants: on a GPU loaded only while they work, since few cards hold them
    all.
    """
    runtime = job.asked.runtime
    if bundle.manifest.backend not in APIS:
        runtime = replace(runtime, residency="resident")
    return job.asked.pipeline.name, runtime


def _begun(job: BatchJob, bundle: Bundle, cancel: Cancel | None = None) -> Begun:
    """Generate one clip; the engines of one pipeline at a time stay."""
    asked, key = job.asked, _key(job, bundle)
    job.output.check(asked.pipeline, asked.request, resume=asked.run.resume)
    if key not in _pipes:
        close_pipelines()
        _pipes[key] = asked.pipeline(bundle, key[1])
    pipe = _pipes[key]
    asked = asked.for_pipeline(pipe)
    return generate_command.begin(pipe, asked, job.index, job.output, cancel=cancel)


def _finished(begun: Begun) -> dict[str, Any]:
    return generate_command.finish(begun) if isinstance(begun, generate_command.Begun) else begun


def _begun_ahead(job: BatchJob, following: BatchJob, bundle: Bundle) -> NextClip[Begun] | None:
    """The next clip, begun beside the decoding of this one; None where the two have to take turns:
    it needs other engines, or what this one writes, or the decoder's memory.
    """
    pipe = _pipes.get(_key(following, bundle))
    if pipe is None or not pipe.engines.picture_is_apart() or _reads(following, job.output):
        return None
    cancel = Cancel()
    return NextClip(pipe.engines, partial(_begun, following, bundle, cancel), cancel)


def _reads(job: BatchJob, output: Outputs) -> bool:
    """Whether a clip is made from what another one writes."""
    written = {real_path(path) for path in output.paths}
    sources = [real_path(path) for path in named_files(job.asked.request)]
    return any(written & {path, *path.parents} for path in sources)


def _say_in_turn(begun: generate_command.Begun, bundle: Bundle) -> bool:
    """Where it is the card that makes clips take turns, say so; whether it was said."""
    if bundle.manifest.backend not in APIS or begun.pipe.engines.picture_is_apart():
        return False
    if not begun.asked.run.quiet:
        print(
            "ltx2rt: note: this GPU has no room to make the next clip while one is decoded "
            "(ltx2rt doctor --memory says what it has): one after another.",
            file=sys.stderr,
        )
    return True
