"""Replace parts of an ONNX graph: new nodes take over the names of the values they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx

from ltx2rt_export.custom_ops.index import GraphIndex
from ltx2rt_kernels.function import function_of, make_node
from ltx2rt_kernels.spec import DOMAIN, Operator


class Rewriter:
    """Edits a model in place; `finish` leaves it sorted, without dead nodes, with the bodies."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.index = GraphIndex.of(model.graph)
        self._operators: dict[str, Operator] = {}
        self._initializers = {t.name for t in model.graph.initializer}

    def refresh(self) -> None:
        """Index the graph again, after changes."""
        self.index = GraphIndex.of(self.model.graph)

    def constant(self, *values: int) -> str:
        """Name of an int64 initializer `[len(values)]`, made once."""
        name = "ltx2rt.ints." + "_".join(str(v) for v in values)
        if name not in self._initializers:
            self._initializers.add(name)
            tensor = onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [len(values)], values)
            self.model.graph.initializer.append(tensor)
        return name

    def scalar(self, value: int | float) -> str:
        """Name of an initializer of one number without axes: int64 or float32; made once."""
        kind = onnx.TensorProto.INT64 if isinstance(value, int) else onnx.TensorProto.FLOAT
        name = f"ltx2rt.{'int' if isinstance(value, int) else 'float'}.{value}"
        if name not in self._initializers:
            self._initializers.add(name)
            tensor = onnx.helper.make_tensor(name, kind, [], [value])
            self.model.graph.initializer.append(tensor)
        return name

    def node(self, node: onnx.NodeProto) -> None:
        """Add a node of another domain, or one with graphs inside; its outputs are new values."""
        self.model.graph.node.append(node)

    def call(
        self,
        operator: Operator,
        inputs: Sequence[str],
        outputs: Sequence[str],
        **attributes: int | float,
    ) -> None:
        """Add a node of a custom operator; whatever made its outputs goes."""
        self._operators[operator.node] = operator
        self._take(outputs)
        self.model.graph.node.append(make_node(operator, inputs, outputs, outputs[0], **attributes))

    def standard(
        self, op_type: str, inputs: Sequence[str], output: str, **attributes: int | Sequence[int]
    ) -> None:
        """Add a standard node; whatever made its output goes."""
        self._take([output])
        given: dict[str, Any] = dict(attributes)
        node = onnx.helper.make_node(op_type, inputs, [output], name=output, **given)
        self.model.graph.node.append(node)

    def _take(self, outputs: Sequence[str]) -> None:
        """Rename values that are taken over; their producers die with nobody to read them."""
        for name in outputs:
            if (old := self.index.producers.get(name)) is not None:
                old.output[list(old.output).index(name)] = f"{name}.replaced"

    def finish(self) -> None:
        """Sort, drop what nobody reads, add the operators' functions."""
        graph, model = self.model.graph, self.model
        kept = _sorted_live_nodes(graph)
        del graph.node[:]
        graph.node.extend(kept)
        read = {name for node in kept for name in _reads(node)} | {v.name for v in graph.output}
        external = onnx.TensorProto.EXTERNAL
        tensors = [t for t in graph.initializer if t.name in read or t.data_location == external]
        del graph.initializer[:]
        graph.initializer.extend(tensors)
        known = {(f.domain, f.name) for f in model.functions}
        model.functions.extend(
            function_of(operator)
            for node, operator in sorted(self._operators.items())
            if (DOMAIN, node) not in known
        )
        if DOMAIN not in {entry.domain for entry in model.opset_import}:
            model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))


def _reads(node: onnx.NodeProto) -> set[str]:
    """Values that a node reads, those that graphs inside it read included."""
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            names |= {name for inner in attribute.g.node for name in _reads(inner)}
    return names


def _sorted_live_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes that outputs depend on, each after those it reads, otherwise in graph order."""
    producers = {name: i for i, node in enumerate(graph.node) for name in node.output}
    order: list[int] = []
    done: set[int] = set()
    stack = [producers[v.name] for v in reversed(graph.output) if v.name in producers]
    while stack:
        i = stack[-1]
        needed = {producers[n] for n in _reads(graph.node[i]) if n in producers} - done
        if i in done or not needed:
            stack.pop()
            if i not in done:
                done.add(i)
                order.append(i)
        else:
            stack += sorted(needed, reverse=True)
    return [graph.node[i] for i in order]
