"""A block's graph without the inputs that mask attentions, for passes that have no mask: what adds
zeros to every score there is taken out, not computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx

from ltx2rt.errors import InternalError
from ltx2rt.names import TRANSFORMER_BLOCKS
from ltx2rt_export.graph import ExportedGraph

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
    masks = {s.name: s.shape for s in component.inputs if s.name.endswith(MASKS)}
    inputs = tuple(spec for spec in component.inputs if spec.name not in masks)
    sizes = {d: (s.name, i) for s in reversed(inputs) for i, d in enumerate(s.shape)}
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    _take_out(model.graph, masks, sizes)
    return dataclasses.replace(
        graph, component=dataclasses.replace(component, inputs=inputs), model=model
    )


def _take_out(
    graph: onnx.GraphProto,
    masks: Mapping[str, Sequence[int | str]],
    sizes: Mapping[int | str, tuple[str, int]],
) -> None:
    """Remove the inputs, what is made of them alone, and the sums that they go into.

    Args:
        masks: the inputs, with their shapes.
        sizes: symbol -> another input that has it, and where.
    """
    gone, renamed, kept = set(masks), dict[str, str](), list[onnx.NodeProto]()
    constants = {t.name for t in graph.initializer}
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
        of_masks = [name for name in node.input if name in gone]
        others = [name for name in node.input if name not in gone]
        if not of_masks:
            kept.append(node)
        elif node.op_type == "Shape" and of_masks[0] in masks:
            _measure(node, *sizes[_measured(node, masks[of_masks[0]])])
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


def _measured(node: onnx.NodeProto, shape: Sequence[int | str]) -> int | str:
    """The one size of a mask that a graph takes from it."""
    ends = {a.name: a.i for a in node.attribute}
    start: int = ends.get("start", 0)
    end: int = ends.get("end", len(shape))
    if end - start != 1:
        raise InternalError(f"{node.name} reads sizes {start} to {end} of a mask")
    return shape[start]


def _measure(node: onnx.NodeProto, tensor: str, axis: int) -> None:
    """Let a Shape read one size of another tensor."""
    del node.attribute[:]
    node.input[0] = tensor
    node.attribute.extend(
        onnx.helper.make_attribute(name, value)
        for name, value in (("start", axis), ("end", axis + 1))
    )
