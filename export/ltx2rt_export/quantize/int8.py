"""INT8 weight-only linears: a scale an output channel, activations untouched.

    out = (x @ (w * 2^-7)) * (weight_scale * 2^7) + bias      float32 after the GEMM, rounded once

The constant keeps the sum in float16's range; the scale is multiplied after the GEMM, so that the
GEMM can read the codes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.quantize.linears import Emitter, Linear, replace_linears

if TYPE_CHECKING:
    from torch import Tensor

STEP = 2.0**-7


def quantize_int8(graph: ExportedGraph, modules: Collection[str]) -> ExportedGraph:
    """Turn `modules` into INT8 weight-only linears.

    New weight inputs of a module: `weight` int8 `[in, out]`, `weight_scale` float32 `[out]`
    (weight = code * scale).
    """
    return replace_linears(graph, modules, _emit)


def _emit(to: Emitter, linear: Linear) -> None:
    name = linear.module
    weight = to.weight_input(linear.weight, "int8", linear.in_features, linear.out_features)
    to.weight_input(f"{name}.weight_scale", "float32", linear.out_features)
    step = to.constant("int8.step", STEP, to.dtype)
    w = to.op("DequantizeLinear", [weight, step], f"{name}.w")
    y = to.op("MatMul", [linear.x, w], f"{name}.sum")
    wide = to.cast(y, "float32", to.dtype, f"{name}.sum_float32")
    factor = to.constant("int8.factor", 1 / STEP)
    scale = to.op("Mul", [f"{name}.weight_scale", factor], f"{name}.output_scale")
    to.finish(linear, to.op("Mul", [wide, scale], f"{name}.scaled"))


def linear_int8(x: Tensor, parts: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
    """The arithmetic of the graph in PyTorch; arguments as `fp8.linear_fp8`."""
    weight = (parts["weight"].float() * STEP).to(x.dtype)
    result = (x @ weight).float() * (parts["weight_scale"] * (1 / STEP))
    return (result if bias is None else result + bias.float()).to(x.dtype)
