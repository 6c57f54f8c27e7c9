"""One side of a comparison: a graph on ONNX Runtime on a CPU, in float32."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto

from ltx2rt.backends.onnxruntime import OrtOptions, failure, new_session
from ltx2rt.engine import Array
from ltx2rt.weights.floats import as_float32
from ltx2rt_export.bisect.float32_graph import float32_graph, unpack_int4
from ltx2rt_export.bisect.marks import marked
from ltx2rt_export.graph import DTYPE_NAMES

#: types of weights that numpy does not have, and that stay what they are
CODES = (TensorProto.FLOAT8E4M3FN,)


class OrtSide:
    """What the reference is. As the suspect too, it compares two graphs.

    Args:
        component: named in errors.
        model: a graph of `marks.typed`.
        arrays: inputs and weights, in the graph's dtypes (bfloat16: bit patterns).

    Raises:
        EngineError: ONNX Runtime refuses the graph, or fails.
        UnsupportedError: the graph holds operators of TensorRT alone.
    """

    def __init__(
        self, component: str, model: onnx.ModelProto, arrays: Mapping[str, Array], threads: int = 0
    ) -> None:
        self.component, self.model, self._arrays = component, model, arrays
        # as exported: merged nodes would compute something else
        self._options = OrtOptions(threads=threads, full_optimization=False)

    def values(self, tensors: Sequence[str]) -> dict[str, Array]:
        """These tensors of the graph, floats as float32."""
        feeds = {
            value.name: _ort_value(value, self._arrays[value.name])
            for value in self.model.graph.input
        }
        return self._run(float32_graph(marked(self.model, tensors)), feeds, tensors)

    def alone(self, model: onnx.ModelProto, inputs: Mapping[str, Array]) -> Array:
        """The only output of a graph of `case.cut`."""
        feeds = {n: ort.OrtValue.ortvalue_from_numpy(a) for n, a in inputs.items()}
        output = model.graph.output[0].name
        return self._run(float32_graph(model), feeds, [output])[output]

    def _run(
        self, model: onnx.ModelProto, feeds: Mapping[str, Any], tensors: Sequence[str]
    ) -> dict[str, Array]:
        session = new_session(model.SerializeToString(), self.component, {}, self._options)
        used = {i.name for i in session.get_inputs()}
        try:
            found = session.run_with_ort_values(
                list(tensors), {n: v for n, v in feeds.items() if n in used}
            )
        except Exception as error:  # its exceptions share no narrower base
            raise failure(f"failed in {self.component}", error) from error
        return {name: value.numpy() for name, value in zip(tensors, found, strict=True)}


def _ort_value(value: onnx.ValueInfoProto, array: Array) -> Any:
    """What a graph in float32 takes for an input of the graph as it was."""
    kind = value.type.tensor_type.elem_type
    array = unpack_int4(array) if kind == TensorProto.INT4 else array
    dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
    if all(dims):  # a weight: graphs of engines may take it in another rank than it is loaded in
        array = array.reshape(-1)[: math.prod(dims)].reshape(dims)
    array = np.ascontiguousarray(as_float32(array, DTYPE_NAMES[kind]))
    if kind in CODES:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, kind)
    return ort.OrtValue.ortvalue_from_numpy(array)
