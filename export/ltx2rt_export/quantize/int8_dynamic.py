"""W8A8 linears for ONNX Runtime on a CPU: scales a channel of weights, a token of activations.

    a = max(|x|) / 127                        a token
    q = round(x / a) + 128                    unsigned: the kernels of every CPU take that
    y = sum (q - 128) w * weight_scale        the 8-bit GEMM, in 32-bit integers, scaled once
    out = y * a + bias                        float32, rounded once

The maximum is that of a token, not of the tensor as in ONNX's `DynamicQuantizeLinear`: with one
scale, a loud token costs the quiet ones their codes (`docs/quantization.md`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.quantize.linears import MICROSOFT, Emitter, Linear, replace_linears

if TYPE_CHECKING:
    from torch import Tensor

LARGEST, MIDDLE = 127, 128

#: scale of a token of zeros, whose codes are zeros with any
LEAST = 1e-30


def quantize_int8_dynamic(graph: ExportedGraph, modules: Collection[str]) -> ExportedGraph:
    """Turn `modules` into INT8 linears; weight inputs as `int8.quantize_int8`."""
    return replace_linears(graph, modules, _emit)


def _emit(to: Emitter, linear: Linear) -> None:
    name = linear.module
    weight = to.weight_input(linear.weight, "int8", linear.in_features, linear.out_features)
    scale = to.weight_input(f"{name}.weight_scale", "float32", linear.out_features)
    codes, step, middle = _codes(to, linear)
    one = to.constant("int8.one", 1.0)
    y = to.op(
        "MatMulIntegerToFloat",
        [codes, weight, one, scale, middle],
        f"{name}.sum",
        domain=MICROSOFT,
    )
    to.finish(linear, to.op("Mul", [y, step], f"{name}.scaled"))


def _codes(to: Emitter, linear: Linear) -> tuple[str, str, str]:
    """Codes of what a linear reads, the scale of every token, and the code of zero; made once for
    all linears that read the same value.
    """
    key = ("int8", linear.x)
    if key not in to.shared:
        x, name = linear.x, f"{linear.x}.int8"
        last = to.constant("int8.last", [-1], "int64")
        rows = to.constant(f"int8.rows_{linear.in_features}", [-1, linear.in_features], "int64")
        wide = to.cast(x, "float32", to.dtype, f"{name}.float32")
        most = to.op("ReduceMax", [wide, last], f"{name}.most", keepdims=1)
        least = to.op("ReduceMin", [wide, last], f"{name}.least", keepdims=1)
        least = to.op("Neg", [least], f"{name}.negated")
        tiny = to.constant("int8.least", LEAST)
        peak = to.op("Max", [most, least, tiny], f"{name}.peak")
        step = to.op("Mul", [peak, to.constant("int8.share", 1 / LARGEST)], f"{name}.step")
        steps = to.op("Reshape", [step, last], f"{name}.steps")
        count = to.op("Shape", [steps], f"{name}.count")
        middle = to.constant("int8.middle", MIDDLE, "uint8")
        middles = to.op("Expand", [middle, count], f"{name}.middles")
        flat = to.op("Reshape", [wide, rows], f"{name}.rows")
        codes = to.op("QuantizeLinear", [flat, steps, middles], f"{name}.flat_codes", axis=0)
        shape = to.op("Shape", [x], f"{name}.shape")
        to.shared[key] = (to.op("Reshape", [codes, shape], f"{name}.codes"), step, middle)
    codes, step, middle = to.shared[key]
    return codes, step, middle


def linear_int8_dynamic(x: Tensor, parts: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
    """The arithmetic of the graph in PyTorch; arguments as `fp8.linear_fp8`."""
    wide = x.float()
    step = wide.abs().amax(dim=-1, keepdim=True).clamp_min(LEAST) * (1 / LARGEST)
    codes = (wide / step).round().clamp(-MIDDLE, LARGEST)
    total = (codes.double() @ parts["weight"].double()).float()  # exact: integers below 2^53
    result = total * parts["weight_scale"] * step
    return (result if bias is None else result + bias.float()).to(x.dtype)
