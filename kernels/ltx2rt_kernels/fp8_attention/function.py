"""The operators of 8-bit attention in plain ones: the same E4M3 numbers, float32 in between.

For ONNX Runtime. TensorRT-RTX refuses casts to E4M3 and fuses 16-bit attention only, so graphs for
it do not hold these nodes.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from ltx2rt_kernels.flash_attention.function import attention_nodes
from ltx2rt_kernels.flash_attention.spec import BIAS
from ltx2rt_kernels.fp8_attention.spec import (
    FULL,
    GROUP,
    LEAST_AMAX,
    MASKED_FULL,
    QUANTIZE_KEYS,
    QUANTIZE_VALUES,
)
from ltx2rt_kernels.function import make_function
from ltx2rt_kernels.spec import E4M3_MAX, Operator

Nodes = list[onnx.NodeProto]


def build(operator: Operator) -> onnx.FunctionProto:
    """Body of a quantiser or an attention of this package."""
    if operator is QUANTIZE_VALUES:
        return make_function(operator, _quantize_values())
    if operator.attributes:
        return make_function(operator, _attention(operator))
    return make_function(operator, _quantize_tokens(smooth=operator is QUANTIZE_KEYS))


def _ints(name: str, *values: int) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value_ints=list(values))


def _float(name: str, value: float) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value_float=value)


def _wide(x: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [x], [f"{x}_wide"], to=TensorProto.FLOAT)


def _constants() -> Nodes:
    return [
        _float("e4m3_max", E4M3_MAX),
        _float("e4m3_min", -E4M3_MAX),
        _float("least", LEAST_AMAX),
        _ints("group", GROUP),
        _ints("zero", 0),
        _ints("one", 1),
        _ints("two", 2),
        _ints("last", -1),
    ]


def _to_e4m3(x: str, out: str) -> Nodes:
    return [
        helper.make_node("Clip", [x, "e4m3_min", "e4m3_max"], [f"{x}_clipped"]),
        helper.make_node("Cast", [f"{x}_clipped"], [out], to=TensorProto.FLOAT8E4M3FN),
    ]


def _padding(x: str, axis: int) -> Nodes:
    """`x_tokens`, and `x_missing`: how many tokens fill the last group."""
    node = helper.make_node
    return [
        node("Shape", [x], [f"{x}_tokens"], start=axis, end=axis + 1),
        node("Neg", [f"{x}_tokens"], [f"{x}_negative"]),
        node("Mod", [f"{x}_negative", "group"], [f"{x}_missing"]),
    ]


def _quantize_tokens(*, smooth: bool) -> Nodes:
    node = helper.make_node
    nodes = [*_constants(), _wide("x")]
    centred = "x_wide"
    if smooth:
        centred = "x_centred"
        nodes += [_wide("mean"), node("Sub", ["x_wide", "mean_wide"], [centred])]
    return [
        *nodes,
        *_padding("x", 2),
        _ints("before", 0, 0, 0, 0, 0, 0),
        node("Concat", ["before", "x_missing", "zero"], ["pads"], axis=0),
        node("Pad", [centred, "pads"], ["padded"]),
        node("Shape", ["x"], ["head_dim"], start=3, end=4),
        _ints("head_axes", 0, 0, -1),
        node("Concat", ["head_axes", "group", "head_dim"], ["group_shape"], axis=0),
        node("Reshape", ["padded", "group_shape"], ["groups"]),
        node("Abs", ["groups"], ["magnitudes"]),
        _ints("inner", 3, 4),
        node("ReduceMax", ["magnitudes", "inner"], ["largest"], keepdims=1),
        node("Max", ["largest", "least"], ["amax"]),
        node("Div", ["amax", "e4m3_max"], ["group_scale"]),
        node("Squeeze", ["group_scale", "inner"], ["scale"]),
        node("Div", ["groups", "group_scale"], ["unit"]),
        node("Concat", ["head_axes", "head_dim"], ["token_shape"], axis=0),
        node("Reshape", ["unit", "token_shape"], ["unit_padded"]),
        node("Slice", ["unit_padded", "zero", "x_tokens", "two"], ["unit_tokens"]),
        *_to_e4m3("unit_tokens", "quantized"),
    ]


def _quantize_values() -> Nodes:
    node = helper.make_node
    return [
        *_constants(),
        _wide("v"),
        _wide("amax"),
        node("Max", ["amax_wide", "least"], ["largest"]),
        node("Div", ["largest", "e4m3_max"], ["channel_scale"]),
        node("Div", ["v_wide", "channel_scale"], ["unit"]),
        *_padding("v", 1),
        _ints("before", 0, 0, 0, 0),
        node("Concat", ["before", "v_missing", "zero"], ["pads"], axis=0),
        node("Pad", ["unit", "pads"], ["unit_padded"]),
        node("Transpose", ["unit_padded"], ["unit_columns"], perm=[0, 2, 1]),
        *_to_e4m3("unit_columns", "quantized"),
    ]


def _dequantize(x: str) -> Nodes:
    """`x_wide` times its groups' scales: `x_exact` `[B, H, T, Dh]`."""
    node = helper.make_node
    return [
        _wide(x),
        node("Unsqueeze", [f"{x}_scale", "last"], [f"{x}_scale_column"]),
        node("Expand", [f"{x}_scale_column", "expanded"], [f"{x}_scale_grid"]),
        node("Reshape", [f"{x}_scale_grid", "padded_shape"], [f"{x}_scale_padded"]),
        node("Shape", [f"{x}_wide"], [f"{x}_tokens"], start=2, end=3),
        node("Slice", [f"{x}_scale_padded", "zero", f"{x}_tokens", "two"], [f"{x}_scale_tokens"]),
        node("Mul", [f"{x}_wide", f"{x}_scale_tokens"], [f"{x}_exact"]),
    ]


def _attention(operator: Operator) -> Nodes:
    node = helper.make_node
    nodes = [
        *_constants(),
        _ints("expanded", 1, 1, 1, GROUP),
        _ints("padded_shape", 0, 0, -1, 1),
        *_dequantize("q"),
        *_dequantize("k"),
        _wide("v"),
    ]
    values, like = "v_wide", "v"
    if operator in (FULL, MASKED_FULL):
        values, like = "v_exact", "v_amax"
        nodes += [
            _wide("v_amax"),
            node("Max", ["v_amax_wide", "least"], ["largest"]),
            node("Div", ["largest", "e4m3_max"], ["channel_scale"]),
            node("Transpose", ["v_wide"], ["v_tokens"], perm=[0, 2, 1]),
            node("Slice", ["v_tokens", "zero", "k_tokens", "one"], ["v_kept"]),
            node("Mul", ["v_kept", "channel_scale"], ["v_exact"]),
        ]
    bias = None
    if BIAS in operator.inputs:
        bias = "bias_wide"
        nodes.append(_wide("bias"))
    return [
        *nodes,
        *attention_nodes(operator, "q_exact", "k_exact", values, bias, "out_wide"),
        node("CastLike", ["out_wide", like], ["out"]),
    ]
