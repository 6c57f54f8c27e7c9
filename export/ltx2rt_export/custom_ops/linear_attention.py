"""Attention for ONNX Runtime whose memory grows with the tokens, not with their square.

Plain attention holds two tensors `[B, H, T, S]` of scores: 9.7 GB at 6,144 video tokens and 32
heads. ONNX Runtime's fused operator holds a strip of them; it has no fast form with a bias. So a
bias that holds zeros only, which is that of every pass without masks, is told at run time, and what
is masked is computed `QUERY_CHUNK` queries at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

from ltx2rt.names import TRANSFORMER_BLOCKS
from ltx2rt_export.custom_ops.patterns import Attention, find_attentions
from ltx2rt_export.custom_ops.rewrite import Rewriter
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.quantize.linears import MICROSOFT

#: queries whose scores are held at once where a bias is not zero: 0.27 GB at 16,320 tokens and
#: 32 heads
QUERY_CHUNK = 128


def use_linear_attention(graph: ExportedGraph) -> ExportedGraph:
    """The graph with attention of linear memory; components without long attention unchanged.

    Args:
        graph: for ONNX Runtime, in float32; it is not changed.
    """
    if graph.component.name not in TRANSFORMER_BLOCKS or graph.dtype != "float32":
        return graph
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    rewriter = Rewriter(model)
    for site in find_attentions(model.graph, rewriter.index):
        _replace(rewriter, site)
    rewriter.finish()
    if MICROSOFT not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return dataclasses.replace(graph, model=model)


def _replace(rewriter: Rewriter, site: Attention) -> None:
    name, width = site.out, site.heads * site.head_dim
    query, keys = f"{name}.query", f"{name}.keys"
    flat = rewriter.constant(0, 0, width)
    # three axes: with heads as an axis of its own the operator silently takes a slow way
    rewriter.standard("Transpose", [site.q], f"{query}.by_token", perm=[0, 2, 1, 3])
    rewriter.standard("Reshape", [f"{query}.by_token", flat], query)
    by_token = site.k
    if not site.k_by_token:
        by_token = f"{keys}.by_token"
        rewriter.standard("Transpose", [site.k], by_token, perm=[0, 2, 1, 3])
    rewriter.standard("Reshape", [by_token, flat], keys)
    fused = helper.make_node(
        "MultiHeadAttention",
        [query, keys, site.v],
        [f"{name}.fused" if site.bias else f"{name}.joined"],
        name=f"{name}.fused",
        domain=MICROSOFT,
        num_heads=site.heads,
    )
    if site.bias is None:
        rewriter.node(fused)
    else:
        rewriter.standard("Abs", [site.bias], f"{name}.bias_size")
        rewriter.standard("ReduceMax", [f"{name}.bias_size"], f"{name}.bias_most", keepdims=0)
        rewriter.standard("Cast", [f"{name}.bias_most"], f"{name}.masked", to=TensorProto.BOOL)
        choice = helper.make_node(
            "If",
            [f"{name}.masked"],
            [f"{name}.joined"],
            name=f"{name}.choice",
            then_branch=_masked(rewriter, site, keys, site.bias),
            else_branch=_branch([fused], f"{name}.fused", "unmasked"),
        )
        rewriter.node(choice)
    by_head = rewriter.constant(0, 0, site.heads, site.head_dim)
    rewriter.standard("Reshape", [f"{name}.joined", by_head], name)


def _masked(rewriter: Rewriter, site: Attention, keys: str, bias: str) -> onnx.GraphProto:
    """Attention with a bias, a chunk of queries at a time; a branch of `If`.

    Every chunk is as long as the others: the last one repeats the last query, and the repetitions
    are cut off. A bias of one row is gathered as if it had as many as queries.
    """
    name, width = site.out, site.heads * site.head_dim
    made: list[onnx.NodeProto] = []
    body: list[onnx.NodeProto] = []

    def op(
        nodes: list[onnx.NodeProto], kind: str, inputs: Sequence[str], out: str, **given: Any
    ) -> str:
        out = f"{name}.masked.{out}"
        nodes.append(helper.make_node(kind, list(inputs), [out], name=out, **given))
        return out

    one = rewriter.scalar(1)
    by_head = rewriter.constant(0, 0, site.heads, site.head_dim)
    keys = op(made, "Reshape", [keys, by_head], "key_heads")
    keys = op(made, "Transpose", [keys], "keys", perm=[0, 2, 3, 1])
    values = op(made, "Reshape", [site.v, by_head], "value_heads")
    values = op(made, "Transpose", [values], "values", perm=[0, 2, 1, 3])
    tokens = op(made, "Shape", [site.q], "tokens", start=2, end=3)
    count = op(made, "Squeeze", [tokens], "count")
    chunk = op(made, "Min", [count, rewriter.scalar(QUERY_CHUNK)], "chunk")
    last = op(made, "Sub", [count, one], "last")
    whole = op(made, "Add", [last, chunk], "whole")
    turns = op(made, "Div", [whole, chunk], "turns")
    rows = op(made, "Shape", [bias], "bias_shape", start=2, end=3)
    last_row = op(made, "Sub", [op(made, "Squeeze", [rows], "bias_rows"), one], "last_row")
    scale = rewriter.scalar(site.head_dim**-0.5)

    turn, goes_on = f"{name}.masked.turn", f"{name}.masked.goes_on"
    first = op(body, "Mul", [turn, chunk], "first")
    places = op(body, "Range", [first, op(body, "Add", [first, chunk], "end"), one], "places")
    inside = op(body, "Min", [places, last], "inside")
    query = op(body, "Gather", [site.q, inside], "query", axis=2)
    scores = op(body, "MatMul", [op(body, "Mul", [query, scale], "scaled"), keys], "scores")
    bias = op(body, "Gather", [bias, op(body, "Min", [places, last_row], "row")], "bias", axis=2)
    share = op(body, "Softmax", [op(body, "Add", [scores, bias], "biased")], "share", axis=-1)
    out = op(body, "MatMul", [share, values], "attended")
    out = op(body, "Transpose", [out], "by_token", perm=[0, 2, 1, 3])
    still = op(body, "Identity", [goes_on], "still")
    loop = helper.make_graph(
        body,
        f"{name}.masked.chunk",
        [
            helper.make_tensor_value_info(turn, TensorProto.INT64, []),
            helper.make_tensor_value_info(goes_on, TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info(still, TensorProto.BOOL, []),
            helper.make_tensor_value_info(out, TensorProto.FLOAT, None),
        ],
    )
    chunks = op(made, "Loop", [turns, ""], "chunks", body=loop)  # [turns, B, chunk, H, Dh]
    ordered = op(made, "Transpose", [chunks], "ordered", perm=[1, 0, 2, 3, 4])
    joined = op(made, "Reshape", [ordered, rewriter.constant(0, -1, width)], "joined")
    begin, axis = rewriter.constant(0), rewriter.constant(1)
    cut = op(made, "Slice", [joined, begin, tokens, axis], "cut")
    return _branch(made, cut, "masked")


def _branch(nodes: Sequence[onnx.NodeProto], output: str, kind: str) -> onnx.GraphProto:
    """A branch of `If`; what it gives needs no name of its own outside."""
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), f"{output}.{kind}", [], [value])
