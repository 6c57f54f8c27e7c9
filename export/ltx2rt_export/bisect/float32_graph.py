"""Make an ONNX graph one that ONNX Runtime runs on a CPU: every 16-bit float becomes a float32, and
4-bit integers become bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ltx2rt.engine import Array
from ltx2rt.errors import UnsupportedError

REPLACED = {
    TensorProto.FLOAT16: TensorProto.FLOAT,
    TensorProto.BFLOAT16: TensorProto.FLOAT,
    TensorProto.INT4: TensorProto.INT8,
}

#: attributes that name an element type
TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")

#: operators that no CPU has
UNKNOWN_DOMAINS = ("trt",)


def float32_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in the types that a CPU computes in.

    Raises:
        UnsupportedError: it holds operators of TensorRT alone.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for function in copy.functions:
        _convert_nodes(function.node)
    _convert_graph(copy.graph)
    return copy


def unpack_int4(codes: Array) -> Array:
    """Signed values of packed bytes, first element in the low nibble, flat."""
    flat = codes.reshape(-1)
    nibbles = np.stack([flat & 15, flat >> 4], axis=-1).reshape(-1).astype(np.int8)
    return np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.int8)


def _convert_graph(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.HasField("tensor_type"):  # results of functions may have no type
            tensor = value.type.tensor_type
            tensor.elem_type = REPLACED.get(tensor.elem_type, tensor.elem_type)
    for initializer in graph.initializer:
        _convert_tensor(initializer)
    _convert_nodes(graph.node)


def _convert_nodes(nodes: Any) -> None:
    for node in nodes:
        if node.domain in UNKNOWN_DOMAINS:
            raise UnsupportedError(
                f"ONNX Runtime has no {node.op_type}, an operator of TensorRT alone (NVFP4); a "
                "bundle of another precision has none of it."
            )
        for attribute in node.attribute:
            if attribute.name in TYPE_ATTRIBUTES:
                attribute.i = REPLACED.get(attribute.i, attribute.i)
            for tensor in _tensors(attribute):
                _convert_tensor(tensor)
            if attribute.HasField("g"):
                _convert_graph(attribute.g)
            for graph in attribute.graphs:
                _convert_graph(graph)


def _tensors(attribute: onnx.AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors


def _convert_tensor(tensor: TensorProto) -> None:
    if tensor.data_type not in REPLACED:
        return
    if tensor.data_type == TensorProto.INT4:
        values: Array = numpy_helper.to_array(tensor).astype(np.int8)
    else:
        values = numpy_helper.to_array(tensor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
