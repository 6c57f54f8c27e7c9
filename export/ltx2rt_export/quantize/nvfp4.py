"""NVFP4 linears: E2M1 codes in groups of 16 inputs, an E4M3 scale a group, one float32 scale above.

Weights stay `[out, in]` as files hold them: RTX then moves nothing but the group scales. The scale
of a tensor is multiplied outside, so that every scale inside the graph is the constant 1 and one
engine serves all layers (as in `fp8.py`).

    s   = max(|x|, tiny) / 2688                      a token, float32 (2688 = 448 * 6)
    q   = TRT_FP4DynamicQuantize(round(x / s))       group scales on the fly
    y   = sum_groups s_x s_w sum_16 c_x c_w          the GEMM, rounded to the graph's dtype
    out = y * s * weight_scale_2 + bias              float32, rounded once

With a static scale `s = input_scale`, one number from the file. The official kernel adds the bias
to the sum in float32 (spec/quantization.md §4.3); here the sum is rounded to the graph's
dtype first, and so is `x / s`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from onnx import TensorProto

from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.quantize.linears import Emitter, Linear, replace_linears

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 16

E4M3_MAX = 448.0

#: largest group scale times largest element
LARGEST = E4M3_MAX * 6.0

#: smallest maximum of a token; below it the token counts as zero
TINY = 1e-20

#: FP4 tensors came with it
OPSET = 23


def quantize_nvfp4(
    graph: ExportedGraph, modules: Collection[str], *, static: bool
) -> ExportedGraph:
    """Turn `modules` into NVFP4 linears.

    New weight inputs of a module: `weight` float4_e2m1 `[out, in]` (first element in the low
    nibble), `weight_scale` float8_e4m3fn `[out, in/16]`, `weight_scale_2` float32 `[1]` and, if
    `static`, `input_scale` float32 `[1]`.
    """
    emit = _emit_static if static else _emit_dynamic
    return replace_linears(graph, modules, emit, opset=OPSET, untransposed=True)


def _emit_dynamic(to: Emitter, linear: Linear) -> None:
    x = linear.x
    if (x, "e2m1") not in to.shared:
        wide = to.cast(x, "float32", to.dtype, f"{x}.float32")
        axis = to.constant("nvfp4.last_axis", [-1], "int64")
        amax = to.op("ReduceMax", [to.op("Abs", [wide], f"{x}.abs"), axis], f"{x}.max", keepdims=1)
        amax = to.op("Max", [amax, to.constant("nvfp4.tiny", TINY)], f"{x}.amax")
        largest = to.constant("nvfp4.largest", LARGEST)
        scale = to.op("Div", [amax, largest], f"{x}.scale")
        unit = to.op("Mul", [wide, to.op("Div", [largest, amax], f"{x}.inverse")], f"{x}.unit")
        to.shared[x, "e2m1"] = (_fake_quantized(to, unit, x), scale)
    quantized, scale = to.shared[x, "e2m1"]
    _finish(to, linear, quantized, scale)


def _emit_static(to: Emitter, linear: Linear) -> None:
    name = linear.module
    to.weight_input(f"{name}.input_scale", "float32", 1)
    wide = to.cast(linear.x, "float32", to.dtype, f"{name}.x_float32")
    unit = to.op("Div", [wide, f"{name}.input_scale"], f"{name}.x_unit")
    _finish(to, linear, _fake_quantized(to, unit, name), f"{name}.input_scale")


def _fake_quantized(to: Emitter, unit: str, name: str) -> str:
    """Quantise float32 `[..., in]` of scale 1 and dequantise to the graph's dtype: backends read
    the codes instead.
    """
    narrow = to.cast(unit, to.dtype, "float32", f"{name}.unit_{to.dtype}")
    one = to.constant("nvfp4.one", [1.0])
    codes, scales = f"{name}.fp4", f"{name}.fp4_scales"
    to.op(
        "TRT_FP4DynamicQuantize",
        [narrow, one],
        codes,
        outputs=[codes, scales],
        domain="trt",
        axis=-1,
        block_size=GROUP,
        scale_type=TensorProto.FLOAT8E4M3FN,
    )
    return _dequantized(to, codes, scales, name)


def _dequantized(to: Emitter, codes: str, scales: str, name: str) -> str:
    one = to.constant("nvfp4.one", [1.0])
    wide = to.op("DequantizeLinear", [scales, one], f"{name}.group_scales")
    values = to.op("DequantizeLinear", [codes, wide], f"{name}.values", axis=-1, block_size=GROUP)
    return to.cast(values, to.dtype, "float32", f"{name}.values_{to.dtype}")


def _finish(to: Emitter, linear: Linear, quantized: str, scale: str) -> None:
    name, outs, ins = linear.module, linear.out_features, linear.in_features
    weight = to.weight_input(linear.weight, "float4_e2m1", outs, ins)
    scales = to.weight_input(f"{name}.weight_scale", "float8_e4m3fn", outs, ins // GROUP)
    to.weight_input(f"{name}.weight_scale_2", "float32", 1)
    w = _dequantized(to, weight, scales, f"{name}.weight")
    w = to.op("Transpose", [w], f"{name}.weight_transposed", perm=[1, 0])
    wide = to.cast(
        to.op("MatMul", [quantized, w], f"{name}.sum"),
        "float32",
        to.dtype,
        f"{name}.sum_float32",
    )
    both = to.op("Mul", [scale, f"{name}.weight_scale_2"], f"{name}.output_scale")
    to.finish(linear, to.op("Mul", [wide, both], f"{name}.scaled"))


def fits_nvfp4(outputs: int, inputs: int) -> bool:
    """Whether the FP4 GEMM of TensorRT(-RTX) takes a linear of this size."""
    return inputs % 32 == 0 and outputs % 8 == 0


def linear_nvfp4(
    x: Tensor, parts: Mapping[str, Tensor], bias: Tensor | None, *, static: bool
) -> Tensor:
    """The arithmetic of the graph in PyTorch: the oracle of both passes.

    Args:
        x: `[..., in]` of the graph's dtype.
        parts: the module's weight inputs as the graph takes them, codes as packed bytes.
        bias: `[out]`.
    """
    wide, dtype = x.float(), x.dtype
    if static:
        scale = parts["input_scale"]
        unit = wide / scale
    else:
        amax = wide.abs().amax(-1, keepdim=True).clamp_min(TINY)
        scale, unit = amax / LARGEST, wide * (LARGEST / amax)
    left = quantize_groups(unit.to(dtype).float()).to(dtype)
    codes = _groups(unpack_fp4(parts["weight"]))
    right = (codes * parts["weight_scale"].float().unsqueeze(-1)).flatten(-2).to(dtype)
    result = (left @ right.T).float() * (scale * parts["weight_scale_2"])
    return (result if bias is None else result + bias.float()).to(dtype)


def quantize_groups(values: Tensor) -> Tensor:
    """Round float32 `[..., n]` to NVFP4 with tensor scale 1 (spec/quantization.md §4.1)."""
    import torch

    groups = _groups(values)
    scale = (groups.abs().amax(-1, keepdim=True) / 6).clamp(max=E4M3_MAX)
    scale = scale.to(torch.float8_e4m3fn).float()
    scaled = groups * torch.where(scale > 0, 1 / scale, 0.0)
    return (round_e2m1(scaled) * scale).flatten(-2)


def _groups(values: Tensor) -> Tensor:
    return values.reshape(*values.shape[:-1], -1, GROUP)


def round_e2m1(values: Tensor) -> Tensor:
    """Nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 with a sign; ties to the even code, saturating."""
    import torch

    size = values.abs().clamp(max=6.0)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.round(size / step) * step * torch.sign(values)


def unpack_fp4(codes: Tensor) -> Tensor:
    """Values of bytes `[..., n/2]`, first element in the low nibble, as float32 `[..., n]`."""
    import torch

    levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    table = torch.cat([levels, -levels])
    return torch.stack([table[(codes & 15).long()], table[(codes >> 4).long()]], -1).flatten(-2)
