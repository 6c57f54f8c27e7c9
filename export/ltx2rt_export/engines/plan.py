"""`ltx2rt build --dry-run`: what would be built, what it takes, and the card it fits. Reads headers
only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ltx2rt.backends.tensorrt_api import APIS, installed_version, load
from ltx2rt.bundle.card_plan import FittingCards, fitting_cards
from ltx2rt.bundle.host_plan import kept_layers
from ltx2rt.bundle.load_weights import ITEM_BYTES
from ltx2rt.bundle.manifest import BuildInputs
from ltx2rt.bundle.memory import held_bytes, held_together, refuse_too_large
from ltx2rt.device.cuda import local_gpu
from ltx2rt.engine import TensorSpec
from ltx2rt.machine import machine_bytes
from ltx2rt.names import STAGES, TRANSFORMER_BLOCK_PLAIN, TRANSFORMER_BLOCKS, VOCODER
from ltx2rt.weights.precision import PRECISIONS, plain_precision
from ltx2rt.weights.safetensors import TensorEntry
from ltx2rt_export.build_config import BuildConfig
from ltx2rt_export.bundle import chosen_components, model_info
from ltx2rt_export.catalog import components_of
from ltx2rt_export.checkpoint import ModelFiles
from ltx2rt_export.component import Component
from ltx2rt_export.engines.activations import activation_bytes
from ltx2rt_export.engines.build import largest_activations
from ltx2rt_export.engines.card_estimate import (
    PlannedGraph,
    engine_boundary,
    estimated_bundle,
    stage_room,
)
from ltx2rt_export.engines.profiles import component_buckets
from ltx2rt_export.engines.stage import holds_weights, profile_request, with_tile_memory
from ltx2rt_export.fuse_loras import match_loras
from ltx2rt_export.quantize import component_precision
from ltx2rt_export.quantize.layer_choice import plan_quantization
from ltx2rt_export.quantize.lora_inputs import RANK
from ltx2rt_export.quantize.rewrites import QUANTIZED_COMPONENT

#: an engine's size for one bucket where its weights are inputs: measured, TensorRT-RTX 1.7, as the
#: mean of 17 engines of LTX-2.3 (0.3 to 32 MB); a vocoder's many convolutions take more
ENGINE_BYTES_PER_BUCKET = 9e6
VOCODER_BYTES_PER_BUCKET = 95e6


class Part(NamedTuple):
    """One graph of a component: the layers that it serves, by number, and the linears that are
    quantised.
    """

    name: str
    precision: str
    layers: Mapping[int, Mapping[str, TensorEntry]]
    quantized: frozenset[str] = frozenset()


def parts_of(component: Component, config: BuildConfig) -> list[Part]:
    """The graphs that a build makes of a component; see `quantize.prepare`.

    Raises:
        OptionError, UnsupportedError: see `plan_quantization`.
    """
    name = component.name
    asked = config.asked(name)
    precision = component_precision(name, asked)
    plan = plan_quantization(component, asked, config.plain_layers)
    layers = dict(enumerate(component.layers or (component.weights,)))
    if plan is None:
        return [Part(name, precision, layers)]
    plain = {i: layers.pop(i) for i in plan.plain_layers}
    quantized = frozenset(f"{m}.weight" for m in plan.modules)
    parts = [Part(name, precision, layers, quantized)]
    if plain:
        dtype = plan.rewrite.precision.dtype if config.backend in APIS else "float32"
        float_row = plain_precision(plan.rewrite.precision.name, dtype)
        parts.append(Part(TRANSFORMER_BLOCK_PLAIN, float_row.name, plain))
    return parts


def plan_build(files: ModelFiles, inputs: BuildInputs, config: BuildConfig) -> dict[str, Any]:
    """What a build would do.

    Raises:
        CheckpointError, OptionError, UnsupportedError: LoRAs, components or layers that do not fit.
        ShapeError: a shape is not one of this model's.
    """
    made = with_tile_memory(config, components_of(files))
    match_loras(files, inputs.loras)
    options = {c.name: c.options for c in made}
    model = model_info(files, options)
    request = profile_request(config, model, options)
    on_card = config.backend in APIS
    parts: dict[str, dict[str, Any]] = {}
    graphs: list[PlannedGraph] = []
    blocks: dict[int, int] = {}  # layer of the transformer -> its bytes
    overlays = 0
    for component in chosen_components(made, config.components):
        for part in parts_of(component, config):
            dtype = PRECISIONS[part.precision].dtype if config.backend in APIS else "float32"
            specs = component.inputs
            if config.lora_inputs and component.name == QUANTIZED_COMPONENT:
                specs += (TensorSpec("LoRA factors", dtype, (RANK,)),)
            buckets = component_buckets(part.name, specs, request)
            taken = [
                largest_activations(component, bucket, dtype)
                if on_card
                else activation_bytes(component, {s: r[1] for s, r in bucket.sizes.items()}, dtype)
                for bucket in buckets
            ]
            sizes = [layer_bytes(layer, part, dtype) for layer in part.layers.values()]
            overlays += sum(quantized_bytes(layer, part) for layer in part.layers.values())
            inside = holds_weights(config, component)
            if part.name in TRANSFORMER_BLOCKS:
                blocks |= zip(part.layers, sizes, strict=True)
                row = PRECISIONS[part.precision]
                if config.backend not in APIS:  # see `EngineStage.finish`
                    inside = row.inside or (inside and row.stored is None)
            count = len(sizes) if inside else 1
            usual = part.name != VOCODER
            each = ENGINE_BYTES_PER_BUCKET if usual else VOCODER_BYTES_PER_BUCKET
            engine = count * each * len(buckets) + (sum(sizes) if inside else 0)
            if on_card:
                inputs_of, outputs_of = engine_boundary(component, dtype)
                graphs.append(
                    PlannedGraph(
                        name=part.name,
                        precision=part.precision,
                        inputs=inputs_of,
                        outputs=outputs_of,
                        buckets=tuple(buckets),
                        layers=part.layers,
                        layer_count=max(1, len(component.layers)),
                        quantized=part.quantized,
                        options=dict(component.options),
                        activations=tuple(taken),
                        inside=inside,
                        engine_bytes=int(engine),
                    )
                )
            parts[part.name] = {
                "precision": part.precision,
                "quantized_share": quantized_share(part),
                "weights": "constant" if inside else "input",
                "layers": len(part.layers),
                "weight_bytes": sum(sizes),
                "held_bytes": held_bytes(part.name, sizes, least=False),
                "least_bytes": held_bytes(part.name, sizes, least=not inside),
                "activation_bytes": max(taken, default=0),
                "engine_bytes": int(engine) if config.backend in APIS else 0,
                "engines": count if config.backend in APIS else 0,
                "buckets": [b.text() for b in buckets] if config.backend in APIS else [],
            }
    cards = FittingCards(None, None)
    if on_card:
        manifest, needs = estimated_bundle(graphs, model, request, config.backend)
        stages, least = (stage_room(manifest, needs, least=least) for least in (False, True))
        cards = fitting_cards(manifest, needs, config.targets)
    else:
        stages, least = (stage_bytes(parts, kind) for kind in ("held_bytes", "least_bytes"))
    card, streaming = cards
    return {
        "backend": config.backend,
        "backend_version": installed_version(config.backend) if config.backend in APIS else None,
        "precision": config.precision,
        "targets": list(config.targets),
        "components": parts,
        "stage_bytes": stages,
        "least_stage_bytes": least,
        "host": None if on_card else _on_host(parts, [blocks[i] for i in sorted(blocks)]),
        "engines": sum(p["engines"] for p in parts.values()),
        "disk_bytes": sum(p["engine_bytes"] for p in parts.values()) + overlays,
        "card": card and f"{card.name} ({card.memory_gib} GiB)",
        "streaming_card": streaming and f"{streaming.name} ({streaming.memory_gib} GiB)",
    }


def _on_host(
    parts: Mapping[str, Mapping[str, Any]], layers: Sequence[int]
) -> dict[str, int | None]:
    """How the layers of the transformer fit this machine's memory: `bundle.host_plan`."""
    beside = sum(
        part["held_bytes"]
        for name, part in parts.items()
        if name in STAGES["denoise"] and name not in TRANSFORMER_BLOCKS
    )
    memory = machine_bytes()
    kept = kept_layers(layers, beside, memory)
    return {"memory_bytes": memory, "layers": len(layers), "kept_layers": kept}


