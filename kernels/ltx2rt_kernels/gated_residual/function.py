"""Gated residual in plain operators; float32 inside, rounded once, like the kernel."""

from __future__ import annotations

import onnx
from onnx import helper

from ltx2rt_kernels.function import make_function, wide
from ltx2rt_kernels.gated_residual.spec import GATHERED
from ltx2rt_kernels.spec import Operator


def build(operator: Operator) -> onnx.FunctionProto:
    """Body of `GatedResidual` and `GatedResidualPerToken`."""
    node = helper.make_node
    if operator is GATHERED:
        rows = node("Gather", ["gate", "index"], ["rows"], axis=0)
    else:
        rows = node("Identity", ["gate"], ["rows"])
    return make_function(
        operator,
        [
            rows,
            *(wide(name) for name in ("x", "y", "rows")),
            node("Mul", ["rows_wide", "y_wide"], ["gated"]),
            node("Add", ["x_wide", "gated"], ["sum"]),
            node("CastLike", ["sum", "x"], ["out"]),
        ],
    )
