"""Attentions and q/k norms with RoPE, as our modules export them, in any float dtype."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from ltx2rt_export.custom_ops.index import GraphIndex

SPLIT, INTERLEAVED = "split", "interleaved"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """`softmax(q k^T / sqrt(Dh) + bias) v` of a graph.

    Attributes:
        q: value, `[B, H, T, Dh]`, before the scale.
        k: value, `[B, H, S, Dh]`; or, if `k_by_token`, `[B, S, H, Dh]`.
        v: value, `[B, S, H*Dh]`.
        bias: value, `[B, 1, 1 or T, S]`, or None.
        out: value, `[B, T, H, Dh]`.
        heads, head_dim: H and Dh.
        k_by_token: heads and tokens of `k` are swapped: the graph transposes it once for all.
    """

    q: str
    k: str
    v: str
    bias: str | None
    out: str
    heads: int
    head_dim: int
    k_by_token: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NormRope:
    """RMS norm over the whole width, then RoPE.

    Attributes:
        x: value, `[B, T, W]`.
        weight: value, `[W]`.
        cos, sin: values, `[B, H, T, Dh / 2]` (split) or `[B, T, W]` (interleaved).
        epsilon: of the norm.
        layout: `SPLIT` or `INTERLEAVED`.
    """

    x: str
    weight: str
    cos: str
    sin: str
    epsilon: float
    layout: str


def find_attentions(graph: onnx.GraphProto, index: GraphIndex) -> list[Attention]:
    """Every attention of the graph, in graph order."""
    found = (_attention(index, node) for node in graph.node if node.op_type == "Softmax")
    return [attention for attention in found if attention is not None]


def _attention(index: GraphIndex, softmax: onnx.NodeProto) -> Attention | None:
    scores, bias = softmax.input[0], None
    if (biased := index.made_by(scores, "Add")) is not None:
        scores, bias = biased.input
    product = index.made_by(scores, "MatMul")
    readers = index.consumers.get(softmax.output[0], [])
    if product is None or len(readers) != 1 or readers[0].op_type != "MatMul":
        return None
    attended = readers[0]
    outs = index.consumers.get(attended.output[0], [])
    scaled = index.made_by(product.input[0], "Mul")
    keys = index.transposed(product.input[1], (0, 1, 3, 2))
    token_keys = index.transposed(product.input[1], (0, 2, 3, 1))
    values = index.transposed(attended.input[1], (0, 2, 1, 3))
    reshaped = None if values is None else index.made_by(values, "Reshape")
    if scaled is None or (keys or token_keys) is None or reshaped is None or len(outs) != 1:
        return None
    sizes = index.last_sizes(reshaped.input[1], 2)
    scale = index.scalar(scaled.input[1])
    if sizes is None or scale is None or index.transposed(outs[0].output[0], (0, 2, 1, 3)) is None:
        return None
    heads, head_dim = sizes
    if abs(scale * head_dim**0.5 - 1) > 0.01:  # 16-bit graphs hold a rounded scale
        return None
    return Attention(
        q=scaled.input[0],
        k=keys or token_keys or "",
        v=reshaped.input[0],
        bias=bias,
        out=outs[0].output[0],
        heads=heads,
        head_dim=head_dim,
        k_by_token=keys is None,
    )


def match_norm_rope(index: GraphIndex, value: str, *, by_token: bool) -> NormRope | None:
    """How a value `[B, H, T, Dh]` (or `[B, T, H, Dh]`) was normed and rotated, if it was."""
    return _split_rope(index, value) or _interleaved_rope(index, value, by_token=by_token)


def _split_rope(index: GraphIndex, value: str) -> NormRope | None:
    """`concat(a cos - b sin, b cos + a sin)` of the halves a and b of a head."""
    joined = index.made_by(value, "Concat")
    if joined is None or len(joined.input) != 2:
        return None
    first = index.made_by(joined.input[0], "Sub")
    second = index.made_by(joined.input[1], "Add")
    if first is None or second is None:
        return None
    parts = [index.made_by(n, "Mul") for n in (*first.input, *second.input)]
    if any(part is None for part in parts):
        return None
    (a, cos), (b, sin), (b2, cos2), (a2, sin2) = (p.input for p in parts if p is not None)
    halves = [index.made_by(n, "Slice") for n in (a, b)]
    if (a, b, cos, sin) != (a2, b2, cos2, sin2) or halves[0] is None or halves[1] is None:
        return None
    if halves[0].input[0] != halves[1].input[0]:
        return None
    by_token = index.transposed(halves[0].input[0], (0, 2, 1, 3))
    reshaped = None if by_token is None else index.made_by(by_token, "Reshape")
    if reshaped is None:
        return None
    return _norm(index, reshaped.input[0], cos, sin, SPLIT)


def _interleaved_rope(index: GraphIndex, value: str, *, by_token: bool) -> NormRope | None:
    """`x cos + turned sin` on the whole width, with `turned = (-x_1, x_0, -x_3, x_2, ...)`."""
    tokens = value if by_token else index.transposed(value, (0, 2, 1, 3))
    reshaped = None if tokens is None else index.made_by(tokens, "Reshape")
    rotated = None if reshaped is None else index.made_by(reshaped.input[0], "Add")
    if rotated is None:
        return None
    parts = [index.made_by(n, "Mul") for n in rotated.input]
    if parts[0] is None or parts[1] is None:
        return None
    (x, cos), (turned, sin) = parts[0].input, parts[1].input
    return _norm(index, x, cos, sin, INTERLEAVED) if _is_turned(index, turned, x) else None


def _is_turned(index: GraphIndex, turned: str, x: str) -> bool:
    reshaped = index.made_by(turned, "Reshape")
    joined = None if reshaped is None else index.made_by(reshaped.input[0], "Concat")
    if joined is None or len(joined.input) != 2:
        return False
    lanes = [index.made_by(n, "Unsqueeze") for n in joined.input]
    negated = None if lanes[0] is None else index.made_by(lanes[0].input[0], "Neg")
    if negated is None or lanes[1] is None:
        return False
    picked = [index.made_by(n, "Gather") for n in (negated.input[0], lanes[1].input[0])]
    if picked[0] is None or picked[1] is None:
        return False
    pairs = [index.made_by(g.input[0], "Reshape") for g in picked if g is not None]
    return (
        [index.scalar(g.input[1]) for g in picked if g is not None] == [1, 0]
        and all(p is not None and p.input[0] == x for p in pairs)
        and index.last_sizes(pairs[0].input[1], 1) == (2,)  # type: ignore[union-attr]
    )


def _norm(index: GraphIndex, value: str, cos: str, sin: str, layout: str) -> NormRope | None:
    """`rms_norm(x) weight`, with casts around it or not."""
    weighted = index.made_by(index.uncast(value), "Mul")
    normed = None if weighted is None else index.norm(weighted.input[0])
    if weighted is None or normed is None:
        return None
    return NormRope(
        x=normed[0],
        weight=index.uncast(weighted.input[1]),
        cos=cos,
        sin=sin,
        epsilon=normed[1],
        layout=layout,
    )
