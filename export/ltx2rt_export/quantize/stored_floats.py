"""Weights that a graph takes in another float dtype than it computes in: half the memory of a layer
where there are no kernels in 16 bits, and the same numbers, if files hold them in 16 bits.
"""

from __future__ import annotations

import dataclasses

import onnx
from onnx import helper

from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.quantize.linears import ELEM_TYPES


def store_weights(graph: ExportedGraph, dtype: str) -> ExportedGraph:
    """The graph with weights of linears in `dtype`, each converted where it is used.

    Args:
        graph: whose weights are inputs; it is not changed.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    stored = graph.transposed
    for value in model.graph.input:
        if value.name in stored:
            value.type.tensor_type.elem_type = ELEM_TYPES[dtype]
    nodes: list[onnx.NodeProto] = []
    done: set[str] = set()
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name in stored:
                wide = f"{name}.{graph.dtype}"
                if name not in done:  # before its first reader, so that few are wide at once
                    done.add(name)
                    to = ELEM_TYPES[graph.dtype]
                    nodes.append(helper.make_node("Cast", [name], [wide], name=wide, to=to))
                node.input[position] = wide
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return dataclasses.replace(graph, model=model)
