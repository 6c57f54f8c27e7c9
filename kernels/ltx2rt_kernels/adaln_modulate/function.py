"""Adaptive layer norm in plain operators; float32 inside, rounded once, like the kernel."""

from __future__ import annotations

import onnx
from onnx import helper

from ltx2rt_kernels.adaln_modulate.spec import is_gathered, is_quantized
from ltx2rt_kernels.function import (
    attribute,
    ints,
    make_function,
    quantize_tokens,
    rms_norm,
    wide,
)
from ltx2rt_kernels.spec import Operator


def build(operator: Operator) -> onnx.FunctionProto:
    """Body of the four operators."""
    node = helper.make_node
    nodes = [attribute(operator, "epsilon", "epsilon"), ints("last_axis", [-1]), *rms_norm("x")]
    for name in ("scale", "shift"):
        if is_gathered(operator):
            nodes.append(node("Gather", [name, "index"], [f"{name}_rows"], axis=0))
        else:
            nodes.append(node("Identity", [name], [f"{name}_rows"]))
        nodes.append(wide(f"{name}_rows"))
    nodes += [
        node("Constant", [], ["one"], value_float=1.0),
        node("Add", ["scale_rows_wide", "one"], ["factor"]),
        node("Mul", ["x_unit", "factor"], ["scaled"]),
        node("Add", ["scaled", "shift_rows_wide"], ["modulated"]),
    ]
    if is_quantized(operator):
        nodes += quantize_tokens("modulated", "codes", "amax")
    else:
        nodes.append(node("CastLike", ["modulated", "x"], ["out"]))
    return make_function(operator, nodes)
