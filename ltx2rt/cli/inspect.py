"""`ltx2rt inspect PATH`: explain a checkpoint, LoRA, upsampler, Gemma folder or bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ltx2rt.cli.common import export_module, print_json
from ltx2rt.cli.doctor import gib, weight_bytes
from ltx2rt.manifest import FILE_NAME, read_manifest
from ltx2rt.pipelines.catalog import PIPELINES, pipeline_class


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="a safetensors file, a Gemma folder or a bundle")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(options: argparse.Namespace) -> int:
    if (options.path / FILE_NAME).exists():
        report = inspect_bundle(options.path)
        text = bundle_text(report)
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
            "parameters": weight_bytes(entry) // (4 if entry.precision == "fp32" else 2),
            "precision": entry.precision,
            "graph_bytes": (folder / entry.graph).stat().st_size
            if (folder / entry.graph).exists()
            else None,
            "inputs": {t.name: [t.dtype, *t.shape] for t in entry.inputs},
            "outputs": {t.name: [t.dtype, *t.shape] for t in entry.outputs},
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
    lines += [f"  weights {s['path']} ({gib(s['bytes'])})" for s in report["sources"]]
    lines += [f"  LoRA {x['path']} at {x['strength']:g}" for x in report["loras"]]
    for name, item in report["pipelines"].items():
        state = "runs" if item["runs"] else f"needs {', '.join(item['missing'])}"
        lines.append(f"  pipeline {name}: {state}")
    lines.append(f"  rebuild: {report['rebuild']} -o BUNDLE")
    return "\n".join(lines)
