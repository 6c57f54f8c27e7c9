"""FP8 E4M3 linears, W8A8: weight scales a channel, activation scales a token or from the file.

TensorRT hands FP8 to the GEMM only where the scales of Quantize and Dequantize are constants, so
both use 2^-8, and the real scales are multiplied before and after (see
docs/quantization.md). A power of two is exact in every float format (1/448 is not: rounded to
bfloat16 it costs 0.2 %), and the largest possible sum stays below float16's limit.

    a   = max(|x|, tiny)                             a token, float32
    q   = e4m3(x * (448 / a))
    y   = sum_k (q * 2^-8) (w * 2^-8)                the GEMM, rounded to the graph's dtype
    out = y * (a * 2^16 / 448) * weight_scale + bias float32, rounded once

With a static scale: `q = e4m3(clamp(round(x * (1 / input_scale))))`, `out = round(round(y * 2^16 *
input_scale * weight_scale) + bias)`: the official arithmetic (spec/quantization.md §2) but
for the rounding of the sum to the graph's dtype.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.quantize.linears import Emitter, Linear, replace_linears

if TYPE_CHECKING:
    from torch import Tensor

E4M3_MAX = 448.0

#: scale of every Quantize and Dequantize
STEP = 2.0**-8

#: smallest maximum of a token; below it the token counts as zero
TINY = 1e-20


def quantize_fp8(graph: ExportedGraph, modules: Collection[str], *, static: bool) -> ExportedGraph:
    """Turn `modules` into FP8 linears.

    New weight inputs of a module: `weight` float8_e4m3fn `[in, out]`, `weight_scale` float32
    `[out]` (weight = code * scale) and, if `static`, `input_scale` float32 `[1]`.
    """
    emit = _emit_static if static else _emit_dynamic
    return replace_linears(graph, modules, emit)


def _emit_dynamic(to: Emitter, linear: Linear) -> None:
    codes, amax = _quantized_tokens(to, linear.x)
    wide = _product(to, linear, codes)
    name = linear.module
    factor = to.constant("fp8.output_factor", 1 / (STEP * STEP * E4M3_MAX))
    scale = to.op("Mul", [amax, factor], f"{name}.token_scale")
    wide = to.op("Mul", [wide, scale], f"{name}.scaled_tokens")
    wide = to.op("Mul", [wide, f"{name}.weight_scale"], f"{name}.scaled")
    to.finish(linear, wide)


def _emit_static(to: Emitter, linear: Linear) -> None:
    name = linear.module
    to.weight_input(f"{name}.input_scale", "float32", 1)
    x = to.cast(linear.x, "float32", to.dtype, f"{name}.x_float32")
    one = to.constant("fp8.one", 1)
    inverse = to.op("Div", [one, f"{name}.input_scale"], f"{name}.input_scale_inverse")
    rounded = to.op("Mul", [x, inverse], f"{name}.x_scaled")
    rounded = to.cast(rounded, to.dtype, "float32", f"{name}.x_rounded")
    limits = [to.constant(f"fp8.limit{s:+}", s * E4M3_MAX, to.dtype) for s in (-1, 1)]
    rounded = to.op("Clip", [rounded, *limits], f"{name}.x_clipped")
    step = to.constant(f"fp8.step_{to.dtype}", STEP, to.dtype)
    stepped = to.op("Mul", [rounded, step], f"{name}.x_stepped")
    codes = to.op("QuantizeLinear", [stepped, step, _zero(to)], f"{name}.x_codes")
    wide = _product(to, linear, codes)
    factor = to.constant("fp8.static_factor", 1 / (STEP * STEP))
    scale = to.op("Mul", [f"{name}.input_scale", factor], f"{name}.static_scale")
    scale = to.op("Mul", [f"{name}.weight_scale", scale], f"{name}.output_scale")
    wide = to.op("Mul", [wide, scale], f"{name}.scaled")
    to.finish(linear, wide, round_first=True)


def _quantized_tokens(to: Emitter, x: str) -> tuple[str, str]:
    """E4M3 codes of `x` and each token's maximum, float32; made once for all readers of `x`."""
    key = (x, "e4m3")
    if key not in to.shared:
        wide = to.cast(x, "float32", to.dtype, f"{x}.float32")
        axis = to.constant("fp8.last_axis", [-1], "int64")
        amax = to.op("ReduceMax", [to.op("Abs", [wide], f"{x}.abs"), axis], f"{x}.max", keepdims=1)
        amax = to.op("Max", [amax, to.constant("fp8.tiny", TINY)], f"{x}.amax")
        full = to.constant("fp8.full_range", E4M3_MAX * STEP)
        unit = to.op("Mul", [wide, to.op("Div", [full, amax], f"{x}.inverse")], f"{x}.unit")
        step = to.constant("fp8.step_float32", STEP)
        codes = to.op("QuantizeLinear", [unit, step, _zero(to)], f"{x}.codes")
        to.shared[key] = (codes, amax)
    codes, amax = to.shared[key]
    return codes, amax


def _product(to: Emitter, linear: Linear, codes: str) -> str:
    """The GEMM of codes, `sum (q 2^-8) (w 2^-8)`, widened to float32."""
    name = linear.module
    weight = to.weight_input(
        linear.weight, "float8_e4m3fn", linear.in_features, linear.out_features
    )
    to.weight_input(f"{name}.weight_scale", "float32", linear.out_features)
    step = to.constant(f"fp8.step_{to.dtype}", STEP, to.dtype)
    x = to.op("DequantizeLinear", [codes, step, _zero(to)], f"{name}.x")
    w = to.op("DequantizeLinear", [weight, step, _zero(to)], f"{name}.w")
    y = to.op("MatMul", [x, w], f"{name}.sum")
    return to.cast(y, "float32", to.dtype, f"{name}.sum_float32")


def _zero(to: Emitter) -> str:
    """The zero point, which names the FP8 format; a Cast from or to FP8 does not build."""
    return to.constant("fp8.zero", 0.0, "float8_e4m3fn")


def linear_fp8(
    x: Tensor, parts: Mapping[str, Tensor], bias: Tensor | None, *, static: bool
) -> Tensor:
    """The arithmetic of the graph in PyTorch: the oracle of both passes.

    Args:
        x: `[..., in]` of the graph's dtype.
        parts: the module's weight inputs as the graph takes them.
        bias: `[out]`.
    """
    import torch

    wide, dtype = x.float(), x.dtype
    if static:
        unit = (wide * (1 / parts["input_scale"])).to(dtype).float()
        scale = parts["input_scale"] * (1 / STEP**2) * parts["weight_scale"]
    else:
        amax = wide.abs().amax(-1, keepdim=True).clamp_min(TINY)
        unit = wide * (E4M3_MAX * STEP / amax) / STEP
        scale = amax * (1 / (STEP**2 * E4M3_MAX)) * parts["weight_scale"]
    codes = unit.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    left, right = ((t.float() * STEP).to(dtype) for t in (codes, parts["weight"]))
    result = (left @ right).float() * scale
    if bias is None:
        return result.to(dtype)
    return result.to(dtype) + bias if static else (result + bias.float()).to(dtype)
