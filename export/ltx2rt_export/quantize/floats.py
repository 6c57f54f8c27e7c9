"""A graph in another float dtype: what a 16-bit graph computes, without its rounding."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
from onnx import TensorProto

from ltx2rt.engine import TensorSpec
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.quantize.linears import ELEM_TYPES


def substitute_float(graph: ExportedGraph, dtype: str) -> ExportedGraph:
    """The same nodes with values of `graph.dtype` in `dtype` instead; casts between the two stay.

    Constants keep the value that the graph's own dtype gave them.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    old, new = ELEM_TYPES[graph.dtype], ELEM_TYPES[dtype]
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == old:
            value.type.tensor_type.elem_type = new
    for tensor in model.graph.initializer:
        if tensor.data_type != old:
            continue
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.data_type = new
            continue
        values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        flat = values.reshape(-1).tolist()
        tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, new, values.shape, flat))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == old:
                attribute.i = new

    def replaced(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(
            dataclasses.replace(s, dtype=dtype) if s.dtype == graph.dtype else s for s in specs
        )

    component = dataclasses.replace(
        graph.component,
        inputs=replaced(graph.component.inputs),
        outputs=replaced(graph.component.outputs),
    )
    return dataclasses.replace(graph, component=component, model=model, dtype=dtype)
