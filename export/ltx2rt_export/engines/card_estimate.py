"""The bundle that a build would make, as far as the plan of a card's memory looks at it: from
headers and estimates, before there is an engine.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ltx2rt.backends.engine_needs import EngineNeeds
from ltx2rt.bundle.buckets import Bucket
from ltx2rt.bundle.card_plan import tensor_bytes
from ltx2rt.bundle.manifest import (
    SCHEMA,
    BuildInputs,
    ComponentEntry,
    EngineEntry,
    Manifest,
    ModelInfo,
    Place,
    WeightRef,
)
from ltx2rt.bundle.memory_plan import part_of, room_needed
from ltx2rt.engine import TensorSpec
from ltx2rt.names import LORA_COMPONENTS, STAGES, stage_of
from ltx2rt.weights.precision import PRECISIONS, float_precision
from ltx2rt.weights.safetensors import TensorEntry
from ltx2rt_export.component import Component
from ltx2rt_export.device_graphs.table import device_graphs
from ltx2rt_export.engines.build import manifest_tensors
from ltx2rt_export.engines.profile_request import ProfileRequest
from ltx2rt_export.engines.profiles import component_buckets
from ltx2rt_export.graph import with_dtype


@dataclass(frozen=True, slots=True)
class PlannedGraph:
    """One graph of a bundle that is not built.

    Attributes:
        inputs, outputs: with the dtypes of engines.
        layers: of its weights, by number.
        quantized: weights that lie ready in the bundle.
        activations: estimate for each bucket at its largest, inputs and outputs included.
        engine_bytes: of its engines, where weights are `inside` them.
    """

    name: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    buckets: tuple[Bucket, ...]
    layers: Mapping[int, Mapping[str, TensorEntry]]
    layer_count: int
    quantized: frozenset[str]
    options: dict[str, Any]
    activations: tuple[int, ...]
    inside: bool
    engine_bytes: int

    def entry(self) -> ComponentEntry:
        """As a bundle's manifest has it."""
        row = PRECISIONS[self.precision]
        names = {name for layer in self.layers.values() for name in layer}
        every = [self.layers.get(number, {}) for number in range(self.layer_count)]
        return ComponentEntry(
            graph="",
            graph_sha256="",
            precision=self.precision,
            inputs=manifest_tensors(self.inputs),
            outputs=manifest_tensors(self.outputs),
            weight_binding="input",
            transposed=(),
            layers=tuple({n: _ref(e) for n, e in layer.items()} for layer in every),
            options=self.options,
            weight_dtypes=dict.fromkeys(names, row.stored) if row.stored else {},
            quantized=dict.fromkeys(self.quantized, ""),
            overlays=tuple(
                {
                    n: Place(**_facts(e, int(math.prod(e.shape) * row.weight_bytes)))
                    for n, e in layer.items()
                    if n in self.quantized
                }
                for layer in every
            ),
            engines=(_engine(self),),
        )


def engine_boundary(
    component: Component, dtype: str
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of a component's engine: the transformer's take the dtype that it computes
    in, as in `export_component`.
    """
    if component.name not in LORA_COMPONENTS:
        return component.inputs, component.outputs
    outputs = tuple(
        dataclasses.replace(s, dtype=dtype) if s.dtype == "float32" else s
        for s in component.outputs
    )
    return with_dtype(component, dtype).inputs, outputs


def estimated_bundle(
    graphs: Sequence[PlannedGraph], model: ModelInfo, request: ProfileRequest, backend: str
) -> tuple[Manifest, dict[str, EngineNeeds]]:
    """A manifest, and what each engine of its components needs besides weights."""
    beside = {g.component.name: g.component for g in device_graphs(_components(graphs))}
    plain = float_precision("float32").name
    small = [
        PlannedGraph(
            name, plain, c.inputs, c.outputs, component_buckets(name, c.inputs, request),
            {}, 1, frozenset(), {}, (), inside=False, engine_bytes=0,
        )
        for name, c in beside.items()
    ]  # fmt: skip
    needs = {
        g.name: EngineNeeds(_scratch(g, graphs, model), tensor_bytes(g, graphs, model))
        for g in graphs
    }
    manifest = Manifest(
        schema=SCHEMA,
        bundle_id="",
        created_by="",
        backend=backend,
        precision="",
        model=model,
        sources=(),
        components={graph.name: graph.entry() for graph in graphs},
        tokenizer="",
        tokenizer_sha256="",
        build=BuildInputs(),
        device_graphs={graph.name: graph.entry() for graph in small},
    )
    return manifest, needs


def stage_room(
    manifest: Manifest, needs: Mapping[str, EngineNeeds], *, least: bool
) -> dict[str, int]:
    """What each stage takes of a card that it has alone; see `room_needed`."""
    found = {}
    for stage in STAGES:
        own = {n: need for n, need in needs.items() if stage_of(n) == stage}
        found[stage] = room_needed(part_of(manifest, own.__contains__), own, least=least)
    return found


def _scratch(graph: PlannedGraph, graphs: Sequence[PlannedGraph], model: ModelInfo) -> int:
    """What the library takes for activations: inputs and outputs are not among them."""
    found = 0
    for bucket, size in zip(graph.buckets, graph.activations, strict=True):
        own = dataclasses.replace(graph, buckets=(bucket,))
        found = max(found, size - sum(tensor_bytes(own, graphs, model).values()))
    return found


def _components(graphs: Sequence[PlannedGraph]) -> list[Component]:
    """Stand-ins with the boundaries that device graphs look at."""
    return [
        Component(
            name=g.name, module=None, inputs=g.inputs, outputs=g.outputs, options=g.options,
            weights={}, trace={},
        )
        for g in graphs
    ]  # fmt: skip


def _facts(entry: TensorEntry, length: int) -> dict[str, Any]:
    return {
        "source": 0, "dtype": entry.dtype, "shape": entry.shape, "offset": 0, "length": length,
    }  # fmt: skip


def _ref(entry: TensorEntry) -> WeightRef:
    return WeightRef(**_facts(entry, entry.length))


def _engine(graph: PlannedGraph) -> EngineEntry:
    return EngineEntry(
        file="",
        sha256="",
        bytes=graph.engine_bytes if graph.inside else 0,
        backend="",
        backend_version="",
        targets=(),
        precision=graph.precision,
        weights="constant" if graph.inside else "input",
        version_compatible=False,
        buckets=graph.buckets,
    )
