"""`ltx2rt demo -o demo.mp4`: the whole way, from checkpoint files to a clip, on any machine."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from ltx2rt.cli import build as build_command
from ltx2rt.cli.common import export_module
from ltx2rt.cli.generate import make_and_say, spell
from ltx2rt.cli.parser import Parser
from ltx2rt.cli.progress import add_progress_flags
from ltx2rt.cli.requests import asked_of
from ltx2rt.errors import OptionError
from ltx2rt.latents.shapes import check_generation_size
from ltx2rt.partial import hold_folder, remove_unheld_folders

__all__ = ["add_arguments", "run", "spell"]

#: of the folder that a demo works in; killed ones leave it, and the next removes it
PREFIX = "ltx2rt-demo-"

PROMPT = "Soft lights drift over a quiet lake at dusk while a distant bell rings."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("demo.mp4"), help="default %(default)s"
    )
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--num-frames", type=int, default=49)
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="keep the model files and the bundle in this new folder",
    )
    add_progress_flags(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace) -> int:
    if options.keep is not None and options.keep.exists():
        raise OptionError(f"{options.keep} exists; name a new folder for --keep.")
    asked = asked_of(given_of(options))  # refuse a bad request before any work
    check_generation_size(options.height, options.width, options.num_frames)
    from ltx2rt.media.files import check_output_path

    check_output_path(options.output, "video")
    remove_unheld_folders(Path(tempfile.gettempdir()), PREFIX)
    folder = options.keep or Path(tempfile.mkdtemp(prefix=PREFIX))
    folder.mkdir(parents=True, exist_ok=True)
    lock = hold_folder(folder)
    try:
        files = export_module("demo").write_demo_model(folder / "model")
        bundle = folder / "demo.bundle"
        arguments = [
            *(f"--{name.replace('_', '-')}={path}" for name, path in files.items()),
            f"--output={bundle}",
            *(["--quiet"] if options.quiet else []),
            *([f"--progress={options.progress}"] if options.progress else []),
        ]
        parser = Parser()
        build_command.add_arguments(parser)
        built = parser.parse_args(arguments)
        build_command.build(build_command.inputs_of(built), bundle, built)
        status = make_and_say(asked, bundle)
        if not options.quiet and options.progress != "json":
            print(_what_it_is(options.keep and bundle), file=sys.stderr)
        return status
    finally:
        if options.keep is None or not (folder / "demo.bundle").exists():
            shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _what_it_is(bundle: Path | None) -> str:
    """What somebody sees who looks at the clip, and what comes next."""
    said = (
        "ltx2rt: note: a model of random weights makes clouds of colour and noise; `ltx2rt pull` "
        "lists the real ones."
    )
    if bundle is None:
        return said
    size = "--size 384x256 --num-frames 49"
    return f'{said} Try more with this one: ltx2rt generate {bundle} -p "..." {size} -o out.mp4'


def given_of(options: argparse.Namespace) -> dict[str, Any]:
    """The demo's request as flags of `ltx2rt generate` hold it."""
    given = {name: getattr(options, name) for name in ("prompt", "height", "width", "num_frames")}
    switches = {name: True for name in ("quiet", "json") if getattr(options, name)}
    if options.progress is not None:
        given["progress"] = options.progress
    return {**given, "seed": [options.seed], "output": str(options.output), **switches}
