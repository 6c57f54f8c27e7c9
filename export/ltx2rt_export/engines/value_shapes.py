"""The size of every value of a graph whose inputs have sizes: node after node, with the values of
the small integers that shapes are made of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
import onnx.inliner
from onnx import NodeProto, TensorProto, TypeProto
from onnx.reference import ReferenceEvaluator

from ltx2rt.engine import Array
from ltx2rt.errors import InternalError
from ltx2rt_export.graph import INJECTED

#: values up to this many elements are computed
SMALL = 4096

#: bytes of an element, where it is not one
ITEM_BYTES: dict[int, int] = {
    TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2, TensorProto.INT64: 8,
    TensorProto.INT32: 4, TensorProto.DOUBLE: 8,
}  # fmt: skip

#: operators that shapes are computed with
ON_SHAPES = frozenset({
    "Abs", "Add", "Cast", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "Div", "Equal",
    "Expand", "Floor", "Gather", "Greater", "Identity", "Less", "Max", "Min", "Mod", "Mul", "Neg",
    "Not", "Range", "ReduceProd", "Reshape", "Shape", "Size", "Slice", "Split", "Squeeze", "Sub",
    "Unsqueeze", "Where",
})  # fmt: skip


class ValueShapes:
    """Walks a graph once.

    Args:
        model: local functions are inlined first.
        shapes: of its inputs.

    Attributes:
        nodes: of the inlined graph.
        inputs, outputs: its boundary, weights left out.
        elements, bytes: of every value.

    Raises:
        InternalError: the shape of a value cannot be told.
    """

    def __init__(self, model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
        model = onnx.inliner.inline_local_functions(model)
        graph = model.graph
        self._imports = list(model.opset_import)
        self._opsets = {o.domain: o.version for o in model.opset_import}
        self._types: dict[str, TypeProto] = {}
        self._values: dict[str, Array] = {}
        self.nodes = list(graph.node)
        self.inputs = [v.name for v in graph.input if v.name in shapes]
        self.outputs = [v.name for v in graph.output]
        for value in graph.input:
            kind = value.type.tensor_type.elem_type
            dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
            self._know(value.name, kind, shapes.get(value.name, tuple(dims)))
        for tensor in graph.initializer:
            self._know(tensor.name, tensor.data_type, tuple(tensor.dims))
            external = any(e.value == INJECTED for e in tensor.external_data)
            if not external and math.prod(tensor.dims) <= SMALL:
                self._values[tensor.name] = onnx.numpy_helper.to_array(tensor)
        for node in self.nodes:
            self._step(node)
        self.elements = {name: math.prod(self.shape(name)) for name in self._types}
        self.bytes = {
            name: count * ITEM_BYTES.get(self._types[name].tensor_type.elem_type, 1)
            for name, count in self.elements.items()
        }

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a value."""
        return tuple(d.dim_value for d in self._types[name].tensor_type.shape.dim)

    def _know(self, name: str, kind: int, shape: tuple[int, ...]) -> None:
        if kind == TensorProto.BFLOAT16:  # as large, and every operator takes it
            kind = TensorProto.FLOAT16
        self._types[name] = onnx.helper.make_tensor_type_proto(kind, shape)

    def _step(self, node: NodeProto) -> None:
        given = [name for name in node.input if name]
        if node.op_type == "Shape":
            begin, end = (_attribute(node, n, d) for n, d in (("start", 0), ("end", None)))
            self._value(node.output[0], np.asarray(self.shape(node.input[0])[begin:end], np.int64))
            return
        if node.op_type in ON_SHAPES and all(name in self._values for name in given):
            results = ReferenceEvaluator(node, opsets=self._opsets).run(
                None, {name: self._values[name] for name in given}
            )
            for name, result in zip(node.output, results, strict=True):
                self._value(name, np.asarray(result))
            return
        schema = onnx.defs.get_schema(node.op_type, self._opsets[node.domain], node.domain)
        found = onnx.shape_inference.infer_node_outputs(
            schema,
            node,
            {name: self._types[name] for name in given},
            {n: onnx.numpy_helper.from_array(self._values[n]) for n in given if n in self._values},
            opset_imports=self._imports,
        )
        for name in filter(None, node.output):
            kind = found.get(name)
            dims = kind.tensor_type.shape.dim if kind is not None else ()
            if kind is None or not all(d.HasField("dim_value") for d in dims):
                raise InternalError(f"the shape of {name} ({node.op_type}) cannot be told")
            self._know(name, kind.tensor_type.elem_type, tuple(d.dim_value for d in dims))

    def _value(self, name: str, value: Array) -> None:
        self._know(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        if value.size <= SMALL:
            self._values[name] = value


def _attribute(node: NodeProto, name: str, default: int | None) -> int | None:
    return next((a.i for a in node.attribute if a.name == name), default)
