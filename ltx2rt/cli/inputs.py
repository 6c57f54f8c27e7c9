"""The flags of `ltx2rt generate` for what single pipelines take besides the common options: one
row a flag, shown in the help under the pipelines that take it.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltx2rt.pipelines.base import Pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One flag.

    Attributes:
        name: as typed, `--audio`.
        target: field of the pipelines' `Inputs` that it sets; also its `dest`.
        pipelines: names of the pipelines that take it.
        help: one line.
        read: text (or list of texts, where it may be repeated) -> value of the field.
        options: further arguments of `add_argument`.
    """

    name: str
    target: str
    pipelines: tuple[str, ...]
    help: str
    read: Callable[[Any], Any] = lambda value: value
    options: Mapping[str, Any] = field(default_factory=dict)


FLAGS: tuple[Flag, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every flag, grouped by pipeline; all default to None: the `Inputs` know the defaults."""
    groups: dict[tuple[str, ...], Any] = {}
    for flag in FLAGS:
        if flag.pipelines not in groups:
            title = f"only for --pipeline {', '.join(flag.pipelines)}"
            groups[flag.pipelines] = parser.add_argument_group(title)
        groups[flag.pipelines].add_argument(
            flag.name, dest=flag.target, default=None, help=flag.help, **flag.options
        )


def problems_of(options: argparse.Namespace) -> list[str]:
    """Flags that this pipeline does not take."""
    return [
        f"{flag.name} is for --pipeline {' and '.join(flag.pipelines)}, not for "
        f"{options.pipeline}; leave it out or choose another pipeline"
        for flag in FLAGS
        if getattr(options, flag.target, None) is not None
        and options.pipeline not in flag.pipelines
    ]


def inputs_of(options: argparse.Namespace, pipeline: type[Pipeline], base: Any = None) -> Any:
    """The pipeline's `Inputs` from the command line, what is not given as in `base`; None for a
    pipeline without.

    Raises:
        OptionError: a value cannot be read, or the `Inputs` refuse it.
    """
    if pipeline.Inputs is None:
        return None
    names = {f.name for f in dataclasses.fields(pipeline.Inputs)}
    given = {
        flag.target: flag.read(value)
        for flag in FLAGS
        if flag.target in names and (value := getattr(options, flag.target, None)) is not None
    }
    return pipeline.Inputs(**given) if base is None else dataclasses.replace(base, **given)
