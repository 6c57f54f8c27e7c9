"""Operators that work on large tensors a piece at a time, so that memory stays bounded.

Each is opaque to the tracer, computes the same in PyTorch as in ONNX, and becomes one node of the
domain `ltx2rt` whose body travels with the model as a function of plain operators (`FUNCTIONS`). A
backend with a kernel of its own can take the node as it is.

Pieces are gathered, not sliced: TensorRT-RTX 1.7 cannot build a loop that slices at its own index
(internal error in `makeScopeNodesContiguous`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx.parser
import torch
from onnx.defs import OpSchema
from onnxscript import values
from torch import Tensor
from torch.nn import functional

DOMAIN = "ltx2rt"

#: queries of one piece along (time, rows, columns): the best of spec/diffusion_decoder.md §9 (2)
QUERY_BLOCK = (4, 8, 8)

#: tokens of one piece of a feed-forward layer (spec/diffusion_decoder.md §3)
TOKEN_BLOCK = 16384


@torch.library.custom_op("ltx2rt::neighborhood_attention", mutates_args=())
def neighborhood_attention(q: Tensor, k: Tensor, v: Tensor, kernel: Sequence[int]) -> Tensor:
    """Attention of every cell to the `kernel` cells around it; windows shift inward at borders.

    `q`, `k`, `v` and the result are `[B, heads, T, H, W, D]`; scores are `q @ k^T`, unscaled. Every
    axis must be at least as long as its kernel (spec/diffusion_decoder.md §3 and §9).
    """
    batch, heads, *lengths, width = q.shape
    blocks = [min(b, n) for b, n in zip(QUERY_BLOCK, lengths, strict=True)]
    pieces = [
        [_window(start, b, n, kind, q.device) for start in range(0, n, b)]
        for b, n, kind in zip(blocks, lengths, kernel, strict=True)
    ]
    out = q.new_empty(q.shape)
    for t_query, t_key, t_inside in pieces[0]:
        for h_query, h_key, h_inside in pieces[1]:
            for w_query, w_key, w_inside in pieces[2]:
                inside = (
                    (
                        t_inside[:, None, None, :, None, None]
                        & h_inside[None, :, None, None, :, None]
                        & w_inside[None, None, :, None, None, :]
                    )
                    .flatten(3)
                    .flatten(0, 2)
                )
                query = q[:, :, t_query, h_query, w_query].reshape(batch, heads, -1, width)
                key = k[:, :, t_key, h_key, w_key].reshape(batch, heads, -1, width)
                value = v[:, :, t_key, h_key, w_key].reshape(batch, heads, -1, width)
                scores = (query @ key.mT).masked_fill(~inside, float("-inf"))
                result = torch.softmax(scores, dim=-1) @ value
                out[:, :, t_query, h_query, w_query] = result.reshape(
                    out[:, :, t_query, h_query, w_query].shape
                )
    return out


def _window(
    start: int, block: int, length: int, kernel: int, device: torch.device
) -> tuple[slice, slice, Tensor]:
    """Queries of one piece of an axis, the keys they see, and which query sees which key."""
    query = torch.arange(start, min(start + block, length), device=device)
    first = (query - kernel // 2).clamp(0, length - kernel)
    low, high = int(first[0]), int(first[-1]) + kernel
    key = torch.arange(low, high, device=device)
    inside = (first[:, None] <= key) & (key < first[:, None] + kernel)
    return slice(start, start + len(query)), slice(low, high), inside


@neighborhood_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, kernel: Sequence[int]) -> Tensor:
    return torch.empty_like(q)


@torch.library.custom_op("ltx2rt::swiglu", mutates_args=())
def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """`down(silu(gate(x)) * up(x))` over the last axis; weights are `[out, in]`, without biases."""
    tokens = x.reshape(-1, x.shape[-1])
    out = torch.empty_like(tokens)
    for start in range(0, tokens.shape[0], TOKEN_BLOCK):
        part = tokens[start : start + TOKEN_BLOCK]
        hidden = functional.silu(functional.linear(part, gate)) * functional.linear(part, up)
        out[start : start + TOKEN_BLOCK] = functional.linear(hidden, down)
    return out.reshape(x.shape)


@swiglu.register_fake
def _(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return torch.empty_like(x)


_AXIS = """
  length_{a} = Shape <start = {dim}, end = {end}> (q)
  kernel_{a} = Gather <axis = 0> (kernels, at_{a})
  wanted_{a} = Gather <axis = 0> (blocks, at_{a})
  block_{a} = Min (wanted_{a}, length_{a})
  half_{a} = Div (kernel_{a}, two)
  last_{a} = Sub (length_{a}, one)
  last_start_{a} = Sub (length_{a}, kernel_{a})
  reach_{a} = Add (block_{a}, kernel_{a})
  reach_less_{a} = Sub (reach_{a}, one)
  region_{a} = Min (length_{a}, reach_less_{a})
  last_region_{a} = Sub (length_{a}, region_{a})
  padded_{a} = Add (last_{a}, block_{a})
  count_{a} = Div (padded_{a}, block_{a})
  covered_{a} = Mul (count_{a}, block_{a})
  block_scalar_{a} = Squeeze (block_{a})
  region_scalar_{a} = Squeeze (region_{a})
  block_steps_{a} = Range (zero_scalar, block_scalar_{a}, one_scalar)
  region_steps_{a} = Range (zero_scalar, region_scalar_{a}, one_scalar)
