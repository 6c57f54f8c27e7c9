"""`ltx2rt completion SHELL`: a script that completes sub-commands, flags and their values."""

from __future__ import annotations

import argparse
import importlib
import shlex
from collections.abc import Mapping, Sequence

from ltx2rt.cli.parser import Parser

SHELLS = ("bash", "zsh", "fish")

_BASH = """\
_ltx2rt() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands}" -- "$current"))
    return
  fi
  case "${{COMP_WORDS[1]}} $previous" in
{values}
  esac
  case "$current" in
    -*) ;;
    *) COMPREPLY=($(compgen -f -- "$current")); return ;;
  esac
  case "${{COMP_WORDS[1]}}" in
{flags}
  esac
}}
complete -o filenames -F _ltx2rt ltx2rt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "shell", choices=SHELLS, help='e.g. in ~/.bashrc: eval "$(ltx2rt completion bash)"'
    )


def run(options: argparse.Namespace) -> int:
    print(script(options.shell), end="")
    return 0


def script(shell: str) -> str:
    """The script for a shell."""
    from ltx2rt.cli.__main__ import COMMANDS

    flags = {name: command_flags(name) for name in COMMANDS}
    if shell == "fish":
        return _fish(COMMANDS, flags)
    head = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return head + _bash(flags)


def command_flags(command: str) -> dict[str, tuple[str, ...]]:
    """Flag -> the values that it takes; empty where those are free."""
    from ltx2rt.cli.__main__ import HELP

    parser = Parser(add_help=True)
    module = importlib.import_module(f"ltx2rt.cli.{HELP.get(command, command)}")
    module.add_arguments(parser)
    return {
        flag: tuple(map(str, action.choices or ()))
        for action in parser._actions
        for flag in action.option_strings
    }


def _bash(flags: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    reply = 'COMPREPLY=($(compgen -W {words} -- "$current"));'
    values = [
        f'    "{command} {flag}") {reply.format(words=shlex.quote(" ".join(allowed)))} return ;;'
        for command, found in flags.items()
        for flag, allowed in found.items()
        if allowed
    ]
    names = [
        f"    {command}) {reply.format(words=shlex.quote(' '.join(found)))} ;;"
        for command, found in flags.items()
    ]
    return _BASH.format(commands=" ".join(flags), values="\n".join(values), flags="\n".join(names))


def _fish(commands: Mapping[str, str], flags: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    lines = [
        f"complete -c ltx2rt -n __fish_use_subcommand -a {name} -d {shlex.quote(summary)}"
        for name, summary in commands.items()
    ]
    for command, found in flags.items():
        for flag, allowed in found.items():
            kind = "-l" if flag.startswith("--") else "-s"
            line = (
                f"complete -c ltx2rt -n '__fish_seen_subcommand_from {command}' "
                f"{kind} {flag.lstrip('-')}"
            )
            lines.append(line + (f" -xa {shlex.quote(' '.join(allowed))}" if allowed else ""))
    return "\n".join(lines) + "\n"
