"""Attention on ONNX Runtime whose memory grows with the tokens gives the numbers of the plain one.

That all attentions of a block are found is tested with our operators (`test_custom_ops.py`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ltx2rt.backends.onnxruntime import OrtEngine, OrtOptions
from ltx2rt.engine import EngineSpec, TensorSpec
from ltx2rt.errors import EngineError
from ltx2rt.names import TRANSFORMER_BLOCK
from ltx2rt_export.custom_ops import linear_attention
from ltx2rt_export.graph import ExportedGraph
from tests.tolerances import ORT_REL_RMS

HEADS, DIM = 4, 16
BIASES = ("none", "zero", "zero rows", "keys", "rows")


def attention(*, bias: bool, by_token: bool) -> ExportedGraph:
    """Attention as blocks have it: values by token, and keys by token or by head."""
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("Reshape", ["v", "shape"], ["v_heads"]),
        node("Transpose", ["v_heads"], ["values"], perm=[0, 2, 1, 3]),
        node("Mul", ["q", "scale"], ["scaled"]),
        node("Transpose", ["k"], ["keys"], perm=[0, 2, 3, 1] if by_token else [0, 1, 3, 2]),
        node("MatMul", ["scaled", "keys"], ["scores"]),
        *([node("Add", ["scores", "bias"], ["biased"])] if bias else []),
        node("Softmax", ["biased" if bias else "scores"], ["share"], axis=-1),
        node("MatMul", ["share", "values"], ["attended"]),
        node("Transpose", ["attended"], ["by_token"], perm=[0, 2, 1, 3]),
        node("Identity", ["by_token"], ["out"]),
    ]
    keys = ["B", "S", HEADS, DIM] if by_token else ["B", HEADS, "S", DIM]
    shapes: dict[str, list[Any]] = {
        "q": ["B", HEADS, "T", DIM],
        "k": keys,
        "v": ["B", "S", HEADS * DIM],
        **({"bias": ["B", 1, "R", "S"]} if bias else {}),
    }
    graph = helper.make_graph(
        nodes,
        "attention",
        [value(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [value("out", TensorProto.FLOAT, ["B", "T", HEADS, DIM])],
        [
            helper.make_tensor("shape", TensorProto.INT64, [4], [0, 0, HEADS, DIM]),
            helper.make_tensor("scale", TensorProto.FLOAT, [], [DIM**-0.5]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    component: Any = SimpleNamespace(
        name=TRANSFORMER_BLOCK,
        inputs=tuple(TensorSpec(n, "float32", tuple(s)) for n, s in shapes.items()),
        outputs=(TensorSpec("out", "float32", ("B", "T", HEADS, DIM)),),
    )
    return ExportedGraph(component, model, (), frozenset())


def engine(graph: ExportedGraph) -> OrtEngine:
    part = graph.component
    spec = EngineSpec(part.name, part.inputs, part.outputs)
    return OrtEngine(graph.model.SerializeToString(), spec, {}, OrtOptions(threads=1))


def inputs(queries: int, keys: int, bias: str, *, by_token: bool) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(queries)

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, np.float32)

    cut = np.where(generator.random((2, 1, 1, keys)) < 0.5, np.float32(-np.inf), np.float32(0))
    cut[..., 0] = 0
    biases = {
        "zero": np.zeros((2, 1, 1, keys), np.float32),
        "zero rows": np.zeros((2, 1, queries, keys), np.float32),
        "keys": cut,
        "rows": normal(2, 1, queries, keys),
    }
    return {
        "q": normal(2, HEADS, queries, DIM),
        "k": normal(*((2, keys, HEADS, DIM) if by_token else (2, HEADS, keys, DIM))),
        "v": normal(2, keys, HEADS * DIM),
        **({"bias": biases[bias]} if bias in biases else {}),
    }


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("bias", BIASES)
def test_it_gives_the_same_numbers(
    bias: str, by_token: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_attention, "QUERY_CHUNK", 4)
    plain = attention(bias=bias != "none", by_token=by_token)
    before = plain.model.SerializeToString()
    linear = linear_attention.use_linear_attention(plain)
    onnx.checker.check_model(linear.model)
    assert plain.model.SerializeToString() == before
    outside = Counter(node.op_type for node in linear.model.graph.node)
    assert outside["Softmax"] == 0
    assert (outside["MultiHeadAttention"], outside["If"]) == ((1, 0) if bias == "none" else (0, 1))
    with engine(plain) as slow, engine(linear) as fast:
        for queries, keys in ((18, 18), (1, 5), (3, 7), (8, 8)):  # chunks of four, and what is left
            feeds = inputs(queries, keys, bias, by_token=by_token)
            want, got = slow(feeds)["out"], fast(feeds)["out"]
            assert got.shape == want.shape
            assert np.linalg.norm(got - want) <= ORT_REL_RMS * np.linalg.norm(want)


@pytest.mark.parametrize(
    ("bias", "masked"), [("zero", False), ("zero rows", False), ("keys", True)]
)
def test_only_what_is_masked_takes_the_masked_form(
    bias: str, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: object) -> onnx.GraphProto:
        nan = helper.make_tensor("nan", TensorProto.FLOAT, [1, 1, 1], [np.nan])
        node = helper.make_node("Constant", [], ["nothing"], value=nan)
        result = helper.make_tensor_value_info("nothing", TensorProto.FLOAT, None)
        return helper.make_graph([node], "nothing", [], [result])

    monkeypatch.setattr(linear_attention, "_masked", nothing)
    graph = linear_attention.use_linear_attention(attention(bias=True, by_token=False))
    feeds = inputs(6, 6, bias, by_token=False)
    with engine(graph) as run:
        if masked:  # what was put in its place has no heads
            with pytest.raises(EngineError, match="Reshape"):
                run(feeds)
        else:
            assert np.isfinite(run(feeds)["out"]).all()


def test_other_components_and_16_bit_graphs_stay_as_they_are() -> None:
    graph = attention(bias=True, by_token=False)
    graph.component.name = "text_block"  # type: ignore[misc]
    assert linear_attention.use_linear_attention(graph) is graph
    half = dataclasses.replace(attention(bias=True, by_token=False), dtype="float16")
    assert linear_attention.use_linear_attention(half) is half
