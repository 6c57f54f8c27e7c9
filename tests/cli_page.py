"""`python -m tests.cli_page` writes `docs/cli.md`: every command and flag, from argparse."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path

from ltx2rt.cli.__main__ import COMMANDS

PAGE = Path(__file__).parents[1] / "docs/cli.md"

HEAD = """# Every flag

What `ltx2rt COMMAND --help` says, from argparse by `python -m tests.cli_page`.
What the commands are for: [commands](commands.md).
"""


def page() -> str:
    lines = [HEAD]
    for name, summary in COMMANDS.items():
        parser = argparse.ArgumentParser(prog=f"ltx2rt {name}", add_help=False)
        importlib.import_module(f"ltx2rt.cli.{name}").add_arguments(parser)
        lines += [f"## `ltx2rt {name}`", "", f"{summary[0].upper()}{summary[1:]}.", ""]
        lines += tables(parser)
    return "\n".join(lines)


def tables(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A table a group of flags; then those of sub-commands."""
    first, second, *others = parser._action_groups  # arguments and flags without a group
    actions = [("", [*first._group_actions, *second._group_actions])]
    actions += [(str(group.title), group._group_actions) for group in others]
    for title, found in actions:
        rows = [text for a in found if a.help != argparse.SUPPRESS and (text := row(a))]
        if not rows:
            continue
        if title:
            yield f"**{title[0].upper()}{title[1:]}**\n"
        yield "| flag | what |"
        yield "|---|---|"
        yield from rows
        yield ""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield f"### `{parser.prog} {name}`\n"
                yield from tables(sub)


def row(action: argparse.Action) -> str:
    if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
        return ""
    values = action.metavar
    if values is None and action.choices is not None:
        values = "{" + ",".join(map(str, action.choices)) + "}"
    if values is None and action.nargs != 0:
        values = action.dest.upper()
    shown = " ".join(values) if isinstance(values, tuple) else values or ""
    if action.option_strings:
        shown = f"{', '.join(action.option_strings)} {shown}".strip()
    text = (action.help or "") % {**vars(action), "prog": "ltx2rt"}
    plain = cell(text).replace("[", r"\[")  # no link
    return f"| `{cell(shown)}` | {plain}{' **required**' if action.required else ''} |"


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
