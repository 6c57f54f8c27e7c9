"""`ltx2rt join A.mp4 B.mp4 -o out.mp4`: clips as one, cross-faded over frames that they share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ltx2rt.cli.common import print_json
from ltx2rt.cli.fields import all_flags, spell
from ltx2rt.cli.generate import given_in
from ltx2rt.cli.outputs import Outputs
from ltx2rt.errors import OptionError
from ltx2rt.plain_data import from_plain

__all__ = ["add_arguments", "run", "spell"]

FLAGS = ("output", "stream", "codec", "quality", "preset", "encoder")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("clips", type=Path, nargs="+", metavar="CLIP", help="two or more videos")
    parser.add_argument(
        "--overlap",
        type=int,
        default=0,
        metavar="N",
        help="the last N frames of a clip and the first N of the next show the same: cross-fade "
        "picture and sound over them; default 0, a cut",
    )
    for key in FLAGS:
        flag = all_flags()[key]
        parser.add_argument(*flag.names, **flag.arguments())
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace) -> int:
    from ltx2rt.media.files import check_output_path
    from ltx2rt.results.joined import join_clips

    flags = {key: all_flags()[key].read(value) for key, value in given_in(options).items()}
    data = {all_flags()[k].places[0].partition(".")[2]: v for k, v in flags.items() if k in FLAGS}
    output = from_plain(Outputs, data, "the output")
    if output.clip is None:
        raise OptionError("nothing is to be written: name an output (-o out.mp4).")
    if not output.is_stdout:
        check_output_path(output.clip, "video")
        if output.clip.resolve() in {path.resolve() for path in options.clips}:
            raise OptionError(f"'{output.clip}' is one of the clips; choose another name.")
    frames = join_clips(
        options.clips,
        sys.stdout.buffer if output.is_stdout else output.clip,
        overlap=options.overlap,
        encoding=output.encoding,
        fragmented=output.stream,
    )
    stream = sys.stderr if output.is_stdout else sys.stdout
    if options.json:
        print_json({"output": str(output.clip), "num_frames": frames}, stream)
    else:
        print(f"{output.clip}: {frames} frames of {len(options.clips)} clips", file=stream)
    return 0