"""

_AXIS_IN_BODY = """
    begin_{a} = Mul (index_{a}, block_{a})
    query_{a} = Add (begin_{a}, block_steps_{a})
    clamped_{a} = Min (query_{a}, last_{a})
    centred_{a} = Sub (clamped_{a}, half_{a})
    not_before_{a} = Max (centred_{a}, zero)
    start_{a} = Min (not_before_{a}, last_start_{a})
    smallest_{a} = ReduceMin <keepdims = 1> (start_{a})
    origin_{a} = Min (smallest_{a}, last_region_{a})
    key_{a} = Add (origin_{a}, region_steps_{a})
    start_column_{a} = Unsqueeze (start_{a}, one)
    stop_column_{a} = Add (start_column_{a}, kernel_{a})
    from_start_{a} = GreaterOrEqual (key_{a}, start_column_{a})
    before_stop_{a} = Less (key_{a}, stop_column_{a})
    inside_{a} = And (from_start_{a}, before_stop_{a})
    spread_{a} = Unsqueeze (inside_{a}, spread_axes_{a})
"""

_GATHERED = """
    {x}_t = Gather <axis = 2> ({x}, {i}_t)
    {x}_th = Gather <axis = 3> ({x}_t, {i}_h)
    {x}_thw = Gather <axis = 4> ({x}_th, {i}_w)
    {x}_flat = Reshape ({x}_thw, flat_shape)
