"""Attention in plain operators, in the form that TensorRT and TensorRT-RTX fuse."""

from __future__ import annotations

import onnx
from onnx import helper

from ltx2rt_kernels.flash_attention.spec import MASKED
from ltx2rt_kernels.function import attribute, make_function
from ltx2rt_kernels.spec import Operator


def build(operator: Operator) -> onnx.FunctionProto:
    """Body of `FlashAttention` or `MaskedFlashAttention`."""
    bias = "bias" if operator is MASKED else None
    return make_function(operator, attention_nodes(operator, "q", "k", "v", bias, "out"))


def attention_nodes(
    operator: Operator, q: str, k: str, v: str, bias: str | None, out: str
) -> list[onnx.NodeProto]:
    """`softmax(scale q k^T + bias) v`; q and k `[B, H, T, Dh]`, v and the result `[B, T, H*Dh]`.

    All in the dtype of `q`; `scale` is the operator's attribute.
    """
    node = helper.make_node
    nodes = [
        *heads_first(v, q),
        attribute(operator, "scale", "scale_float"),
        node("CastLike", ["scale_float", q], ["scale_like"]),
        node("Mul", [q, "scale_like"], ["q_scaled"]),
        node("Transpose", [k], ["k_columns"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q_scaled", "k_columns"], ["scores"]),
    ]
    if bias is not None:
        nodes.append(node("Add", ["scores", bias], ["biased"]))
    return [
        *nodes,
        node("Softmax", ["biased" if bias else "scores"], ["weights"], axis=-1),
        node("MatMul", ["weights", f"{v}_by_head"], ["attended"]),
        node("Transpose", ["attended"], ["attended_by_token"], perm=[0, 2, 1, 3]),
        node("Constant", [], ["joined_shape"], value_ints=[0, 0, -1]),
        node("Reshape", ["attended_by_token", "joined_shape"], [out]),
    ]


def heads_first(v: str, q: str) -> list[onnx.NodeProto]:
    """`v_by_head` `[B, H, S, Dh]` from v `[B, S, H*Dh]`, with the heads of q `[B, H, T, Dh]`."""
    node = helper.make_node
    return [
        node("Shape", [q], ["heads"], start=1, end=2),
        node("Constant", [], ["batch_and_tokens"], value_ints=[0, 0]),
        node("Constant", [], ["rest"], value_ints=[-1]),
        node("Concat", ["batch_and_tokens", "heads", "rest"], ["head_shape"], axis=0),
        node("Reshape", [v, "head_shape"], [f"{v}_by_token"]),
        node("Transpose", [f"{v}_by_token"], [f"{v}_by_head"], perm=[0, 2, 1, 3]),
    ]
