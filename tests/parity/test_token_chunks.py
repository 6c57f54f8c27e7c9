"""Feed-forward that runs some tokens at a time gives the bits of the plain one.

That those of a whole block are found is tested with our operators (`test_custom_ops.py`).
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ltx2rt.backends.onnxruntime import OrtEngine, OrtOptions
from ltx2rt.engine import EngineSpec, TensorSpec
from ltx2rt.names import TRANSFORMER_BLOCK
from ltx2rt_export.custom_ops import token_chunks
from ltx2rt_export.graph import ExportedGraph

WIDTH, HIDDEN = 8, 32

#: input -> shape; the first weight is held in float16, as a precision may hold it
SHAPES: dict[str, list[Any]] = {
    "x": ["B", "T", WIDTH],
    "index": ["B", "T"],
    **{row: ["U", WIDTH] for row in ("scale", "shift", "gate")},
    "up": [WIDTH, HIDDEN],
    "down": [HIDDEN, WIDTH],
}
TYPES = {"index": TensorProto.INT64, "up": TensorProto.FLOAT16}


def feed_forward() -> ExportedGraph:
    """`x + gelu(norm(x) up) down gate`, with rows a token, as blocks have it."""
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("Pow", ["x", "two"], ["squares"]),
        node("ReduceMean", ["squares", "last"], ["mean"]),
        node("Add", ["mean", "epsilon"], ["power"]),
        node("Sqrt", ["power"], ["root"]),
        node("Reciprocal", ["root"], ["inverse"]),
        node("Mul", ["x", "inverse"], ["normed"]),
        *(node("Gather", [row, "index"], [f"{row}s"]) for row in ("scale", "shift", "gate")),
        node("Add", ["scales", "one"], ["factor"]),
        node("Mul", ["normed", "factor"], ["scaled"]),
        node("Add", ["scaled", "shifts"], ["modulated"]),
        node("Cast", ["up"], ["up_wide"], to=TensorProto.FLOAT),
        node("MatMul", ["modulated", "up_wide"], ["hidden"]),
        node("Gelu", ["hidden"], ["active"], approximate="tanh"),
        node("MatMul", ["active", "down"], ["y"]),
        node("Mul", ["y", "gates"], ["gated"]),
        node("Add", ["x", "gated"], ["out"]),
    ]
    numbers = {"two": 2.0, "one": 1.0, "epsilon": 1e-6}
    graph = helper.make_graph(
        nodes,
        "feed_forward",
        [value(n, TYPES.get(n, TensorProto.FLOAT), shape) for n, shape in SHAPES.items()],
        [value("out", TensorProto.FLOAT, SHAPES["x"])],
        [
            *(helper.make_tensor(n, TensorProto.FLOAT, [], [v]) for n, v in numbers.items()),
            helper.make_tensor("last", TensorProto.INT64, [1], [-1]),
        ],
    )
    graph.node[1].attribute.append(helper.make_attribute("keepdims", 1))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    dtypes = {"index": "int64", "up": "float16"}
    component: Any = SimpleNamespace(
        name=TRANSFORMER_BLOCK,
        inputs=tuple(TensorSpec(n, dtypes.get(n, "float32"), tuple(s)) for n, s in SHAPES.items()),
        outputs=(TensorSpec("out", "float32", ("B", "T", WIDTH)),),
    )
    return ExportedGraph(component, model, (), frozenset())


def engine(graph: ExportedGraph) -> OrtEngine:
    part = graph.component
    spec = EngineSpec(part.name, part.inputs, part.outputs)
    return OrtEngine(graph.model.SerializeToString(), spec, {}, OrtOptions(threads=1))


def inputs(batch: int, tokens: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(tokens)
    sizes = {"B": batch, "T": tokens, "U": 3}
    feeds = {
        name: rng.standard_normal([sizes.get(n, n) for n in shape]).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    index = rng.integers(0, 3, (batch, tokens))
    return {**feeds, "index": index, "up": feeds["up"].astype(np.float16)}


def test_it_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_chunks, "TOKEN_CHUNK", 4)
    plain = feed_forward()
    before = plain.model.SerializeToString()
    chunked = token_chunks.chunk_feed_forward(plain)
    onnx.checker.check_model(chunked.model)
    assert plain.model.SerializeToString() == before
    with engine(plain) as whole, engine(chunked) as parts:
        for batch, tokens in ((1, 3), (1, 4), (1, 5), (2, 9), (1, 16)):
            feeds = inputs(batch, tokens)
            np.testing.assert_array_equal(parts(feeds)["out"], whole(feeds)["out"])


def test_a_turn_has_what_depends_on_its_tokens_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chunked = token_chunks.chunk_feed_forward(feed_forward())
    (loop,) = (n for n in chunked.model.graph.node if n.op_type == "Loop")
    (turn,) = (a.g for a in loop.attribute)
    inside = [n.op_type for n in turn.node]
    outside = [n.op_type for n in chunked.model.graph.node]
    assert [n for n in inside if n in ("MatMul", "Gelu", "Cast")] == ["MatMul", "Gelu", "MatMul"]
    assert outside.count("Cast") == 1
    assert not {"MatMul", "Gelu"} & set(outside)
    # a turn has `TOKEN_CHUNK` tokens at the most, and turns are of one size
    monkeypatch.setattr(token_chunks, "TOKEN_CHUNK", 4)
    model = token_chunks.chunk_feed_forward(feed_forward()).model
    model.graph.output.append(
        helper.make_tensor_value_info("y.chunks.made", TensorProto.FLOAT, None)
    )
    with engine(ExportedGraph(spied(model), model, (), frozenset())) as run:
        sizes = {t: run(inputs(1, t))["y.chunks.made"].shape for t in (4, 5, 12)}
    assert sizes == {4: (1, 1, 4, WIDTH), 5: (2, 1, 3, WIDTH), 12: (3, 1, 4, WIDTH)}


def spied(model: onnx.ModelProto) -> Any:
    """The boundary with what the turns made as one more output."""
    part = feed_forward().component
    made = TensorSpec("y.chunks.made", "float32", ("N", "ONE", "C", WIDTH))
    return SimpleNamespace(name=part.name, inputs=part.inputs, outputs=(*part.outputs, made))


def test_other_components_and_16_bit_graphs_stay_as_they_are() -> None:
    graph = feed_forward()
    graph.component.name = "text_block"  # type: ignore[misc]
    assert token_chunks.chunk_feed_forward(graph) is graph
    half = dataclasses.replace(feed_forward(), dtype="float16")
    assert token_chunks.chunk_feed_forward(half) is half
