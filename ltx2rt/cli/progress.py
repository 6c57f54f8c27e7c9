"""Progress on standard error: a bar on a terminal, lines in a log, JSON for programs."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import logging
import sys
import threading
import time
import typing
import warnings
from collections.abc import Iterator
from typing import Any

from ltx2rt.cli.run_options import Form, RunOptions
from ltx2rt.docstrings import attribute_texts
from ltx2rt.progress import Progress

#: of lines of one stage; a bar is drawn anew more often
LINE_S, BAR_S = 5.0, 0.1


class ProgressPrinter:
    """Prints progress to standard error.

    Args:
        quiet: print nothing.
        form: None: `bar` on a terminal, `lines` elsewhere. `lines` are one a stage and one every
            `LINE_S` seconds, `json` one document a report, with the fields of `Progress`.
    """

    def __init__(self, *, quiet: bool = False, form: Form | None = None) -> None:
        self._quiet = quiet
        self._form = form or ("bar" if sys.stderr.isatty() else "lines")
        self._bar: Any = None
        self._last = 0.0

    def __call__(self, progress: Progress) -> None:
        if self._quiet:
            return
        if self._form == "json":
            print(json.dumps({"event": "progress"} | dataclasses.asdict(progress)), file=sys.stderr)
            return
        done = progress.step >= progress.total
        if self._form == "bar":
            self._draw(progress, done=done)
        elif done or time.monotonic() - self._last > LINE_S:
            print(_line(progress, done=done), file=sys.stderr, flush=True)
            self._last = time.monotonic()

    def _draw(self, progress: Progress, *, done: bool) -> None:
        bar = self._bar
        if bar is None or bar.desc != progress.stage:
            if bar is not None:
                bar.close()
            bar = self._bar = _new_bar(progress)
        elif not done and time.monotonic() - self._last < BAR_S:
            return
        self._last = time.monotonic()
        bar.total, bar.n = progress.total, progress.step
        bar.set_postfix_str(_rest(progress, done=done), refresh=False)
        bar.refresh()
        if done:
            bar.close()
            self._bar = None


@functools.cache
def _bar_class() -> Any:
    """One for all bars, so that those of two clips have a line each."""
    from tqdm import tqdm  # where nobody looks at a bar, none is loaded

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no thread that watches it

    Bar.set_lock(threading.RLock())
    return Bar


def _new_bar(progress: Progress) -> Any:
    """A bar of a stage; the estimate of the rest is ours, which knows what steps cost."""
    in_bytes = "(bytes)" in progress.stage
    bar = _bar_class()(
        total=progress.total,
        file=sys.stderr,
        dynamic_ncols=True,
        unit="B" if in_bytes else "",
        unit_scale=in_bytes,
        unit_divisor=1024 if in_bytes else 1000,
        bar_format="{desc}: {percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
    )
    bar.set_description_str(progress.stage, refresh=False)
    return bar


def _rest(progress: Progress, *, done: bool) -> str:
    """What a bar says besides: how long it still takes, and the detail."""
    from tqdm import tqdm

    left = "" if progress.eta_s is None or done else f"{tqdm.format_interval(progress.eta_s)} left"
    rest = progress.clip_eta_s
    clip = "" if rest is None else f"clip in {tqdm.format_interval(rest)}"
    return ", ".join(part for part in (left, clip, progress.detail) if part)


def _line(progress: Progress, *, done: bool) -> str:
    text = f"{progress.stage}: {progress.step}/{progress.total}  {progress.elapsed_s:.1f} s"
    if progress.detail:
        text += f"  {progress.detail}"
    if progress.eta_s is not None and not done:
        text += f", {progress.eta_s:.0f} s left"
    if progress.clip_eta_s is not None:
        text += f", clip in {progress.clip_eta_s:.0f} s"
    return text


def add_progress_flags(parser: argparse.ArgumentParser) -> None:
    """`--quiet` and `--progress`, as `ltx2rt generate` has them."""
    texts = attribute_texts(RunOptions)
    parser.add_argument("--quiet", action="store_true", help=texts["quiet"])
    parser.add_argument("--progress", choices=typing.get_args(Form), help=texts["progress"])


def printer_of(options: argparse.Namespace) -> ProgressPrinter:
    """What prints progress as the flags of a command say."""
    return ProgressPrinter(quiet=bool(options.quiet), form=options.progress)


@contextlib.contextmanager
def hushed(quiet: bool) -> Iterator[None]:
    """With `quiet`, warnings are not printed inside: only errors reach standard error."""
    if not quiet:
        yield
        return
    logger = logging.getLogger("ltx2rt")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
