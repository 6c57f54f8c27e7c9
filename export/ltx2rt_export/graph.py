"""A component's ONNX graph: what it says beside the model, and how it takes its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from ltx2rt_export.component import Component

#: location written for injected initializers; the runtime never opens a file of this name
INJECTED = "injected-by-ltx2rt"

HALF_FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16)

#: ONNX element type -> dtype name of manifests and engines
DTYPE_NAMES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.BOOL: "bool",
    TensorProto.FLOAT8E4M3FN: "float8_e4m3fn",
    TensorProto.FLOAT4E2M1: "float4_e2m1",
    TensorProto.INT8: "int8",
    TensorProto.INT4: "int4",
}


@dataclass(frozen=True, slots=True)
class ExportedGraph:
    """A component's graph.

    Attributes:
        component: its boundary has the dtypes of this graph.
        model: the ONNX model; weights are inputs or external initializers, by their state-dict
            names.
        weights: state-dict names in graph order.
        transposed: weights that the graph wants as `[in, out]` although files hold `[out, in]`.
        dtype: of weights and activations that the module does not hold in float32 itself.
    """

    component: Component
    model: onnx.ModelProto
    weights: tuple[str, ...]
    transposed: frozenset[str]
    dtype: str = "float32"


#: component and dtype to graph: `export_component`, or a cache before it
Export = Callable[[Component, str], ExportedGraph]


def with_dtype(component: Component, dtype: str) -> Component:
    """The component with float inputs of `dtype`, but for those that always are float32."""
    exact = component.options.get("float32_inputs", ())
    return dataclasses.replace(
        component,
        inputs=tuple(
            dataclasses.replace(spec, dtype=dtype)
            if spec.dtype == "float32" and spec.name not in exact
            else spec
            for spec in component.inputs
        ),
    )


def fold_weight_transposes(model: onnx.ModelProto, weights: Sequence[str]) -> frozenset[str]:
    """Remove `Transpose(perm=[1, 0])` of weight inputs: the graph then takes those weights as
    `[in, out]`.

    A transposed weight input costs a kernel on every call; the runtime lays the weight out once
    instead.
    """
    graph = model.graph
    uses: dict[str, list[onnx.NodeProto]] = {name: [] for name in weights}
    for node in graph.node:
        for name in node.input:
            if name in uses:
                uses[name].append(node)
    folded: set[str] = set()
    renamed: dict[str, str] = {}
    for name, nodes in uses.items():
        if nodes and all(
            n.op_type == "Transpose" and list(n.attribute[0].ints) == [1, 0] for n in nodes
        ):
            folded.add(name)
            renamed.update({n.output[0]: name for n in nodes})
    kept = [n for n in graph.node if not (n.op_type == "Transpose" and n.input[0] in folded)]
    for node in kept:
        for i, name in enumerate(node.input):
            if name in renamed:
                node.input[i] = renamed[name]
    del graph.node[:]
    graph.node.extend(kept)
    for value in graph.input:
        if value.name in folded:
            dims = value.type.tensor_type.shape.dim
            dims[0].dim_value, dims[1].dim_value = dims[1].dim_value, dims[0].dim_value
    return frozenset(folded)


def inputs_to_initializers(model: onnx.ModelProto, weights: Sequence[str]) -> None:
    """Turn weight inputs into initializers whose values the runtime injects."""
    graph = model.graph
    names = set(weights)
    values = {v.name: v for v in graph.input if v.name in names}
    kept = [v for v in graph.input if v.name not in names]
    del graph.input[:]
    graph.input.extend(kept)
    for name in weights:
        tensor_type = values[name].type.tensor_type
        tensor = TensorProto(
            name=name,
            data_type=tensor_type.elem_type,
            dims=[d.dim_value for d in tensor_type.shape.dim],
            data_location=TensorProto.EXTERNAL,
        )
        location = tensor.external_data.add()
        location.key, location.value = "location", INJECTED
        graph.initializer.append(tensor)
