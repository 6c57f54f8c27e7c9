"""`ltx2rt verify --bisect`: the first node at which an engine differs from ONNX Runtime."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ltx2rt.bundle.bundle import Bundle
from ltx2rt.cli.common import export_module, print_json
from ltx2rt.config import RuntimeConfig
from ltx2rt.errors import OptionError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bisect",
        metavar="COMPONENT",
        help="instead find the first node at which the engine of this component and ONNX Runtime "
        "differ (extra debug; builds an engine a question, on a GPU)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="of --bisect: for the node and its inputs",
    )
    parser.add_argument(
        "--layer", type=int, metavar="N", help="of --bisect: of a repeated component; default 0"
    )
    parser.add_argument(
        "--bound",
        type=float,
        metavar="X",
        help="of --bisect: relative RMS from which tensors differ; default: that of the precision",
    )


def check_flags(options: argparse.Namespace) -> None:
    """Refuse flags that do not go together.

    Raises:
        OptionError: says which.
    """
    if options.bisect is None:
        names = [n for n in ("output", "layer", "bound") if getattr(options, n) is not None]
        if names:
            raise OptionError(f"--{names[0]} is for --bisect COMPONENT, which was not given.")
    elif options.weights:
        raise OptionError("--bisect and --weights ask for two different things; give one.")
    elif options.output is None:
        raise OptionError("--bisect needs -o DIR, where the node and its inputs go.")
    elif options.bound is not None and not options.bound > 0:
        raise OptionError(f"--bound {options.bound:g} is not above 0.")


def run_bisect(options: argparse.Namespace, bundle: Bundle, runtime: RuntimeConfig) -> None:
    """Find it, save it and print it; `check_flags` has passed."""
    bisect, export = export_module("bisect.component"), export_module("bundle")
    layer = options.layer or 0
    bisect.check_request(bundle, options.bisect, layer, options.output)
    inputs = export.inputs_in(bundle.manifest.build, options.bundle, options.weights_dir)

    def on_probe(tensors: Sequence[str]) -> None:
        if not options.quiet:
            print(f"bisect: compare {', '.join(tensors)}", file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="ltx2rt-verify-") as overlay:
        files = export.open_inputs(inputs, bundle.manifest.components)
        found = bisect.bisect_component(
            bundle,
            export.make_components(files, inputs.loras, Path(overlay)),
            options.bisect,
            options.output,
            layer=layer,
            bound=options.bound,
            seed=options.seed,
            runtime=runtime,
            on_probe=on_probe,
        )
    if options.json:
        print_json({"bundle": bundle.bundle_id, **dataclasses.asdict(found)})
        return
    print(f"first difference: {found.op_type} {found.node!r}, its output {found.tensor!r}")
    print(
        f"relative RMS {found.rel_rms:.2e}, max abs {found.max_abs:.2e}; bound {found.bound:.0e}; "
        f"all that it is computed from agrees"
    )
    differs = "too" if not found.alone <= found.bound else "not: it is wrong beside its neighbours"
    print(f"alone ({', '.join(found.operators)}) it differs {differs} ({found.alone:.2e})")
    print(f"saved in {options.output}: {', '.join(Path(path).name for path in found.files)}")
