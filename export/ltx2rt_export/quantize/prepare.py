"""A component in a precision: its graphs and its quantised weights, ready for the bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ltx2rt.bundle.manifest import ComponentEntry, Place, Source
from ltx2rt.names import TRANSFORMER_BLOCK_PLAIN
from ltx2rt.progress import Job
from ltx2rt.weights.precision import (
    PRECISIONS,
    Precision,
    float_precision,
    plain_precision,
)
from ltx2rt.weights.safetensors import SafetensorsFile
from ltx2rt_export.component import Component
from ltx2rt_export.engines.weights import weights_as_inputs
from ltx2rt_export.graph import Export, ExportedGraph
from ltx2rt_export.quantize.component_graph import component_precision, rewrite_graph
from ltx2rt_export.quantize.layer_choice import QuantPlan, plan_quantization
from ltx2rt_export.quantize.linears import find_linears, weight_inputs
from ltx2rt_export.quantize.lora_inputs import add_lora_inputs
from ltx2rt_export.quantize.overlay import Overlays, overlay_weights, write_overlays
from ltx2rt_export.quantize.rewrites import QUANTIZED_COMPONENT
from ltx2rt_export.quantize.stored_floats import store_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One graph of a component.

    Attributes:
        precision: what the manifest says about it; a name of `PRECISIONS`.
        overlays: its quantised weights, by layer.
        quantized: weight -> engine format.
    """

    graph: ExportedGraph
    precision: str
    overlays: Overlays = ()
    quantized: Mapping[str, str] = field(default_factory=dict)

    @property
    def weight_dtypes(self) -> dict[str, str]:
        """Weight input -> dtype, where it is not that of the precision."""
        usual = PRECISIONS[self.precision].dtype
        model = weights_as_inputs(self.graph.model)
        found = weight_inputs(dataclasses.replace(self.graph, model=model))
        return {name: dtype for name, (dtype, _) in found.items() if dtype != usual}


def prepare(
    component: Component,
    precision: str,
    folder: Path,
    job: Job,
    *,
    dtype: str | None = None,
    plain_layers: Collection[int] | None = None,
    lora_inputs: bool = False,
    export: Export | None = None,
    resume: bool = False,
) -> list[Prepared]:
    """Export a component; a quantised one also writes its weights to `folder`.

    Args:
        precision: a name of `PRECISIONS`.
        dtype: of what is not quantised, instead of the precision's own.
        plain_layers: see `plan_quantization`.
        lora_inputs: the block takes LoRAs as low-rank inputs instead of merged weights.
        export: gives graphs instead of `export_component`.
        resume: see `write_overlays`.

    Returns:
        one graph, or two: the quantised block and the plain one, each with the layers that it
        serves.

    Raises:
        CheckpointError, OptionError, UnsupportedError: see `plan_quantization`, `write_overlays`.
    """
    if export is None:
        from ltx2rt_export.onnx import export_component

        export = export_component
    plan = plan_quantization(component, precision, plain_layers)
    if plan is None:
        row = PRECISIONS[component_precision(component.name, precision)]
        graph = export(component, dtype or row.dtype)
        if lora_inputs and component.name == QUANTIZED_COMPONENT:
            graph = add_lora_inputs(graph, find_linears(graph))
        return [_floats(graph, row if row.stored else float_precision(graph.dtype))]
    precision = plan.rewrite.precision.name
    plain = export(component, dtype or plan.rewrite.precision.dtype)
    overlays = write_overlays(component, plan, folder / component.name, job, resume=resume)
    quantized = rewrite_graph(plain, precision, plan.modules)
    if lora_inputs and component.name == QUANTIZED_COMPONENT:
        linears = find_linears(plain)
        plain, quantized = (add_lora_inputs(g, linears) for g in (plain, quantized))
    prepared = [
        Prepared(
            graph=_serving(quantized, component.name, plan, plain=False),
            precision=precision,
            overlays=overlays,
            quantized=overlay_weights(plan),
        )
    ]
    if plan.plain_layers:
        graph = _serving(plain, TRANSFORMER_BLOCK_PLAIN, plan, plain=True)
        prepared.append(_floats(graph, plain_precision(precision, graph.dtype)))
    return prepared


def _floats(graph: ExportedGraph, row: Precision) -> Prepared:
    """A graph that nothing is quantised in."""
    stored = graph if row.stored is None else store_weights(graph, row.stored)
    return Prepared(graph=stored, precision=row.name)


def attach_overlays(
    entries: Mapping[str, ComponentEntry],
    sources: Sequence[Source],
    overlays: Mapping[str, Overlays],
    work: Path,
) -> tuple[dict[str, ComponentEntry], list[Source]]:
    """Manifest entries that know where their quantised weights lie, and all sources."""
    result, listed = dict(entries), list(sources)
    for name, layers in overlays.items():
        paths = {entry.path for layer in layers for entry in layer.values()}
        numbers = {}
        for path in sorted(paths):
            file = SafetensorsFile(path)
            numbers[path] = len(listed)
            listed.append(
                Source(
                    path=str(path.relative_to(work)),
                    bytes=file.file_bytes,
                    header_sha256=file.header_sha256,
                )
            )
        places = tuple(
            {
                weight: Place(
                    source=numbers[e.path],
                    dtype=e.dtype,
                    shape=e.shape,
                    offset=e.offset,
                    length=e.length,
                )
                for weight, e in sorted(layer.items())
            }
            for layer in layers
        )
        result[name] = dataclasses.replace(result[name], overlays=places)
    return result, listed


def _serving(graph: ExportedGraph, name: str, plan: QuantPlan, *, plain: bool) -> ExportedGraph:
    """The graph under a name of its own, with its own layers; an empty mapping for the others."""
    component = graph.component
    layers = tuple(
        layer if (i in plan.plain_layers) == plain else {}
        for i, layer in enumerate(component.layers)
    )
    return dataclasses.replace(
        graph, component=dataclasses.replace(component, name=name, layers=layers)
    )
