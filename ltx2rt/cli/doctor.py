"""`ltx2rt doctor [BUNDLE]`: what this machine and a bundle can do."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from ltx2rt import __version__
from ltx2rt.backends.engine_checks import runs_on
from ltx2rt.backends.tensorrt_api import APIS, installed_version
from ltx2rt.bundle.host_plan import plan_host
from ltx2rt.bundle.manifest import Manifest
from ltx2rt.bundle.memory import layer_bytes, stage_weight_bytes
from ltx2rt.cli import cache
from ltx2rt.cli.common import print_json
from ltx2rt.device.cuda import driver_cuda, local_gpu
from ltx2rt.env import cache_dir
from ltx2rt.errors import OptionError, UnsupportedError
from ltx2rt.install import install_hint
from ltx2rt.machine import machine_bytes

PACKAGES = {
    "runtime": ("numpy", "onnxruntime", "tokenizers", "av", "pillow", "tqdm"),
    "build": ("onnx",),
    "export": ("torch", "onnxscript", "transformers"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle", nargs="?", type=Path, help="also check this bundle and plan its memory"
    )
    parser.add_argument(
        "--weights-dir", type=Path, help="where weight files are now, if they moved"
    )
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="plan a card of that size (24GiB), or a machine for a bundle that runs on a CPU; "
        "neither need be here",
    )
    parser.add_argument(
        "--shape", metavar="WxHxN", help="for clips of this shape only; default all of the bundle"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(options: argparse.Namespace) -> int:
    report: dict[str, Any] = {
        "ltx2rt": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_bytes": machine_bytes(),
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
        "packages": {g: {p: installed(p) for p in names} for g, names in PACKAGES.items()}
        | {
            "GPU backends": {b: installed_version(b) for b in APIS}
            | {"cuda-bindings": installed("cuda-bindings")}
        },
        "gpu": gpu(),
        "cache": cache_report(),
    }
    if options.bundle is not None:
        report["bundle"] = plan(options.bundle, options.weights_dir)
    if options.memory is not None:
        report["card"] = card_plan(options)
    elif options.shape is not None:
        raise OptionError("--shape needs --memory SIZE.")
    report["can"], report["verdict"] = verdict(report)
    if options.json:
        print_json(report)
    else:
        print(text(report))
    return 0 if report["can"] else 1


def verdict(report: dict[str, Any]) -> tuple[bool, str]:
    """Whether this machine can do what was asked about, in one sentence that says what to do."""
    bundle, card = report.get("bundle"), report["gpu"]
    if "card" in report:
        if "regions" in report["card"]:
            return True, "a card of that size can run this bundle."
        fits = report["card"]["fits"]
        return fits, f"a machine of that size {'can' if fits else 'cannot'} run this bundle."
    if bundle is None:
        where = f"on {card['name']} and on the CPU" if card["name"] else "on the CPU only"
        if report["packages"]["build"]["onnx"]:
            return True, f"this machine can build bundles, and generate {where}."
        return True, (
            f"this machine can generate {where}; to build bundles it needs {install_hint('build')}"
        )
    targets = tuple(bundle["targets"])
    if targets and not (card["name"] and runs_on(targets, card["target"])):
        has = f"has {card['name']} ({card['target']})" if card["name"] else "shows no GPU"
        return False, (
            f"this machine cannot run the bundle: its engines run on {', '.join(targets)}, and it "
            f"{has}; build it anew with --for {'this or --for ' if card['name'] else ''}cpu."
        )
    host = bundle.get("host")
    if host is not None and not host["fits"]:
        return False, f"this machine cannot run the bundle: {host['text']}"
    streamed = {"denoise"} if host is not None else set()  # its layers need not all be held
    stages = bundle["stage_weight_bytes"].items()
    worst = max((size for stage, size in stages if stage not in streamed), default=0)
    here = report["memory_bytes"]
    if not targets and here and worst > here:
        return False, (
            f"this machine cannot run the bundle: its largest stage needs {gib(worst)} of weights, "
            f"and there are {gib(here)} of memory; build it for a GPU (--for rtx4090, ...)."
        )
    return True, "this machine can run the bundle."


def installed(package: str) -> str | None:
    """The installed version of a package, or None; nothing is imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def gpu() -> dict[str, Any]:
    """The GPU that engines would run on and its driver's CUDA version, or why there is none."""
    cuda = driver_cuda()
    try:
        found = local_gpu("running TensorRT engines")
    except UnsupportedError as error:
        return {"name": None, "problem": str(error)}
    return {**found._asdict(), "driver_cuda": cuda and list(cuda)}


def cache_report() -> dict[str, Any]:
    """What the cache folder holds, or why it cannot be used."""
    try:
        return cache.describe(cache_dir())
    except OptionError as error:
        return {"folder": None, "problem": str(error)}