"""

_ATTENTION = f"""
<domain: "{DOMAIN}", opset_import: ["" : 20]>
NeighborhoodAttention <kernel, block> (q, k, v) => (out)
{{
  kernels = Constant <value_ints: ints = @kernel> ()
  blocks = Constant <value_ints: ints = @block> ()
  zero = Constant <value_ints = [0]> ()
  one = Constant <value_ints = [1]> ()
  two = Constant <value_ints = [2]> ()
  minus_one = Constant <value_ints = [-1]> ()
  zero_scalar = Constant <value_int = 0> ()
  one_scalar = Constant <value_int = 1> ()
  at_t = Constant <value_ints = [0]> ()
  at_h = Constant <value_ints = [1]> ()
  at_w = Constant <value_ints = [2]> ()
  spread_axes_t = Constant <value_ints = [1, 2, 4, 5]> ()
  spread_axes_h = Constant <value_ints = [0, 2, 3, 5]> ()
  spread_axes_w = Constant <value_ints = [0, 1, 3, 4]> ()
  outside = Constant <value_float = -3.0e38> ()
  nothing = Constant <value_float = 0.0> ()
  batch = Shape <start = 0, end = 1> (q)
  heads = Shape <start = 1, end = 2> (q)
  width = Shape <start = 5, end = 6> (q)
  {"".join(_AXIS.format(a=a, dim=d, end=d + 1) for a, d in zip("thw", (2, 3, 4), strict=True))}
  flat_shape = Concat <axis = 0> (batch, heads, minus_one, width)
  queries_th = Mul (block_t, block_h)
  queries = Mul (queries_th, block_w)
  mask_shape = Concat <axis = 0> (queries, minus_one)
  count_hw = Mul (count_h, count_w)
  count = Mul (count_t, count_hw)
  trips = Squeeze (count)
  always = Constant <value = bool {{1}}> ()
  pieces = Loop (trips, always) <body = piece (int64 i, bool going) => (bool go_on, result)
  {{
    go_on = Identity (going)
    index_w = Mod (i, count_w)
    row = Div (i, count_w)
    index_h = Mod (row, count_h)
    index_t = Div (row, count_h)
    {"".join(_AXIS_IN_BODY.format(a=a) for a in "thw")}
    inside_th = And (spread_t, spread_h)
    inside_thw = And (inside_th, spread_w)
    inside = Reshape (inside_thw, mask_shape)
    bias_single = Where (inside, nothing, outside)
    bias = CastLike (bias_single, q)
    {_GATHERED.format(x="q", i="clamped")}
    {_GATHERED.format(x="k", i="key")}
    {_GATHERED.format(x="v", i="key")}
    k_turned = Transpose <perm = [0, 1, 3, 2]> (k_flat)
    products = MatMul (q_flat, k_turned)
    scores = Add (products, bias)
    weights = Softmax <axis = -1> (scores)
    result = MatMul (weights, v_flat)
  }}>
  streams = Mul (batch, heads)
  row_width = Mul (block_w, width)
  cut_shape = Concat <axis = 0> (count_t, count_h, count_w, streams, block_t, block_h, row_width)
  cut = Reshape (pieces, cut_shape)
  joined = Transpose <perm = [3, 0, 4, 1, 5, 2, 6]> (cut)
  whole_shape = Concat <axis = 0> (batch, heads, covered_t, covered_h, covered_w, width)
  whole = Reshape (joined, whole_shape)
  ends = Concat <axis = 0> (length_t, length_h, length_w)
  starts = Constant <value_ints = [0, 0, 0]> ()
  axes = Constant <value_ints = [2, 3, 4]> ()
  out = Slice (whole, starts, ends, axes)
}}
"""

_SWIGLU = f"""
<domain: "{DOMAIN}", opset_import: ["" : 20]>
SwiGlu <block> (x, gate, up, down) => (out)
{{
  zero = Constant <value_ints = [0]> ()
  one = Constant <value_ints = [1]> ()
  shape = Shape (x)
  width = Shape <start = -1> (x)
  minus_one = Constant <value_ints = [-1]> ()
  flat_shape = Concat <axis = 0> (minus_one, width)
  tokens = Reshape (x, flat_shape)
  total = Shape <start = 0, end = 1> (tokens)
  wanted = Constant <value_ints: ints = @block> ()
  size = Min (wanted, total)
  less = Sub (size, one)
  padded = Add (total, less)
  count = Div (padded, size)
  trips = Squeeze (count)
  last = Sub (total, size)
  gate_turned = Transpose <perm = [1, 0]> (gate)
  up_turned = Transpose <perm = [1, 0]> (up)
  down_turned = Transpose <perm = [1, 0]> (down)
  first = Constant <value_int = 0> ()
  next = Constant <value_int = 1> ()
  size_scalar = Squeeze (size)
  steps = Range (first, size_scalar, next)
  always = Constant <value = bool {{1}}> ()
  pieces = Loop (trips, always) <body = piece (int64 i, bool going) => (bool go_on, result)
  {{
    go_on = Identity (going)
    wanted_begin = Mul (i, size)
    begin = Min (wanted_begin, last)
    rows = Add (begin, steps)
    part = Gather <axis = 0> (tokens, rows)
    opened = MatMul (part, gate_turned)
    softened = Sigmoid (opened)
    open = Mul (opened, softened)
    raised = MatMul (part, up_turned)
    hidden = Mul (open, raised)
    result = MatMul (hidden, down_turned)
  }}>
  flat = Reshape (pieces, flat_shape)
  whole = Mul (count, size)
  full = Sub (whole, size)
  rest = Sub (total, full)
  tail_begin = Sub (whole, rest)
  head = Slice (flat, zero, full, zero)
  tail = Slice (flat, tail_begin, whole, zero)
  joined = Concat <axis = 0> (head, tail)
  out = Reshape (joined, shape)
}}
"""

#: (domain, name) -> the function that a model carries when it has such a node
FUNCTIONS: dict[tuple[str, str], onnx.FunctionProto] = {
    (f.domain, f.name): f for f in map(onnx.parser.parse_function, (_ATTENTION, _SWIGLU))
}


def _operator(name: str, inputs: Sequence[str], attributes: Sequence[str]) -> values.Op:
    """An operator of our domain as the tracer records it."""
    schema = OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter(i, "T") for i in inputs],
        outputs=[OpSchema.FormalParameter("out", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
        attributes=[OpSchema.Attribute(a, OpSchema.AttrType.INTS, "") for a in attributes],
    )
    return values.Op(values.Opset(DOMAIN, 1), name, schema)


_ATTENTION_NODE = _operator("NeighborhoodAttention", ("q", "k", "v"), ("kernel", "block"))
_SWIGLU_NODE = _operator("SwiGlu", ("x", "gate", "up", "down"), ("block",))


def _onnx_neighborhood_attention(q: Any, k: Any, v: Any, kernel: Sequence[int]) -> Any:
    return _ATTENTION_NODE(q, k, v, kernel=list(kernel), block=list(QUERY_BLOCK))


def _onnx_swiglu(x: Any, gate: Any, up: Any, down: Any) -> Any:
    return _SWIGLU_NODE(x, gate, up, down, block=[TOKEN_BLOCK])


#: for `torch.onnx.export(custom_translation_table=...)`
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.ltx2rt.neighborhood_attention.default: _onnx_neighborhood_attention,
    torch.ops.ltx2rt.swiglu.default: _onnx_swiglu,
}
