"""`ltx2rt build --dry-run`: what would be built, what it takes, and the card it fits. Reads headers
only.
"""

from __future__ import annotations

import math
from typing import Any

from ltx2rt.backends.tensorrt_api import APIS, installed_version
from ltx2rt.buckets import Bucket
from ltx2rt.cli.doctor import STAGES
from ltx2rt.manifest import BuildInputs
from ltx2rt.targets import fitting_card
from ltx2rt.weights import PRECISIONS
from ltx2rt_export.build_config import BuildConfig
from ltx2rt_export.bundle import chosen_components, model_info
from ltx2rt_export.catalog import rows_of
from ltx2rt_export.checkpoint import ModelFiles
from ltx2rt_export.component import Component
from ltx2rt_export.engines.activations import activation_bytes
from ltx2rt_export.engines.profiles import component_buckets
from ltx2rt_export.engines.stage import profile_request
from ltx2rt_export.quantize import component_precision
from ltx2rt_export.quantize.schemes import SCHEMES

#: bytes of one element by dtype of the weights
WIDTHS = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}

#: bytes of one quantised element, scales included
QUANTIZED_WIDTHS = {"fp8": 1.0, "nvfp4": 0.5625, "int8-wo": 1.0, "int4-wo": 0.53}

#: an engine's size for one bucket where its weights are inputs: measured, TensorRT-RTX 1.7
ENGINE_BYTES_PER_BUCKET = 9e6


def plan_build(files: ModelFiles, inputs: BuildInputs, config: BuildConfig) -> dict[str, Any]:
    """What a build would do.

    Raises:
        OptionError: LoRAs or components that do not fit.
        ShapeError: a shape is not one of this model's.
    """
    made = [row.make(files) for row in rows_of(files)]
    options = {c.name: c.options for c in made}
    request = profile_request(config, model_info(files, options), options)
    parts = {}
    for component in chosen_components(made, config.components):
        buckets: tuple[Bucket, ...] = ()
        activations = 0
        precision = component_precision(component.name, config.precision)
        dtype = PRECISIONS[precision] if config.backend in APIS else "float32"
        buckets = component_buckets(component.name, component.inputs, request)
        for bucket in buckets:
            likely = {s: r[1] for s, r in bucket.sizes.items()}
            activations = max(activations, activation_bytes(component, likely, dtype))
        weights = weight_bytes(component, precision, dtype)
        inside = config.weights == "constant" and component.weight_binding != "input"
        engine = ENGINE_BYTES_PER_BUCKET * len(buckets) + (weights if inside else 0)
        parts[component.name] = {
            "precision": precision,
            "weights": "constant" if inside else "input",
            "layers": len(component.layers) or 1,
            "weight_bytes": weights,
            "activation_bytes": activations,
            "engine_bytes": int(engine) if config.backend in APIS else 0,
            "buckets": [b.text() for b in buckets] if config.backend in APIS else [],
        }
    stages = {
        stage: sum(parts[n]["weight_bytes"] for n in names if n in parts)
        + max((parts[n]["activation_bytes"] for n in names if n in parts), default=0)
        for stage, names in STAGES.items()
    }
    most = max(stages.values(), default=0)
    card = fitting_card(most, config.targets)
    return {
        "backend": config.backend,
        "backend_version": installed_version(config.backend) if config.backend in APIS else None,
        "precision": config.precision,
        "targets": list(config.targets),
        "components": parts,
        "stage_bytes": stages,
        "disk_bytes": sum(p["engine_bytes"] for p in parts.values()) + overlay_bytes(made, config),
        "card": None if card is None else f"{card.name} ({card.memory_gib} GiB)",
    }


def weight_bytes(component: Component, precision: str, dtype: str) -> int:
    """Memory of a component's weights, of all its layers, in a precision."""
    layers = component.layers or (component.weights,)
    quantized = QUANTIZED_WIDTHS.get(precision.removesuffix("-static"))
    total = 0.0
    for layer in layers:
        for entry in layer.values():
            wide = quantized is None or len(entry.shape) != 2
            total += math.prod(entry.shape) * (WIDTHS[dtype] if wide else quantized or 0)
    return int(total)


def overlay_bytes(components: list[Component], config: BuildConfig) -> int:
    """Disk that quantised weights take in the bundle."""
    if SCHEMES[config.precision].format is None:
        return 0
    return sum(
        weight_bytes(c, p, PRECISIONS[p])
        for c in components
        if (p := component_precision(c.name, config.precision)) in SCHEMES
        and SCHEMES[p].format is not None
    )


def plan_text(report: dict[str, Any]) -> str:
    """The plan for people."""
    version = report["backend_version"]
    where = f" for {', '.join(report['targets'])}" if report["targets"] else ""
    known = f" {version}" if version else " (not installed)" if report["backend"] in APIS else ""
    lines = [f"{report['backend']}{known}, {report['precision']}{where}; nothing was built"]
    for name, part in report["components"].items():
        layers = f" in {part['layers']} layers" if part["layers"] > 1 else ""
        lines.append(
            f"  {name}: {part['precision']}, weights {_gib(part['weight_bytes'])}{layers} as "
            f"{part['weights']}, activations about {_gib(part['activation_bytes'])}"
        )
        lines += [f"    {bucket}" for bucket in part["buckets"]]
    for stage, size in report["stage_bytes"].items():
        lines.append(f"  {stage}: about {_gib(size)} at once")
    lines.append(f"  disk: about {_gib(report['disk_bytes'])}")
    fits = report["card"]
    lines.append(
        f"  fits: {fits} and larger"
        if fits
        else "  fits no card of these targets whole; its weights must be streamed"
        if report["targets"]
        else "  card: not known without --target"
    )
    return "\n".join(lines)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
