"""The `ltx2rt` command. Sub-commands are imported only when they run, so `--help` is instant."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from ltx2rt import __version__
from ltx2rt.cli.parser import Parser
from ltx2rt.cli.signals import Ended, ending_signals, exit_status
from ltx2rt.cli.streams import plain_streams
from ltx2rt.errors import Field, Ltx2rtError, OptionError

#: sub-command -> one line of help; its module is `ltx2rt.cli.<name>`
COMMANDS = {
    "demo": "make a clip from a tiny random model in the official format; downloads nothing",
    "pull": "fetch official files, or any file of the model hub, by name",
    "build": "turn official checkpoint files into a bundle",
    "generate": "generate a clip with sound from a bundle",
    "batch": "generate many clips from a file of jobs, engines loaded once",
    "decode": "decode latents that were saved, with other tiles or to another output",
    "long": "make minutes of video: a plan of segments that go on from each other",
    "join": "write clips as one, cross-faded over frames that they share",
    "serve": "serve the video API and a page",
    "client": "generate on a server, and save the clip while it is made",
    "triton": "write a model repository for Triton Inference Server",
    "pipelines": "list the pipelines: what each takes and needs",
    "inspect": "explain a checkpoint, LoRA, upsampler, Gemma folder, bundle or engine",
    "graph": "write one component of a bundle as an ONNX file for other tools",
    "lora": "merge LoRA files into one, or explain one",
    "verify": "run the parity ladder on a bundle: PyTorch against its engines",
    "cache": "show what the cache of engines and kernels holds, or clear it",
    "doctor": "report what this machine and a bundle can do",
    "completion": "print a script that completes commands and flags in a shell",
}

#: sub-command -> the module that shows its help, where that does not need the whole command
HELP = {"generate": "generate_help"}

EXIT_USER_ERROR = 2


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; only the chosen sub-command's module is imported."""
    parser = Parser(
        prog="ltx2rt",
        description="Compile the LTX-2 family of audio-video models and run them without PyTorch.",
        epilog="`ltx2rt COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"ltx2rt {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((a for a in arguments if not a.startswith("-")), None)
    if chosen is not None and chosen not in COMMANDS:
        from ltx2rt.plain_data import nearest

        parser.error(
            f"argument COMMAND: invalid choice: {chosen!r}{nearest(chosen, COMMANDS)} (choose from "
            f"{', '.join(COMMANDS)})"
        )
    if arguments and chosen is None and not {"-h", "--help", "--version"} & set(arguments):
        parser.refuse(arguments)
    before_end = arguments[: arguments.index("--")] if "--" in arguments else arguments
    helps = HELP if {"-h", "--help"} & set(before_end) else {}
    parsers = {}
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary, add_help=name != chosen)
        parsers[name] = sub
        if name == chosen:
            module = importlib.import_module(f"ltx2rt.cli.{helps.get(name, name)}")
            action = getattr(module, "HelpAction", "help")  # a command may explain itself
            sub.add_argument("-h", "--help", action=action, help="show this help and exit")
            module.add_arguments(sub)
    if not arguments:
        parser.print_help(sys.stderr)
        parser.exit(EXIT_USER_ERROR)
    options: argparse.Namespace
    options, extras = parser.parse_known_args(arguments)
    if extras:
        parsers[options.command].refuse(extras)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 2 for user errors, 130 when interrupted,
    143 and 129 when ended by SIGTERM and SIGHUP.
    """
    with plain_streams(), ending_signals():
        return _run(sys.argv[1:] if arguments is None else arguments)


def main_module() -> int:
    """`main` of `python -m`, which would find modules in the current folder, whoever put them
    there: only where the project itself lies in it, it stays.
    """
    own = str(Path(__file__).parents[2])
    with contextlib.suppress(OSError):  # a folder that was removed holds no modules
        if sys.path[0] in ("", str(Path.cwd())) and str(Path.cwd()) != own:
            del sys.path[0]
    return main()


def _run(arguments: Sequence[str]) -> int:
    command = None
    warnings.formatwarning = warning_line
    _printed.clear()
    try:
        if any("\0" in argument for argument in arguments):
            raise OptionError("an argument holds a NUL character, which no name or text may have.")
        options = parse(arguments)
        command = importlib.import_module(f"ltx2rt.cli.{options.command}")
        from ltx2rt.cli.progress import hushed

        with hushed(bool(getattr(options, "quiet", False))):
            status: int = command.run(options)
        sys.stdout.flush()  # a closed pipe shows here, not at interpreter exit
        return status
    except Ltx2rtError as error:
        spell = getattr(command, "spell", Field.own_name)  # a command may call fields by its flags
        print(f"ltx2rt: error: {error.told(spell)}", file=sys.stderr)
        print_notes(error)
        return EXIT_USER_ERROR
    except ModuleNotFoundError as error:  # a build that has to export, without PyTorch
        from ltx2rt.cli.common import missing_package

        missing = missing_package(error)
        if not isinstance(missing, Ltx2rtError):
            raise
        print(f"ltx2rt: error: {missing}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt as error:
        why = f"ended by {error.signal.name}" if isinstance(error, Ended) else "interrupted"
        print(f"\nltx2rt: {why}; partial output was removed.", file=sys.stderr)
        print_notes(error)
        return exit_status(error)
    except MemoryError as error:
        print(
            "ltx2rt: error: this takes more memory than there is: ask for a smaller or shorter "
            f"clip, or smaller tiles (--tiling). {error}",
            file=sys.stderr,
        )
        print_notes(error)
        return EXIT_USER_ERROR
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, RecursionError, UnicodeError) as error:
        print(f"ltx2rt: error: {sentence_of(error)}", file=sys.stderr)
        print_notes(error)
        return EXIT_USER_ERROR


def sentence_of(error: OSError | RecursionError | UnicodeError) -> str:
    """What the system, or input that no part of ours foresaw, made impossible."""
    if isinstance(error, RecursionError):
        return "a file, or an option, is nested too deeply."
    if isinstance(error, UnicodeError):
        return f"a name or text is not valid Unicode ({error})."
    if error.errno == errno.ENOENT and not _folder_exists():
        return "the current folder was removed; change to another one."
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.strerror}{where}: make room, or write elsewhere, and repeat the command."
    if error.errno in _NO_PLACE and isinstance(error.filename, str):
        return f"{_place_sentence(Path(error.filename))} ({error.strerror}); name another one."
    return f"{error.strerror or error}{where}."


#: a path leads nowhere, or to where nothing may be made
_NO_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS)


def _place_sentence(path: Path) -> str:
    """Why a path cannot be opened or made, up to the system's own words."""
    place = next(p for p in path.absolute().parents if os.path.lexists(p))
    if not place.is_dir():
        return f"{path} cannot be below {place}, which is no folder"
    if place != path.absolute().parent:
        return f"the folder of {path} does not exist"
    if path.name.startswith("."):  # one of ours, which only exists while something is made
        return f"nothing can be made in the folder {place}"
    return f"{path} cannot be opened, or made in the folder {place}"


def _folder_exists() -> bool:
    try:
        return Path.cwd().is_dir()
    except OSError:
        return False


#: lines of warnings of this command
_printed: set[str] = set()


def warning_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """A warning as one line, without the place in the code; one that was printed is not printed
    again (Python's own memory of them does not outlast changes of its filters).
    """
    text = f"ltx2rt: warning: {message}\n"
    if text in _printed:
        return ""
    _printed.add(text)
    return text


def print_notes(error: BaseException) -> None:
    """Print what was added to an error on its way, such as how to go on."""
    for note in getattr(error, "__notes__", ()):
        print(f"ltx2rt: {note}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main_module())
