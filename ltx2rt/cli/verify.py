"""`ltx2rt verify BUNDLE`: the parity ladder, PyTorch against the bundle's engines."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

from ltx2rt.bundle.bundle import Bundle, open_bundle
from ltx2rt.bundle.weight_digests import digest_weights
from ltx2rt.cli import verify_bisect
from ltx2rt.cli.common import export_module, print_json
from ltx2rt.cli.fields import all_flags
from ltx2rt.cli.progress import ProgressPrinter, add_progress_flags, printer_of
from ltx2rt.config import RuntimeConfig
from ltx2rt.progress import Job

EXIT_FAILED = 1
#: flags of `ltx2rt generate` that let engines run code
TRUSTING = ("plugin_modules", "engine_host_code")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--weights-dir", type=Path, help="where weight files are now, if they moved"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random inputs")
    parser.add_argument(
        "--weights",
        action="store_true",
        help="instead read all weight files and compare their digests with those noted in the "
        "bundle; the first time they are noted",
    )
    verify_bisect.add_arguments(parser)
    for key in TRUSTING:
        flag = all_flags()[key]
        parser.add_argument(flag.name, **flag.arguments())
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_progress_flags(parser)


def run(options: argparse.Namespace) -> int:
    verify_bisect.check_flags(options)
    bundle = open_bundle(options.bundle, weights_dir=options.weights_dir)
    if options.weights:
        return verify_weights(bundle, printer_of(options), json=options.json)
    runtime = RuntimeConfig(
        plugin_modules=tuple(options.plugin_modules or ()),
        engine_host_code=bool(options.engine_host_code),
    )
    if options.bisect is not None:
        verify_bisect.run_bisect(options, bundle, runtime)
        return EXIT_FAILED
    verify, export = export_module("verify"), export_module("bundle")
    inputs = export.inputs_in(bundle.manifest.build, options.bundle, options.weights_dir)
    rungs = []
    with tempfile.TemporaryDirectory(prefix="ltx2rt-verify-") as overlay:
        files = export.open_inputs(inputs, bundle.manifest.components)
        components = export.make_components(files, inputs.loras, Path(overlay))
        for rung in verify.verify_bundle(bundle, components, options.seed, runtime):
            rungs.append(rung)
            if not options.quiet:
                state = "agrees" if rung.passed else "FAILS"
                print(f"verify: {rung.component} {rung.output} {state}", file=sys.stderr)
    passed = all(r.passed for r in rungs)
    if options.json:
        print_json(
            {
                "bundle": bundle.bundle_id,
                "passed": passed,
                "rungs": [{**dataclasses.asdict(r), "passed": r.passed} for r in rungs],
            }
        )
    else:
        print(f"{'component':20} {'layer':>5} {'output':26} {'max abs':>9} {'rel RMS':>9}    bound")
        for r in rungs:
            layer = "" if r.layer is None else str(r.layer)
            state = "" if r.passed else "  FAIL"
            print(
                f"{r.component:20} {layer:>5} {r.output:26} {r.max_abs:9.2e} {r.rel_rms:9.2e} "
                f"{r.bound:8.0e}{state}"
            )
        print(f"{sum(r.passed for r in rungs)} of {len(rungs)} outputs agree with the reference")
    return 0 if passed else EXIT_FAILED


def verify_weights(bundle: Bundle, printer: ProgressPrinter, *, json: bool) -> int:
    """Whether every byte of the weight files is what it was when that was first asked; 1 if not."""
    job = Job(printer)
    found = list(
        digest_weights(
            bundle.folder,
            bundle.weight_files(),
            lambda done, total: job.report("read weights", done, total),
        )
    )
    passed = all(weights.passed for weights in found)
    if json:
        files = [{**dataclasses.asdict(w), "path": str(w.path)} for w in found]
        print_json({"bundle": bundle.bundle_id, "passed": passed, "weights": files})
    else:
        for weights in found:
            print(f"{weights.sha256:64}  {weights.state:10}  {weights.path}")
    return 0 if passed else EXIT_FAILED
