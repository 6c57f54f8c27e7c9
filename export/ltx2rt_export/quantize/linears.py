"""Find the linears of an exported graph and put other nodes in their place.

A linear is `MatMul(x, weight)` with a weight input `[in, out]`, followed by `Add(bias)` if it has
one (`onnx.fold_weight_transposes` made it so).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import NodeProto, TensorProto

from ltx2rt.errors import InternalError
from ltx2rt_export.graph import DTYPE_NAMES, ExportedGraph

#: domain of ONNX Runtime's own operators
MICROSOFT = "com.microsoft"

#: dtype -> ONNX element type; codes of activations are unsigned, weights never
ELEM_TYPES = {name: elem for elem, name in DTYPE_NAMES.items()} | {"uint8": TensorProto.UINT8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """One linear of a graph.

    Attributes:
        module: official name inside the component (`attn1.to_q`).
        x: value it reads, `[..., in]`; linears that read the same value can share its conversion.
        bias: None when it has none.
        output: value it makes, `[..., out]`.
    """

    module: str
    x: str
    bias: str | None
    output: str
    in_features: int
    out_features: int

    @property
    def weight(self) -> str:
        return f"{self.module}.weight"


#: A new weight input: name, dtype (`DTYPE_NAMES`), shape in the graph.
WeightInput = tuple[str, str, tuple[int, ...]]


class Emitter:
    """Appends nodes and initializers to a graph that is being rewritten.

    Args:
        taken: names of values that exist already.
    """

    def __init__(self, dtype: str, taken: Collection[str]) -> None:
        self.dtype = dtype
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.inputs: list[WeightInput] = []
        self.shared: dict[tuple[str, str], tuple[str, ...]] = {}
        self._taken = set(taken)

    def op(
        self,
        kind: str,
        inputs: Sequence[str],
        name: str,
        *,
        outputs: Sequence[str] = (),
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Append a node; returns its first output: `name`, if that is free."""
        outputs = tuple(outputs) or (self._free(name),)
        node = onnx.helper.make_node(
            kind, list(inputs), list(outputs), name=f"{outputs[0]}/{kind}", domain=domain
        )
        node.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in attributes.items())
        self.nodes.append(node)
        return outputs[0]

    def cast(self, value: str, dtype: str, source: str, name: str) -> str:
        """`value` in `dtype`; no node where it has it."""
        return value if dtype == source else self.op("Cast", [value], name, to=ELEM_TYPES[dtype])

    def constant(self, name: str, values: ArrayLike, dtype: str = "float32") -> str:
        """An initializer, made once for each name; float values are rounded to `dtype`."""
        if name not in self.initializers:
            array = np.asarray(values)
            self.initializers[name] = onnx.helper.make_tensor(
                name, ELEM_TYPES[dtype], array.shape, array.reshape(-1).tolist()
            )
        return name

    def weight_input(self, name: str, dtype: str, *shape: int) -> str:
        """A weight that the runtime binds."""
        self.inputs.append((name, dtype, shape))
        return name

    def finish(self, linear: Linear, value: str, *, round_first: bool = False) -> None:
        """Add the bias to a float32 value and give the result the linear's name, in the graph's
        dtype: rounded once after the bias, or before it and again after it.
        """
        name, bias = linear.module, linear.bias
        if round_first and bias is not None:
            value = self.cast(value, self.dtype, "float32", f"{name}.product")
            self.op("Add", [value, bias], linear.output, outputs=[linear.output])
            return
        if bias is not None:
            bias = self.cast(bias, "float32", self.dtype, f"{name}.bias_float32")
            value = self.op("Add", [value, bias], f"{name}.biased")
        if self.dtype == "float32":
            self.nodes[-1].output[0] = linear.output
        else:
            to = ELEM_TYPES[self.dtype]
            self.op("Cast", [value], linear.output, outputs=[linear.output], to=to)

    def _free(self, name: str) -> str:
        free, number = name, 0
        while free in self._taken:
            number += 1
            free = f"{name}_{number}"
        self._taken.add(free)
        return free


