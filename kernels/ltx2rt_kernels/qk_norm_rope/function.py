"""QK norm + RoPE in plain operators; float32 inside, rounded once, like the kernel."""

from __future__ import annotations

import onnx
from onnx import helper

from ltx2rt_kernels.function import attribute, ints, make_function, rms_norm, wide
from ltx2rt_kernels.qk_norm_rope.spec import INTERLEAVED
from ltx2rt_kernels.spec import Operator


def build(operator: Operator) -> onnx.FunctionProto:
    """Body of `QkNormRope` or `QkNormRopeInterleaved`."""
    node = helper.make_node
    nodes = [
        attribute(operator, "epsilon", "epsilon"),
        attribute(operator, "num_heads", "heads"),
        ints("one", [1]),
        ints("last_axis", [-1]),
        ints("batch_and_tokens", [0, 0]),
        node("Reshape", ["heads", "one"], ["heads_1d"]),
        node("Concat", ["batch_and_tokens", "heads_1d", "last_axis"], ["head_shape"], axis=0),
    ]
    rotate = _rotate_interleaved if operator is INTERLEAVED else _rotate_split
    if operator is INTERLEAVED:
        nodes += [
            ints("two", [2]),
            node("Concat", ["batch_and_tokens", "last_axis", "two"], ["pair_shape"], axis=0),
            ints("flat_shape", [0, 0, -1]),
        ]
    for x in ("q", "k"):
        nodes += [*_norm(x), *rotate(x)]
        nodes.append(node("CastLike", [f"{x}_rotated", x], [f"{x}_out"]))
    return make_function(operator, nodes)


def _norm(x: str) -> list[onnx.NodeProto]:
    """`x_normed` `[B, T, W]` float32, and float32 copies of the tables."""
    return [
        *rms_norm(x),
        *(wide(name) for name in (f"{x}_weight", f"{x}_cos", f"{x}_sin")),
        helper.make_node("Mul", [f"{x}_unit", f"{x}_weight_wide"], [f"{x}_normed"]),
    ]


def _rotate_split(x: str) -> list[onnx.NodeProto]:
    """`x_rotated` `[B, H, T, Dh]`; pairs are the two halves of a head."""
    node = helper.make_node
    return [
        node("Reshape", [f"{x}_normed", "head_shape"], [f"{x}_by_token"]),
        node("Transpose", [f"{x}_by_token"], [f"{x}_by_head"], perm=[0, 2, 1, 3]),
        node("Split", [f"{x}_by_head"], [f"{x}_1", f"{x}_2"], axis=-1, num_outputs=2),
        *_turn(x),
        node("Concat", [f"{x}_first", f"{x}_second"], [f"{x}_rotated"], axis=-1),
    ]


def _rotate_interleaved(x: str) -> list[onnx.NodeProto]:
    """`x_rotated` `[B, H, T, Dh]`; pairs are neighbouring lanes of the full width."""
    node = helper.make_node
    nodes = []
    for name in (f"{x}_normed", f"{x}_cos_wide", f"{x}_sin_wide"):
        nodes.append(node("Reshape", [name, "pair_shape"], [f"{name}_pairs"]))
    split = {f"{x}_normed": (f"{x}_1", f"{x}_2")}
    split |= {f"{x}_{t}_wide": (f"{x}_{t}_even", f"{x}_{t}_odd") for t in ("cos", "sin")}
    for name, halves in split.items():
        nodes.append(node("Split", [f"{name}_pairs"], halves, axis=-1, num_outputs=2))
    return [
        *nodes,
        *_turn(x, f"{x}_cos_even", f"{x}_sin_even"),
        node("Concat", [f"{x}_first", f"{x}_second"], [f"{x}_turned"], axis=-1),
        node("Reshape", [f"{x}_turned", "flat_shape"], [f"{x}_flat"]),
        node("Reshape", [f"{x}_flat", "head_shape"], [f"{x}_by_token"]),
        node("Transpose", [f"{x}_by_token"], [f"{x}_rotated"], perm=[0, 2, 1, 3]),
    ]


def _turn(x: str, cos: str = "", sin: str = "") -> list[onnx.NodeProto]:
    """`first, second = (x_1 cos - x_2 sin, x_2 cos + x_1 sin)`."""
    node = helper.make_node
    cos, sin = cos or f"{x}_cos_wide", sin or f"{x}_sin_wide"
    return [
        node("Mul", [f"{x}_1", cos], [f"{x}_1_cos"]),
        node("Mul", [f"{x}_2", sin], [f"{x}_2_sin"]),
        node("Sub", [f"{x}_1_cos", f"{x}_2_sin"], [f"{x}_first"]),
        node("Mul", [f"{x}_2", cos], [f"{x}_2_cos"]),
        node("Mul", [f"{x}_1", sin], [f"{x}_1_sin"]),
        node("Add", [f"{x}_2_cos", f"{x}_1_sin"], [f"{x}_second"]),
    ]
