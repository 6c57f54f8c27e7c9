"""A block's graph without the inputs that mask attentions, for passes that have no mask: what adds
zeros to every score there is taken out, not computed.
"""

from __future__ import annotations

import dataclasses

import onnx

from ltx2rt.errors import InternalError
from ltx2rt.names import TRANSFORMER_BLOCKS
from ltx2rt_export.onnx import ExportedGraph

#: ends of the names of inputs that mask
MASKS = ("_attention_bias", "_context_bias")


def without_masks(graph: ExportedGraph) -> ExportedGraph | None:
    """The graph of a transformer block without its masks; None for other components. The name of
    the component stays.

    Raises:
        InternalError: a mask goes into something else than a sum of two.
    """
    component = graph.component
    if component.name not in TRANSFORMER_BLOCKS:
        return None
    masks = {spec.name for spec in component.inputs if spec.name.endswith(MASKS)}
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    _take_out(model.graph, masks)
    inputs = tuple(spec for spec in component.inputs if spec.name not in masks)
    return dataclasses.replace(
        graph, component=dataclasses.replace(component, inputs=inputs), model=model
    )


def _take_out(graph: onnx.GraphProto, masks: set[str]) -> None:
    """Remove the inputs, what is made of them alone, and the sums that they go into."""
    gone, renamed, kept = set(masks), dict[str, str](), list[onnx.NodeProto]()
    constants = {t.name for t in graph.initializer}
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
        of_masks = [name for name in node.input if name in gone]
        others = [name for name in node.input if name not in gone]
        if not of_masks:
            kept.append(node)
        elif all(name in constants for name in others):
            gone.update(node.output)
        elif node.op_type == "Add" and len(others) == 1:
            renamed[node.output[0]] = others[0]
        else:
            raise InternalError(f"the mask {of_masks[0]} goes into {node.op_type} {node.name}")
    if any(value.name in renamed for value in graph.output):
        raise InternalError("a mask is added to an output")
    del graph.node[:]
    graph.node.extend(kept)
    inputs = [value for value in graph.input if value.name not in masks]
    del graph.input[:]
    graph.input.extend(inputs)