def find_linears(graph: ExportedGraph) -> dict[str, Linear]:
    """Module name -> linear, for every weight that the graph takes as `[in, out]`."""
    model = graph.model.graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.input}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: dict[str, Linear] = {}
    for name in graph.transposed:
        nodes = readers.get(name, [])
        if len(nodes) != 1 or nodes[0].op_type != "MatMul" or nodes[0].input[1] != name:
            continue
        module, (matmul,) = name.removesuffix(".weight"), nodes
        bias: str | None = f"{module}.bias"
        adds = readers.get(str(bias), [])
        output = matmul.output[0]
        if not adds:
            bias = None
        elif len(adds) == 1 and adds[0].op_type == "Add" and output in adds[0].input:
            output = adds[0].output[0]
        else:
            continue
        in_features, out_features = shapes[name]
        found[module] = Linear(
            module=module,
            x=matmul.input[0],
            bias=bias,
            output=output,
            in_features=in_features,
            out_features=out_features,
        )
    return found


def replace_linears(
    graph: ExportedGraph,
    modules: Collection[str],
    emit: Callable[[Emitter, Linear], None],
    *,
    opset: int | None = None,
    untransposed: bool = False,
) -> ExportedGraph:
    """A copy of `graph` in which `emit` wrote each of `modules` anew.

    `emit` makes `linear.output` from `linear.x` in the graph's dtype, and names the weight inputs
    that it reads in place of `linear.weight`; the bias input stays.

    Args:
        opset: raise the model's opset to it.
        untransposed: the runtime binds the new weights as they are stored.

    Raises:
        InternalError: the graph has no such linear.
    """
    linears = find_linears(graph)
    if missing := sorted(set(modules) - set(linears)):
        raise InternalError(f"{graph.component.name} has no linears {', '.join(missing)}")
    chosen = {linears[m].weight: linears[m] for m in modules}
    dropped = {linear.output for linear in chosen.values() if linear.bias is not None}
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    taken = {name for node in model.graph.node for name in node.output}
    emitter = Emitter(graph.dtype, taken | {v.name for v in model.graph.input})
    for node in model.graph.node:
        linear = chosen.get(node.input[1]) if node.op_type == "MatMul" else None
        if linear is not None:
            emit(emitter, linear)
        elif node.output[0] not in dropped:
            emitter.nodes.append(node)
    nodes = list(emitter.nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(emitter.initializers.values())
    kept = [v for v in model.graph.input if v.name not in chosen]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, ELEM_TYPES[dtype], shape)
        for name, dtype, shape in emitter.inputs
    )
    if opset is not None:
        _set_opset(model, opset)
    known = {entry.domain for entry in model.opset_import}
    for domain in sorted({node.domain for node in emitter.nodes} - known):
        model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    return dataclasses.replace(
        graph,
        model=model,
        weights=_weights(graph, chosen, emitter.inputs),
        transposed=graph.transposed - (set(chosen) if untransposed else set()),
    )


def weight_inputs(graph: ExportedGraph) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every weight that the graph takes as an input."""
    names = set(graph.weights)
    return {
        v.name: (
            DTYPE_NAMES[v.type.tensor_type.elem_type],
            tuple(d.dim_value for d in v.type.tensor_type.shape.dim),
        )
        for v in graph.model.graph.input
        if v.name in names
    }


def _weights(
    graph: ExportedGraph, chosen: Mapping[str, Linear], inputs: Sequence[WeightInput]
) -> tuple[str, ...]:
    kept = [name for name in graph.weights if name not in chosen]
    return (*kept, *(name for name, _, _ in inputs))


def _set_opset(model: onnx.ModelProto, version: int) -> None:
    for entry in model.opset_import:
        if entry.domain == "":
            entry.version = max(entry.version, version)
