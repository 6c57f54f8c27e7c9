"""Feed-forward for ONNX Runtime, some tokens at a time: its hidden values are four times as wide
as the model, and ONNX Runtime's GELU holds them three times.

Every token is computed for itself, so that the numbers are those of the plain graph, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

from ltx2rt.names import TRANSFORMER_BLOCKS
from ltx2rt_export.custom_ops.index import GraphIndex
from ltx2rt_export.custom_ops.rewrite import Rewriter
from ltx2rt_export.custom_ops.rows import find_gated_residuals, find_modulations
from ltx2rt_export.graph import ExportedGraph

#: tokens whose hidden values are held at once, at the most: 67 MB a copy at a width of 4096
TOKEN_CHUNK = 1024


def chunk_feed_forward(graph: ExportedGraph) -> ExportedGraph:
    """The graph of a transformer block whose feed-forwards run `TOKEN_CHUNK` tokens at a time;
    other components unchanged.

    Args:
        graph: for ONNX Runtime, in float32 and any precision; it is not changed.
    """
    if graph.component.name not in TRANSFORMER_BLOCKS or graph.dtype != "float32":
        return graph
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    rewriter = Rewriter(model)
    entries = {site.out for site in find_modulations(model.graph, rewriter.index)}
    for site in find_gated_residuals(model.graph, rewriter.index):
        entry, nodes = _between(rewriter.index, site.y, entries)
        if any(node.op_type == "Gelu" for node in nodes):
            _chunk(rewriter, entry, site.y, nodes)
    rewriter.finish()
    return dataclasses.replace(graph, model=model)


def _between(
    index: GraphIndex, end: str, entries: Iterable[str]
) -> tuple[str, list[onnx.NodeProto]]:
    """The adaptive norm that a value is made of, and all nodes on the way; no nodes if there are
    several, as there are before an attention.
    """
    begins, found, todo = set[str](), dict[str, onnx.NodeProto](), [end]
    while todo:
        name = todo.pop()
        if name in entries:
            begins.add(name)
        elif (node := index.producers.get(name)) is not None and node.output[0] not in found:
            found[node.output[0]] = node
            todo += node.input
    ordered = [found[name] for name in index.producers if name in found]
    return (begins.pop(), ordered) if len(begins) == 1 else ("", [])


def _chunk(rewriter: Rewriter, entry: str, out: str, nodes: Sequence[onnx.NodeProto]) -> None:
    """Let `nodes`, which make `out` of `entry` (both `[B, T, W]`), run in a loop.

    All turns have as many tokens: the last one repeats the last token, and the repetitions are cut
    off. Values keep three axes, `[1, B*T, W]`, for a precision may name one of them.
    """
    name = f"{out}.chunks"

    def op(kind: str, inputs: Sequence[str], made: str, **given: Any) -> str:
        rewriter.standard(kind, inputs, f"{name}.{made}", **given)
        return f"{name}.{made}"

    one, zero = rewriter.scalar(1), rewriter.constant(0)
    width = op("Shape", [entry], "width", start=2, end=3)
    flat = op("Concat", [rewriter.constant(1), rewriter.constant(-1), width], "flat", axis=0)
    joined = op("Reshape", [entry, flat], "joined")
    tokens = op("Shape", [joined], "tokens", start=1, end=2)
    count = op("Squeeze", [tokens, zero], "count")
    last = op("Sub", [count, one], "last")
    turns = op("Div", [last, rewriter.scalar(TOKEN_CHUNK)], "whole")
    turns = op("Add", [turns, one], "turns")
    chunk = op("Add", [op("Div", [last, turns], "share"), one], "chunk")

    places = [
        ("Mul", [f"{name}.turn", chunk], "first"),
        ("Add", [f"{name}.first", chunk], "end"),
        ("Range", [f"{name}.first", f"{name}.end", one], "places"),
        ("Min", [f"{name}.places", last], "inside"),
    ]
    begin = [helper.make_node(kind, given, [f"{name}.{n}"]) for kind, given, n in places]
    taken = [joined, f"{name}.inside"]
    begin.append(helper.make_node("Gather", taken, [f"{name}.{entry}"], axis=1))
    body = _turn(begin, entry, out, nodes, name)
    rewriter.node(helper.make_node("Loop", [turns, ""], [f"{name}.made"], name=name, body=body))
    made = op("Reshape", [f"{name}.made", flat], "ordered")  # from [turns, 1, chunk, W]
    cut = op("Slice", [made, zero, tokens, rewriter.constant(1)], "cut")
    rewriter.standard("Reshape", [cut, op("Shape", [entry], "shape")], out)


def _turn(
    begin: Sequence[onnx.NodeProto],
    entry: str,
    out: str,
    nodes: Sequence[onnx.NodeProto],
    name: str,
) -> onnx.GraphProto:
    """One turn of the loop: `begin` takes its tokens, `nodes` follow under names of their own.
    Those that do not depend on `entry`, such as a weight's cast, stay outside.
    """
    made, turn, goes_on, still = list(begin), f"{name}.turn", f"{name}.goes_on", f"{name}.still"
    inside = {entry}
    for node in nodes:
        if inside.isdisjoint(node.input):
            continue
        inside.update(node.output)
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [f"{name}.{n}" if n in inside else n for n in node.input]
        copy.output[:] = [f"{name}.{n}" for n in node.output]
        copy.name = copy.output[0]
        made.append(copy)
    made.append(helper.make_node("Identity", [goes_on], [still]))
    return helper.make_graph(
        made,
        f"{name}.turn",
        [
            helper.make_tensor_value_info(turn, TensorProto.INT64, []),
            helper.make_tensor_value_info(goes_on, TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info(still, TensorProto.BOOL, []),
            helper.make_tensor_value_info(f"{name}.{out}", TensorProto.FLOAT, None),
        ],
    )
