"""Attention forward in one pass over the keys (README.md has the derivation).

Parameters in the order that TensorRT's ahead-of-time plugins want: inputs, 32-bit integers,
outputs.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
#: as `reference.LOWEST_BIAS`: times log2(e) it is still a finite float32
LOWEST_BIAS = tl.constexpr(-2.0e38)


@triton.jit
def update_softmax(scores, row_max, row_sum):
    """One step of the online softmax, base 2.

    Returns the block's weights `[M, N]` in 0..1, the factor `[M]` for what was summed before, and
    the new row maxima and sums.
    """
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    weights = tl.exp2(scores - new_max[:, None])
    carry = tl.exp2(row_max - new_max)
    return weights, carry, new_max, row_sum * carry + tl.sum(weights, 1)


@triton.jit
def add_bias(scores, bias, cols, valid, rows, rows_valid, S, BIAS: tl.constexpr):
    """Add one block of biases, in base 2, to `scores` `[M, N]`.

    `bias` points at query 0 and the block's first key; `BIAS` is "none", "keys" (one row for all
    queries) or "full".
    """
    if BIAS == "keys":
        row = tl.load(bias + cols, mask=valid, other=0.0).to(tl.float32)
        scores += (tl.maximum(row, LOWEST_BIAS) * LOG2_E)[None, :]
    if BIAS == "full":
        starts = bias + (rows.to(tl.int64) * S)[:, None]
        mask = rows_valid[:, None] & valid[None, :]
        tile = tl.load(starts + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        scores += tl.maximum(tile, LOWEST_BIAS) * LOG2_E
    return scores


@triton.jit
def attend(
    q_tile, k, v, bias, S, width, rows, rows_valid,
    SCALE_LOG2: tl.constexpr, BIAS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Attend from `q_tile` `[M, Dh]` to every key of one head, `BLOCK_N` at a time.

    `k`, `v` and `bias` point at the first element of the batch and head; `width` is the distance
    of two tokens in `v`. Returns `[M, Dh]` float32.
    """
    BLOCK_M: tl.constexpr = q_tile.shape[0]
    Dh: tl.constexpr = q_tile.shape[1]
    cols = tl.arange(0, BLOCK_N)
    lanes = tl.arange(0, Dh)
    k_offsets = cols[:, None] * Dh + lanes[None, :]
    v_offsets = cols[:, None] * width + lanes[None, :]
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, Dh], tl.float32)
    for start in range(0, S, BLOCK_N):
        valid = start + cols < S
        keys = tl.load(k + k_offsets, mask=valid[:, None], other=0.0)
        scores = tl.dot(q_tile, tl.trans(keys)) * SCALE_LOG2
        scores = add_bias(scores, bias, cols, valid, rows, rows_valid, S, BIAS)
        if start + BLOCK_N > S:
            scores = tl.where(valid[None, :], scores, float("-inf"))
        weights, carry, row_max, row_sum = update_softmax(scores, row_max, row_sum)
        values = tl.load(v + v_offsets, mask=valid[:, None], other=0.0)
        acc = tl.dot(weights.to(values.dtype), values, acc * carry[:, None])
        k += BLOCK_N * Dh
        v += BLOCK_N * width
        if BIAS != "none":
            bias += BLOCK_N
    return acc / row_sum[:, None]


@triton.jit
def flash_attention(
    q_ptr, k_ptr, v_ptr, bias_ptr,
    T, S, H, R,
    out_ptr,
    scale: tl.constexpr, Dh: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, FULL_BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid `(ceil(T / BLOCK_M), B * H)`; shapes and meaning: `reference.flash_attention`.

    `bias_ptr` may be the constant None; R, its number of queries, is 1 or T.
    """
    SCALE_LOG2: tl.constexpr = scale * LOG2_E
    batch = (tl.program_id(1) // H).to(tl.int64)
    head = tl.program_id(1) % H
    width = H * Dh
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows_valid = rows < T
    lanes = tl.arange(0, Dh)
    q = q_ptr + (batch * H + head) * T * Dh
    q_tile = tl.load(q + rows[:, None] * Dh + lanes[None, :], mask=rows_valid[:, None], other=0.0)
    k = k_ptr + (batch * H + head) * S * Dh
    v = v_ptr + batch * S * width + head * Dh
    if bias_ptr is None:
        result = attend(
            q_tile, k, v, bias_ptr, S, width, rows, rows_valid, SCALE_LOG2, "none", BLOCK_N
        )
    else:
        bias = bias_ptr + batch * R * S
        if R == 1:
            result = attend(
                q_tile, k, v, bias, S, width, rows, rows_valid, SCALE_LOG2, "keys", BLOCK_N
            )
        else:  # a tile of biases needs registers: smaller blocks
            result = attend(
                q_tile, k, v, bias, S, width, rows, rows_valid, SCALE_LOG2, "full", FULL_BLOCK_N
            )
    out = out_ptr + batch * T * width + head * Dh + rows[:, None] * width + lanes[None, :]
    tl.store(out, result.to(out_ptr.dtype.element_ty), mask=rows_valid[:, None])
