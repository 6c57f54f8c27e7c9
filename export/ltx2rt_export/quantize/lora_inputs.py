"""LoRAs as inputs of the block graph instead of merged weights: `out = linear(x) + (x A) B`.

For adapters that change at every request: nothing is merged or quantised again, at the price of two
small GEMMs a linear (spec/lora.md §3). Several LoRAs are one: ranks side by side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import onnx
from onnx import NodeProto

from ltx2rt.engine import TensorSpec
from ltx2rt.errors import InternalError
from ltx2rt.lora.adapter import factor_names
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.quantize.linears import ELEM_TYPES, Linear

#: the symbol of the rank: the same for all linears of a graph
RANK = "r"


def add_lora_inputs(
    graph: ExportedGraph, linears: Mapping[str, Linear], modules: Collection[str] | None = None
) -> ExportedGraph:
    """A graph that adds low-rank updates to its linears.

    New inputs, in the graph's dtype, laid out as the graph uses them: A `[in, r]` and B `[r, out]`
    of every linear, with the strength in B. The weights, quantised or not, stay as they are.

    Args:
        linears: those of the graph before it was quantised (`linears.find_linears`).
        modules: a choice of them; all by default.

    Raises:
        InternalError: the graph does not make a linear's output.
    """
    chosen = {linears[m].output: linears[m] for m in modules or linears}
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    nodes: list[NodeProto] = []
    specs: list[TensorSpec] = []
    for node in model.graph.node:
        nodes.append(node)
        linear = chosen.pop(node.output[0], None) if node.output else None
        if linear is None:
            continue
        name = linear.module
        a, b = factor_names(name)
        node.output[0] = f"{name}.unadapted"
        nodes += [
            _node("MatMul", [linear.x, a], f"{name}.lora_down"),
            _node("MatMul", [f"{name}.lora_down", b], f"{name}.lora_update"),
            _node("Add", [node.output[0], f"{name}.lora_update"], linear.output),
        ]
        specs.append(TensorSpec(a, graph.dtype, (linear.in_features, RANK)))
        specs.append(TensorSpec(b, graph.dtype, (RANK, linear.out_features)))
    if chosen:
        raise InternalError(f"{graph.component.name} makes no {', '.join(sorted(chosen))}")
    kept = list(nodes)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(s.name, ELEM_TYPES[s.dtype], list(s.shape))
        for s in specs
    )
    component = graph.component
    adapted = [linears[m].module for m in modules or linears]
    component = dataclasses.replace(
        component,
        inputs=(*component.inputs, *specs),
        options={**component.options, "lora_inputs": adapted},
    )
    return dataclasses.replace(graph, component=component, model=model)


def _node(kind: str, inputs: list[str], output: str) -> NodeProto:
    return onnx.helper.make_node(kind, inputs, [output], name=f"{output}/{kind}")
