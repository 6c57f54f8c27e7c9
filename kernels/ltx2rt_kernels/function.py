"""ONNX nodes of the operators and the functions behind them, in plain operators.

A node names its plugin, so TensorRT takes the plugin where it is registered; ONNX Runtime and
TensorRT-RTX inline the function.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import onnx
from onnx import helper

from ltx2rt_kernels.errors import KernelError
from ltx2rt_kernels.spec import DOMAIN, E4M3_MAX, LEAST_TOKEN_AMAX, Operator

OPSET = 20

#: scale of QuantizeLinear
STEP = 2.0**-8

#: what the TensorRT parser looks for on a node whose plugin is to be preferred to its function
PLUGIN_ATTRIBUTES = {"plugin_namespace": DOMAIN, "plugin_version": "1"}


def make_node(
    operator: Operator,
    inputs: Sequence[str],
    outputs: Sequence[str],
    name: str = "",
    **attributes: int | float,
) -> onnx.NodeProto:
    """The node; attributes that are not given take their default, all are written.

    TensorRT hands attributes to a plugin by position, so none may be left out.

    Raises:
        KernelError: an attribute is unknown.
    """
    if unknown := sorted(attributes.keys() - operator.attributes.keys()):
        known = ", ".join(operator.attributes) or "none"
        raise KernelError(f"{operator.node} has no attribute {', '.join(unknown)}; it has: {known}")
    values: dict[str, Any] = {**PLUGIN_ATTRIBUTES}
    values |= {n: type(v)(attributes.get(n, v)) for n, v in operator.attributes.items()}
    return helper.make_node(operator.node, inputs, outputs, name=name, domain=DOMAIN, **values)


def make_function(operator: Operator, nodes: Sequence[onnx.NodeProto]) -> onnx.FunctionProto:
    """A function with the operator's name, tensors and attributes, and this body.

    The body refers to an attribute with `attribute`.
    """
    return helper.make_function(
        DOMAIN,
        operator.node,
        inputs=[t.name for t in operator.inputs],
        outputs=[t.name for t in operator.outputs],
        nodes=nodes,
        opset_imports=[helper.make_opsetid("", OPSET)],
        attributes=[*PLUGIN_ATTRIBUTES, *operator.attributes],
    )


def attribute(operator: Operator, name: str, output: str) -> onnx.NodeProto:
    """A Constant that holds an attribute of the function, a scalar."""
    is_float = isinstance(operator.attributes[name], float)
    node = helper.make_node("Constant", [], [output])
    reference = node.attribute.add()
    reference.name = "value_float" if is_float else "value_int"
    reference.type = onnx.AttributeProto.FLOAT if is_float else onnx.AttributeProto.INT
    reference.ref_attr_name = name
    return node


def ints(name: str, values: Sequence[int]) -> onnx.NodeProto:
    """A constant list of int64."""
    return helper.make_node("Constant", [], [name], value_ints=list(values))


def wide(name: str) -> onnx.NodeProto:
    """`<name>_wide`: the float32 copy of a tensor."""
    return helper.make_node("Cast", [name], [f"{name}_wide"], to=onnx.TensorProto.FLOAT)


def rms_norm(x: str) -> list[onnx.NodeProto]:
    """`<x>_unit`, float32: `x / sqrt(mean(x^2) + epsilon)` over the last axis.

    Reads the constants `epsilon` and `last_axis`.
    """
    node = helper.make_node
    return [
        wide(x),
        node("Mul", [f"{x}_wide", f"{x}_wide"], [f"{x}_squares"]),
        node("ReduceMean", [f"{x}_squares", "last_axis"], [f"{x}_mean"], keepdims=1),
        node("Add", [f"{x}_mean", "epsilon"], [f"{x}_power"]),
        node("Sqrt", [f"{x}_power"], [f"{x}_rms"]),
        node("Div", [f"{x}_wide", f"{x}_rms"], [f"{x}_unit"]),
    ]


def quantize_tokens(x: str, codes: str, amax: str) -> list[onnx.NodeProto]:
    """E4M3 codes `x * 448 / amax` of a float32 tensor and the maximum of every token.

    Reads the constant `last_axis`. The scale of QuantizeLinear is a constant power of two, which is
    what TensorRT fuses; the rest is multiplied before.
    """
    node = helper.make_node

    def constant(name: str, value: float) -> onnx.NodeProto:
        return node("Constant", [], [name], value_float=value)

    zero = helper.make_tensor("zero", onnx.TensorProto.FLOAT8E4M3FN, [], [0.0])
    return [
        constant("tiny", LEAST_TOKEN_AMAX),
        constant("full_range", E4M3_MAX * STEP),
        constant("step", STEP),
        node("Constant", [], ["zero"], value=zero),
        node("Abs", [x], ["magnitude"]),
        node("ReduceMax", ["magnitude", "last_axis"], ["maximum"], keepdims=1),
        node("Max", ["maximum", "tiny"], [amax]),
        node("Div", ["full_range", amax], ["inverse"]),
        node("Mul", [x, "inverse"], ["stepped"]),
        node("QuantizeLinear", ["stepped", "step", "zero"], [codes]),
    ]


def function_of(operator: Operator) -> onnx.FunctionProto:
    """The operator's function, from `<package>/function.py`."""
    module = importlib.import_module(f"ltx2rt_kernels.{operator.package}.function")
    function: onnx.FunctionProto = module.build(operator)
    return function
