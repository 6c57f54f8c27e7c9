"""`ltx2rt generate --help`: all flags, or those of one pipeline, without importing any of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ltx2rt.cli.flag_table import read_table

#: names, group and the arguments of `add_argument` of one flag
ShownFlag = tuple[Sequence[str], str, Mapping[str, Any]]


class HelpAction(argparse.Action):
    """`--help`; after `--pipeline NAME` only what that pipeline takes."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        name = namespace.pipeline
        if name is not None:
            about = next(r["summary"] for r in read_table()["pipelines"] if r["name"] == name)
            parser = argparse.ArgumentParser(prog=parser.prog, description=about)
            add_flags(parser, known_flags(name))
        parser.print_help()
        parser.exit()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that the command takes, as text."""
    add_flags(parser, known_flags())


def known_flags(pipeline: str | None = None) -> Iterable[ShownFlag]:
    """All flags, or those that mean something to a pipeline."""
    for flag in read_table()["flags"]:
        if pipeline is None or pipeline in flag.get("only_for", [pipeline]):
            arguments = flag["arguments"]
            if isinstance(arguments.get("metavar"), list):
                arguments["metavar"] = tuple(arguments["metavar"])
            yield flag["names"], flag["group"], arguments


def add_flags(parser: argparse.ArgumentParser, flags: Iterable[ShownFlag]) -> None:
    """These flags, in their groups, after what is no field of a request."""
    parser.usage = "%(prog)s BUNDLE [--pipeline NAME] --prompt TEXT -o FILE [...]"
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--job",
        type=Path,
        metavar="FILE",
        help="flags from a .json or .toml file, or repeat what made an .mp4, .wav, .png, ...; "
        "flags given here win",
    )
    parser.add_argument(
        "--dump-job", type=Path, metavar="FILE", help="write these flags as a job, and stop"
    )
    parser.add_argument(
        "--var",
        action="append",
        metavar="NAME=VALUE",
        help="a variable of --job: the job's ${NAME} is VALUE (repeatable)",
    )
    groups: dict[str, Any] = {"": parser}
    for names, group, arguments in flags:
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        groups[group].add_argument(*names, **arguments)
