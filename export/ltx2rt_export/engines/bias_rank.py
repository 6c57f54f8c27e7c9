"""Biases of the rank that TensorRT fuses into a GEMM: as `[N]` each costs a kernel on every run,
which only copies them.
"""

from __future__ import annotations

import dataclasses

import onnx
from onnx import TensorProto

from ltx2rt_export.graph import ExportedGraph


def with_wide_biases(graph: ExportedGraph) -> ExportedGraph:
    """The graph whose weight inputs `[N]` that are only added to tensors of a higher rank have that
    rank: `[1, 1, N]`. Their bytes stay what they are.
    """
    own = {spec.name for spec in graph.component.inputs}
    if all(value.name in own for value in graph.model.graph.input):
        return graph
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    ranks = _ranks(model)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in own or len(dims) != 1:
            continue
        found = {_added_rank(node, value.name, ranks) for node in readers.get(value.name, ())}
        rank = found.pop() if len(found) == 1 else 0
        if rank > 1:
            size = dims[0].dim_value
            del dims[:]
            for length in (*(1,) * (rank - 1), size):
                dims.add().dim_value = length
    return dataclasses.replace(graph, model=model)


def _added_rank(node: onnx.NodeProto, name: str, ranks: dict[str, int]) -> int:
    """The rank of what a value is added to; 0 where it is used otherwise."""
    others = [n for n in node.input if n != name]
    if node.op_type != "Add" or node.domain or len(others) != 1:
        return 0
    return ranks.get(others[0], 0)


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Ranks of the values that shape inference knows; weights may be large, so only types go in."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=False, data_prop=False)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    return {
        v.name: len(v.type.tensor_type.shape.dim)
        for v in values
        if v.type.tensor_type.elem_type != TensorProto.UNDEFINED
        and v.type.tensor_type.HasField("shape")
    }
