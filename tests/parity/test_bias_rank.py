"""Biases of the rank that engines fuse."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from ltx2rt_export.engines.bias_rank import with_wide_biases
from ltx2rt_export.graph import ExportedGraph


def exported(nodes: list[onnx.NodeProto], inputs: dict[str, list[Any]]) -> ExportedGraph:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", values, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    component: Any = SimpleNamespace(inputs=(SimpleNamespace(name="x"),))
    return ExportedGraph(component=component, model=model, weights={}, transposed=frozenset())


def shapes(graph: ExportedGraph) -> dict[str, list[int | str]]:
    return {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in graph.model.graph.input
    }


def test_a_bias_of_a_linear_gets_its_rank() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Mul", ["a", "norm"], ["y"]),
    ]
    inputs: dict[str, list[Any]] = {"x": ["B", "T", 4], "w": [4, 6], "b": [6], "norm": [6]}
    graph = exported(nodes, inputs)
    wide = with_wide_biases(graph)
    assert shapes(wide) == {"x": ["B", "T", 4], "w": [4, 6], "b": [1, 1, 6], "norm": [6]}
    assert shapes(graph)["b"] == [6]
    rng = np.random.default_rng(0)
    feeds = {n: rng.standard_normal([2 if isinstance(d, str) else d for d in s]).astype(np.float32)
             for n, s in inputs.items()}  # fmt: skip
    (want,) = ort.InferenceSession(graph.model.SerializeToString()).run(None, feeds)
    feeds["b"] = feeds["b"].reshape(1, 1, 6)
    (found,) = ort.InferenceSession(wide.model.SerializeToString()).run(None, feeds)
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("other", ["Mul", "Concat"])
def test_a_bias_that_is_used_otherwise_stays(other: str) -> None:
    attributes = {"axis": 0} if other == "Concat" else {}
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"]),
        helper.make_node(other, ["b", "b"], ["c"], **attributes),
        helper.make_node("Shape", ["c"], ["s"]),
        helper.make_node("Identity", ["a"], ["y"]),
    ]
    assert shapes(with_wide_biases(exported(nodes, {"x": ["B", 3, 6], "b": [6]})))["b"] == [6]
