"""`ltx2rt inspect PATH`: explain a checkpoint, LoRA, upsampler, Gemma folder or bundle."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

from ltx2rt.bundle.buckets import Bucket
from ltx2rt.bundle.bundle import Bundle
from ltx2rt.bundle.engine_file import file_sha256, kernels_in, read_info
from ltx2rt.bundle.engine_program import launches_of
from ltx2rt.bundle.manifest import FILE_NAME, read_manifest
from ltx2rt.cli.common import export_module, print_json
from ltx2rt.cli.doctor import clip_lines, gib
from ltx2rt.errors import BundleError
from ltx2rt.hub.reference import local_path
from ltx2rt.pipelines.base import pipeline_class
from ltx2rt.pipelines.catalog import PIPELINES
from ltx2rt.pipelines.clip_sizes import clips_of
from ltx2rt.weights.precision import float_precision


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=Path, help="a safetensors file, a Gemma folder, a bundle or an engine in one"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(options: argparse.Namespace) -> int:
    options.path = local_path(options.path)
    if (options.path / FILE_NAME).exists():
        report = inspect_bundle(options.path)
        text = bundle_text(report)
    elif options.path.suffix == ".engine":
        report = inspect_engine(options.path)
        text = engine_text(report)
    else:
        inspect = export_module("inspect")
        report = inspect.inspect_path(options.path)
        text = inspect.format_inspection(report)
    if options.json:
        print_json(report)
    else:
        print(text)
    return 0


def inspect_bundle(folder: Path) -> dict[str, Any]:
    """What a bundle holds; weight files are not opened."""
    manifest = read_manifest(folder)
    components = {
        name: {
            "layers": len(entry.layers),
            "parameters": sum(math.prod(r.shape) for w in entry.layers for r in w.values()),
            "precision": entry.precision,
            "graph_bytes": (folder / entry.graph).stat().st_size
            if (folder / entry.graph).exists()
            else None,
            "inputs": {t.name: [t.dtype, *t.shape] for t in entry.inputs},
            "outputs": {t.name: [t.dtype, *t.shape] for t in entry.outputs},
            "engines": [
                {
                    "file": e.file,
                    "bytes": e.bytes,
                    "backend": f"{e.backend} {e.backend_version}",
                    "targets": list(e.targets),
                    "precision": e.precision,
                    "weights": e.weights,
                    "buckets": [b.text() for b in e.buckets],
                }
                for e in entry.engines
            ],
        }
        for name, entry in manifest.components.items()
    }
    missing = {
        name: pipeline_class(name).missing(lambda *names: all(n in components for n in names))
        for name in PIPELINES
    }
    return {
        "kind": "bundle",
        "id": manifest.bundle_id,
        "generation": manifest.model.generation,
        "version": manifest.model.version,
        "backend": manifest.backend,
        "precision": manifest.precision,
        "created_by": manifest.created_by,
        "sources": [{"path": s.path, "bytes": s.bytes} for s in manifest.sources],
        "loras": [{"path": x.path, "strength": x.strength} for x in manifest.build.loras],
        "components": components,
        "pipelines": {
            name: {"runs": not wants, "missing": wants} for name, wants in missing.items()
        },
        "clips": clips_of(Bundle(folder, manifest, ())),
        "rebuild": manifest.command(),
    }


def bundle_text(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        f"bundle {report['id']}: {report['generation']} {report['version']}, "
        f"{report['backend']}, {report['precision']}, made by {report['created_by']}"
    ]
    for name, item in report["components"].items():
        layers = f" in {item['layers']} layers" if item["layers"] > 1 else ""
        lines.append(f"  {name:20} {item['parameters']:>14,} parameters{layers}")
        for engine in item["engines"]:
            lines.append(
                f"    {engine['backend']} for {', '.join(engine['targets'])}, "
                f"{engine['precision']}, {engine['bytes'] / 1e6:.1f} MB; buckets:"
            )
            lines += [f"      {bucket}" for bucket in engine["buckets"]]
    sizes: dict[str, int] = {}
    for source in report["sources"]:
        place = Path(source["path"])
        if not place.is_absolute() and place.parent.name != "weights":
            place = place.parent  # one line for the layers of a component
        sizes[str(place)] = sizes.get(str(place), 0) + source["bytes"]
    lines += [f"  weights {place} ({gib(size)})" for place, size in sizes.items()]
    lines += [f"  LoRA {x['path']} at {x['strength']:g}" for x in report["loras"]]
    for name, item in report["pipelines"].items():
        state = "runs" if item["runs"] else f"needs {', '.join(item['missing'])}"
        lines.append(f"  pipeline {name}: {state}")
    lines += clip_lines(report["clips"])
    lines.append(f"  rebuild: {report['rebuild']} -o BUNDLE")
    return "\n".join(lines)


def inspect_engine(path: Path) -> dict[str, Any]:
    """What an engine file and the JSON beside it say; no GPU and no library is needed.

    Raises:
        BundleError: there is no JSON beside it, or the two do not belong together.
    """
    info = read_info(path)
    if not path.is_file() or file_sha256(path) != info.engine_sha256:
        raise BundleError(
            f"{path} is not the engine that {path.name}.json describes; copy both, or build the "
            "engine again."
        )
    kernels = kernels_in(path, info.backend, info.backend_version)
    attentions = info.attentions * len(info.buckets)
    findings = []
    if kernels.known:
        fuses = info.precision != float_precision("float32").name  # in float32 nothing is fused
        if fuses and kernels.fused_attentions < attentions:
            findings.append(
                f"{attentions - kernels.fused_attentions} of {attentions} attentions are not fused"
            )
        if fuses and kernels.unfused_softmax:
            findings.append(f"{kernels.unfused_softmax} softmax kernels write attention logits out")
        if kernels.stray_transposes:
            findings.append(f"{kernels.stray_transposes} kernels only transpose")
    launches = launches_of(path, info.backend, info.backend_version, len(info.buckets))
    return {
        "kind": "engine",
        **dataclasses.asdict(info),
        "buckets": [dataclasses.asdict(b) for b in info.buckets],
        "attentions": attentions,
        "kernels": dataclasses.asdict(kernels),
        "launches": launches and {"total": launches.total, **dataclasses.asdict(launches)},
        "program": launches and launches.text(),
        "findings": findings,
    }


def engine_text(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        f"engine of {report['component']}: {report['backend']} {report['backend_version']}, "
        f"{report['precision']}, for {', '.join(report['targets'])}, "
        f"{report['engine_bytes'] / 1e6:.1f} MB, weights as {report['weights']}",
        f"  built in {report['build_s']:.1f} s with {gib(report['peak_memory_bytes'])}",
    ]
    lines += [f"  bucket {Bucket(**b).text()}" for b in report["buckets"]]
    for way in ("inputs", "outputs"):
        lines += [
            f"  {way[:-1]} {t['name']} {t['dtype']} [{', '.join(map(str, t['shape']))}]"
            for t in report[way]
        ]
    lines.append(f"  {len(report['weight_inputs'])} weights are bound by name")
    kernels = report["kernels"]
    if kernels["known"]:
        lines.append(
            f"  {kernels['kernels']} kernels; attentions fused: {kernels['fused_attentions']} of "
            f"{report['attentions']} over all buckets"
        )
        if report["program"] is not None:
            lines.append(f"  {report['program']}")
        lines += [f"  warning: {text}" for text in report["findings"]]
    else:
        lines.append("  kernels: not known for this backend and version")
    return "\n".join(lines)
