"""The exception family: everything a user can cause is an `Ltx2rtError`; `InternalError` is our
bug.

A message says what was asked, what was found, what is allowed and how to proceed, in one sentence.
An error holds its problems one by one: what catches it adds them to its own, and only the edge that
shows an error joins them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Field(str):
    """A field in a message, by as much of its place as tells it from others (`seed`,
    `guidance.video.cfg_scale`); shown is its own name.
    """

    def own_name(self) -> str:
        """The last part."""
        return self.rpartition(".")[2]


class Problem(str):
    """What is wrong, with the fields in it marked: `Problem(Field("seed"), "=1.5 is not whole")`.

    It is text that names fields; an edge that calls them otherwise, as the command line calls them
    by its flags, asks for `spelled`.
    """

    parts: tuple[str, ...]

    def __new__(cls, *parts: str) -> Problem:
        """Put it together from text and `Field`s; a `Problem` among them keeps its fields."""
        flat = [inner for p in parts for inner in (p.parts if isinstance(p, Problem) else (p,))]
        text = "".join(p.own_name() if isinstance(p, Field) else p for p in flat)
        problem = super().__new__(cls, text)
        problem.parts = tuple(flat)
        return problem

    def inside(self, place: str) -> Problem:
        """The same of a dataclass that lies at `place` in another one."""
        if not place:
            return self
        return Problem(*(Field(f"{place}.{p}") if isinstance(p, Field) else p for p in self.parts))

    def spelled(self, spell: Callable[[Field], str]) -> str:
        """The text, with other names for its fields."""
        return "".join(spell(p) if isinstance(p, Field) else p for p in self.parts)


class Ltx2rtError(Exception):
    """Base of all errors a user can cause; the command line prints it and exits with 2.

    Args:
        what: the whole message, or what `problems` are about.
        problems: everything that is wrong; each can be understood without `what`.
        advice: how to proceed, a line below the problems.

    Attributes:
        subject: what the problems are about; empty if the message says it itself.
        problems: one text or `Problem` each.
    """

    def __init__(self, what: str = "", problems: Sequence[str] = (), advice: str = "") -> None:
        super().__init__(what, tuple(problems), advice)
        self.subject = what if problems else ""
        self.problems = tuple(problems) or (what,)
        self.advice = advice

    def __str__(self) -> str:
        return self.told(Field.own_name)

    def told(self, spell: Callable[[Field], str]) -> str:
        """The message: a sentence for one problem, a list for several.

        Args:
            spell: the name of a field.
        """
        *texts, advice = (
            p.spelled(spell) if isinstance(p, Problem) else p for p in (*self.problems, self.advice)
        )
        if len(texts) > 1:
            lines = "".join(f"\n  - {text}" for text in texts)
            text = f"{self.subject} ({len(texts)} problems):{lines}"
        else:
            text = f"{self.subject}: {texts[0]}" if self.subject else texts[0]
        return f"{text}\n{advice}" if advice else text


def shortened(problems: Sequence[str], most: int = 10) -> list[str]:
    """The first of many problems, and how many more there are."""
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return [*problems[:most], *more]


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


class DeviceLostError(EngineError):
    """A GPU cannot be used by this process any more, whatever it is asked for; a new one may."""


class MediaError(Ltx2rtError):
    """An image, video or audio file could not be read or written."""


class EnhanceError(Ltx2rtError):
    """The prompt enhancer failed, could not be reached, or gave nothing usable."""


class InternalError(Exception):
    """An invariant of ours is broken: please report it. Never raised for bad input."""
