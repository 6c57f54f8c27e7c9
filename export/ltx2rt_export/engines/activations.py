"""Estimate the memory of a component's activations: what is alive at once is added up, from the
shipped graph or, for a component that was made from its module, by running that.

The logits of attentions are left out, since engines fuse them. Engines also fuse chains of small
operators and reuse memory better, so the estimate is on the high side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onnx import NodeProto

from ltx2rt.engine import TensorSpec
from ltx2rt_export.component import Component
from ltx2rt_export.engines.value_shapes import ValueShapes
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.shipped.find import shipped_graph

#: operators whose result looks at their first input in another shape: no memory of its own
VIEWS = frozenset({
    "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze",
})  # fmt: skip

#: operators between the product and the softmax of an attention
LOGITS = frozenset({"Add", "Cast", "Div", "Identity", "Mul", "Sub", "Where"})


def activation_bytes(component: Component, sizes: Mapping[str, int], dtype: str) -> int:
    """Peak memory of one run, inputs and outputs included, weights left out.

    Args:
        sizes: size of every symbol of the inputs; a dimension `1|X` counts as 1.
        dtype: of what is float32 in the component's boundary.
    """
    graph = None
    if component.shipped is not None:
        kept = component.shipped.about.graphs
        name = dtype if dtype in kept else "bfloat16" if "bfloat16" in kept else "float32"
        graph = shipped_graph(component, name)
    if graph is not None:
        return graph_bytes(graph, sizes)
    from ltx2rt_export.engines.traced_activations import traced_bytes

    return traced_bytes(component, sizes, dtype)


def graph_bytes(graph: ExportedGraph, sizes: Mapping[str, int]) -> int:
    """As `activation_bytes`, in the graph's dtype."""
    specs = graph.component.inputs
    found = ValueShapes(graph.model, {s.name: _shape(s, sizes) for s in specs})
    held = {name: name for name in found.inputs}  # value -> the value whose memory it looks at
    left_out = _logits(found.nodes, found.elements)
    for node in found.nodes:
        for name in node.output:
            looks = node.op_type in VIEWS and found.bytes[name] >= 0
            held[name] = held.get(node.input[0], "") if looks else name
    last = {held[n]: i for i, node in enumerate(found.nodes) for n in node.input if n in held}
    kept = {*found.inputs, *(held[n] for n in found.outputs)}
    alive = most = sum(found.bytes[name] for name in found.inputs)
    for index, node in enumerate(found.nodes):
        names = [n for n in node.output if held.get(n) == n and n not in left_out]
        alive += sum(found.bytes[name] for name in names)
        most = max(most, alive)
        read = {held[n] for n in (*node.input, *node.output) if n in held} - kept - left_out
        alive -= sum(found.bytes[n] for n in read if n and last.get(n, index) == index)
    return most


def _logits(nodes: Iterable[NodeProto], elements: Mapping[str, int]) -> set[str]:
    """What a softmax makes, and what it was made from at the same size."""
    makers = {name: node for node in nodes for name in node.output}
    softmaxes = [n.output[0] for n in makers.values() if n.op_type == "Softmax"]
    waiting = [(name, elements[name]) for name in softmaxes]
    found: set[str] = set()
    while waiting:
        name, count = waiting.pop()
        node = makers.get(name)
        if node is None or name in found or elements[name] != count:
            continue
        found.add(name)
        if node.op_type == "Softmax" or node.op_type in LOGITS:
            waiting += [(n, count) for n in node.input]
        elif node.op_type == "Cast":
            waiting.append((node.input[0], count))
    return found


def _shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(
        d if isinstance(d, int) else 1 if d.startswith("1|") else sizes[d] for d in spec.shape
    )