def stage_bytes(parts: Mapping[str, Mapping[str, Any]], kind: str) -> dict[str, int]:
    """Weights and activations that each stage holds at once in a machine's memory."""
    held = {name: part[kind] for name, part in parts.items()}
    return {
        stage: held_together(held, names, on_card=False)
        + max((parts[n]["activation_bytes"] for n in names if n in parts), default=0)
        for stage, names in STAGES.items()
    }


def check_card(files: ModelFiles, inputs: BuildInputs, config: BuildConfig) -> None:
    """Refuse to build for the GPU of this machine what it cannot hold.

    Raises:
        UnsupportedError: the library is missing, there is no GPU, or it is too small for the shapes
            and the precision.
        CheckpointError, OptionError, ShapeError: see `plan_build`.
    """
    api = APIS.get(config.backend)
    if api is None or api.names_targets:
        return  # engines for machines that are not known here
    load(config.backend)
    gpu = local_gpu(f"backend {config.backend}")
    stages = plan_build(files, inputs, config)["least_stage_bytes"]
    refuse_too_large(stages, "weights and activations", gpu)


def layer_bytes(layer: Mapping[str, TensorEntry], part: Part, dtype: str) -> int:
    """Memory of one layer's weights as its engine takes them."""
    dtype = PRECISIONS[part.precision].stored or dtype  # but for biases and tables, which are small
    wide = sum(math.prod(e.shape) for n, e in layer.items() if n not in part.quantized)
    return wide * ITEM_BYTES[dtype] + quantized_bytes(layer, part)


def quantized_share(part: Part) -> float:
    """Of a part's numbers, how many are quantised; 0 where none are."""
    sizes = [
        (n in part.quantized, math.prod(e.shape))
        for x in part.layers.values()
        for n, e in x.items()
    ]
    return sum(size for chosen, size in sizes if chosen) / max(1, sum(size for _, size in sizes))


def quantized_bytes(layer: Mapping[str, TensorEntry], part: Part) -> int:
    """Those that are quantised, which lie ready in the bundle."""
    count = sum(math.prod(e.shape) for n, e in layer.items() if n in part.quantized)
    return int(count * PRECISIONS[part.precision].weight_bytes)
