"""`ltx2rt graph`: one component of a bundle as an ONNX file for other tools."""

from __future__ import annotations

import argparse
from pathlib import Path

from ltx2rt.cli.common import export_module, print_json
from ltx2rt.errors import OptionError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path)
    parser.add_argument("component", help="e.g. transformer_block; `ltx2rt inspect` lists them")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.onnx")
    parser.add_argument(
        "--weights",
        action="store_true",
        help="with the weights in a file beside it (FILE.onnx.data); else they are inputs",
    )
    parser.add_argument(
        "--layer", type=int, default=0, metavar="N", help="whose weights; default %(default)s"
    )
    parser.add_argument("--weights-dir", type=Path, help="where weight files are, if they moved")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace) -> int:
    if options.output.suffix != ".onnx":
        raise OptionError(f"{options.output} does not end in .onnx: {options.output}.onnx does.")
    if not options.output.absolute().parent.is_dir():
        raise OptionError(f"the folder of {options.output} does not exist; create it first.")
    from ltx2rt.bundle.bundle import open_bundle

    bundle = open_bundle(options.bundle, weights_dir=options.weights_dir)
    files = export_module("graph_file").write_graph(
        bundle, options.component, options.output, weights=options.weights, layer=options.layer
    )
    if options.json:
        print_json({"files": [str(path) for path in files]})
    else:
        print(", ".join(str(path) for path in files))
    return 0
