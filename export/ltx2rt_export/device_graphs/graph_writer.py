"""Write an ONNX graph node by node, as its formula reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ltx2rt.engine import TensorSpec
from ltx2rt_export.component import Component
from ltx2rt_export.graph import DTYPE_NAMES, ExportedGraph

OPSET = 20
IR_VERSION = 10

#: dtype name -> ONNX element type; pixels of 8 bits are outputs of these graphs alone
ELEMENTS = {name: element for element, name in DTYPE_NAMES.items()} | {"uint8": TensorProto.UINT8}


class GraphWriter:
    """Names of values go in, the name of the result comes out."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, TensorProto] = {}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output."""
        output = f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def number(self, value: float) -> str:
        """A float32 constant."""
        return self._constant(f"number_{value:.9g}", np.float32(value))

    def numbers(self, values: Sequence[float], shape: Sequence[int]) -> str:
        """Float32 constants as one tensor."""
        name = f"numbers_{'_'.join(f'{v:.9g}' for v in values)}"
        return self._constant(name, np.array(values, np.float32).reshape(shape))

    def integers(self, *values: int) -> str:
        """An int64 vector, for axes and places."""
        return self._constant(f"integers_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def cast(self, value: str, dtype: str) -> str:
        """A value in another dtype."""
        return self.op("Cast", value, to=ELEMENTS[dtype])

    def finish(
        self, name: str, inputs: Sequence[TensorSpec], outputs: Mapping[TensorSpec, str]
    ) -> ExportedGraph:
        """The graph.

        Args:
            outputs: boundary -> the value that it is.
        """
        renamed = {value: spec.name for spec, value in outputs.items()}  # TensorRT has no 8-bit
        for node in self._nodes:  # numbers but outputs, so no node may copy them
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]
        graph = helper.make_graph(
            self._nodes,
            name,
            [_value(spec) for spec in inputs],
            [_value(spec) for spec in outputs],
            list(self._constants.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model)
        component = Component(
            name=name,
            module=None,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            weights={},
            trace={},
        )
        return ExportedGraph(component, model, (), frozenset())

    def _constant(self, name: str, value: Any) -> str:
        self._constants.setdefault(name, numpy_helper.from_array(np.asarray(value), name))
        return name


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, ELEMENTS[spec.dtype], list(spec.shape))