def plan(folder: Path, weights_dir: Path | None) -> dict[str, Any]:
    """Memory that each stage of the distilled pipeline holds at once, with `--residency stage`;
    opens (and so checks) the bundle.
    """
    from ltx2rt.bundle.bundle import open_bundle
    from ltx2rt.pipelines.clip_sizes import clips_of

    bundle = open_bundle(folder, weights_dir=weights_dir)
    manifest = bundle.manifest
    engines = [engine for entry in manifest.components.values() for engine in entry.engines]
    sizes = {n: sum(layer_bytes(e)) for n, e in manifest.components.items()}
    return {
        "id": manifest.bundle_id,
        "backend": manifest.backend,
        "precision": manifest.precision,
        "targets": sorted({t for e in engines for t in e.targets}),
        "component_weight_bytes": sizes,
        "stage_weight_bytes": stage_weight_bytes(manifest),
        "clips": clips_of(bundle),
        "host": host_report(manifest, machine_bytes()),
    }


def host_report(manifest: Manifest, memory_bytes: int) -> dict[str, Any] | None:
    """Which layers of the transformer a CPU keeps in memory, or why it cannot run them; None for a
    bundle that runs on a GPU.
    """
    if not manifest.runs_on_cpu:
        return None
    try:
        made = plan_host(manifest, memory_bytes, resident=False)
    except UnsupportedError as error:
        return {"memory_bytes": memory_bytes, "fits": False, "text": str(error)}
    return {
        "memory_bytes": memory_bytes,
        "fits": True,
        "layers": len(made.layers),
        "kept_layers": made.kept,
        "streams_layers": made.streams,
        "text": made.text(),
    }


def card_plan(options: argparse.Namespace) -> dict[str, Any]:
    """How a card would be divided; the text for people too.

    Raises:
        OptionError, UnsupportedError: see `plan_card`.
    """
    from ltx2rt.bundle.bundle import open_bundle
    from ltx2rt.bundle.card_plan import parse_memory, plan_card

    if options.bundle is None:
        raise OptionError("--memory plans for a bundle: name one.")
    manifest = open_bundle(options.bundle, weights_dir=options.weights_dir).manifest
    memory = parse_memory(options.memory)
    if (host := host_report(manifest, memory)) is not None:
        if options.shape is not None:
            raise OptionError("--shape plans the activations of a GPU; this bundle runs on a CPU.")
        return {"shape": None, **host}
    made = plan_card(options.bundle, manifest, memory, options.shape, resident=False)
    return {
        "memory_bytes": memory,
        "shape": options.shape,
        "regions": dataclasses.asdict(made.regions),
        "streams_layers": made.streams,
        "text": made.text(),
    }


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        f"ltx2rt {report['ltx2rt']} on Python {report['python']}, {report['platform']}",
        f"{report['cpus']} CPUs, {gib(report['memory_bytes'])} memory, "
        f"{gib(report['free_disk_bytes'])} free disk",
    ]
    for group, packages in report["packages"].items():
        versions = ", ".join(f"{p} {v or 'not installed'}" for p, v in packages.items())
        lines.append(f"{group}: {versions}")
    card = report["gpu"]
    if card["name"]:
        cuda = ".".join(map(str, card["driver_cuda"] or ["unknown"]))
        lines.append(
            f"GPU: {card['name']} ({card['target']}, {gib(card['memory_bytes'])}), driver for CUDA "
            f"{cuda}"
        )
    else:
        lines.append(f"GPU: none; {card['problem']}")
    cached = report["cache"]
    if cached["folder"]:
        lines.append(f"{cache.text(cached)}; `ltx2rt cache clear` empties it")
    else:
        lines.append(f"cache: none; {cached['problem']}")
    bundle = report.get("bundle")
    if bundle:
        lines.append(
            f"bundle {bundle['id']} is complete: {bundle['backend']}, {bundle['precision']}; "
            "weights held by stage:"
        )
        lines += [f"  {stage}: {gib(n)}" for stage, n in bundle["stage_weight_bytes"].items()]
        lines += clip_lines(bundle["clips"])
        targets = tuple(bundle["targets"])
        if bundle["host"] is not None:
            lines.append(f"  on this machine's CPU {bundle['host']['text']}")
        worst = max(bundle["stage_weight_bytes"].values(), default=0)
        if targets and card["name"] and worst > card["memory_bytes"]:
            lines.append(
                "  the GPU has less memory than that: layers of the transformer without room are "
                "uploaded at every step"
            )
    if card_report := report.get("card"):
        shape = f" and {card_report['shape']}" if card_report["shape"] else ""
        what = "card" if "regions" in card_report else "machine"
        lines.append(f"plan for a {what} of {gib(card_report['memory_bytes'])}{shape}:")
        lines += [f"  {line}" for line in card_report["text"].splitlines()]
    lines.append(f"verdict: {report['verdict']}")
    return "\n".join(lines)


def clip_lines(clips: dict[str, list[str]]) -> list[str]:
    """Which clips a bundle can make, for people."""
    return [
        f"  in {kind}: {', '.join(sizes) or 'none'}; and shorter and smaller ones"
        for kind, sizes in clips.items()
    ]


def gib(size: int | None) -> str:
    """Bytes for people."""
    return "unknown" if size is None else f"{size / 2**30:.2f} GiB"
