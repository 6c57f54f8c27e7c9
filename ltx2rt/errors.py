"""The exception family: everything a user can cause is an `Ltx2rtError`; `InternalError` is our
bug.

A message says what was asked, what was found, what is allowed and how to proceed, in one sentence.
"""

from __future__ import annotations

from collections.abc import Sequence


class Ltx2rtError(Exception):
    """Base of all errors a user can cause; the command line prints it and exits with 2."""


class BundleError(Ltx2rtError):
    """A bundle is missing, corrupt, or was built for another backend, version or GPU."""


class CheckpointError(Ltx2rtError):
    """A checkpoint, LoRA or tokenizer file is missing, truncated, corrupt or of another model."""


class ShapeError(Ltx2rtError, ValueError):
    """A size, frame count or tensor shape lies outside what the model or the engine takes."""


class OptionError(Ltx2rtError, ValueError):
    """An option other than a shape has a value that is not allowed."""


class UnsupportedError(Ltx2rtError):
    """The GPU, precision, configuration value or model version is not supported."""


class EngineError(Ltx2rtError):
    """A backend failed while it loaded or ran an engine; the message names component and
    backend.
    """


class MediaError(Ltx2rtError):
    """An image, video or audio file could not be read or written."""


class EnhanceError(Ltx2rtError):
    """The prompt enhancer failed, could not be reached, or gave nothing usable."""


class InternalError(Exception):
    """An invariant of ours is broken: please report it. Never raised for bad input."""


def join_problems(what: str, problems: Sequence[str]) -> str:
    """Put all problems found into one message: a sentence for one, a list for several."""
    if len(problems) == 1:
        return f"{what}: {problems[0]}"
    return f"{what} ({len(problems)} problems):\n" + "\n".join(f"  - {p}" for p in problems)
