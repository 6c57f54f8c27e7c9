"""Attention on 8-bit floats (E4M3) and the kernels that make its inputs (README.md has the why).

Parameters in the order that TensorRT's ahead-of-time plugins want: inputs, 32-bit integers,
outputs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ltx2rt_kernels import spec
from ltx2rt_kernels.flash_attention.triton import LOG2_E, add_bias, update_softmax
from ltx2rt_kernels.fp8_attention import spec as fp8

E4M3_MAX = tl.constexpr(spec.E4M3_MAX)
GROUP = tl.constexpr(fp8.GROUP)
LEAST_AMAX = tl.constexpr(fp8.LEAST_AMAX)


@triton.jit
def to_e4m3(x):
    """Round float32 to E4M3, the largest number instead of an overflow."""
    return tl.minimum(tl.maximum(x, -E4M3_MAX), E4M3_MAX).to(tl.float8e4nv)


@triton.jit
def quantize_tokens(x_ptr, mean_ptr, T, quantized_ptr, scale_ptr, Dh: tl.constexpr):
    """One group of tokens of one head; grid `(ceil(T / GROUP), B * H)`.

    Shapes and meaning: `reference.quantize_tokens`; `mean_ptr` may be the constant None.
    """
    head = tl.program_id(1).to(tl.int64)  # of the whole batch
    rows = tl.program_id(0) * GROUP + tl.arange(0, GROUP)
    lanes = tl.arange(0, Dh)
    valid = (rows < T)[:, None]
    offsets = head * T * Dh + rows[:, None] * Dh + lanes[None, :]
    x = tl.load(x_ptr + offsets, mask=valid, other=0.0).to(tl.float32)
    if mean_ptr is not None:
        mean = tl.load(mean_ptr + head * Dh + lanes).to(tl.float32)
        x = tl.where(valid, x - mean[None, :], 0.0)
    scale = tl.maximum(tl.max(tl.abs(x)), LEAST_AMAX) / E4M3_MAX
    tl.store(quantized_ptr + offsets, to_e4m3(x / scale), mask=valid)
    tl.store(scale_ptr + head * tl.num_programs(0) + tl.program_id(0), scale)


@triton.jit
def quantize_values(v_ptr, amax_ptr, S, W, quantized_ptr, LANES: tl.constexpr):
    """One group of tokens, `LANES` channels, transposed; grid `(ceil(S / GROUP), W / LANES, B)`.

    Shapes and meaning: `reference.quantize_values`; tokens past S become zeros.
    """
    batch = tl.program_id(2).to(tl.int64)
    padded = tl.num_programs(0) * GROUP
    rows = tl.program_id(0) * GROUP + tl.arange(0, GROUP)
    lanes = tl.program_id(1) * LANES + tl.arange(0, LANES)
    offsets = batch * S * W + rows[:, None] * W + lanes[None, :]
    v = tl.load(v_ptr + offsets, mask=(rows < S)[:, None], other=0.0).to(tl.float32)
    amax = tl.load(amax_ptr + batch * W + lanes).to(tl.float32)
    scale = tl.maximum(amax, LEAST_AMAX) / E4M3_MAX
    target = quantized_ptr + batch * W * padded + lanes[:, None] * padded + rows[None, :]
    tl.store(target, tl.trans(to_e4m3(v / scale[None, :])))


@triton.jit
def attend(
    q_tile, row_scale, k, k_scale, v, bias, S, width, rows, rows_valid,
    BIAS: tl.constexpr, EIGHT_BIT_PV: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """As `flash_attention.triton.attend`, on E4M3 queries and keys.

    `row_scale` `[M]` holds the queries' scales times that of the softmax. E4M3 values come
    transposed; their scale is left to the caller.
    """
    BLOCK_M: tl.constexpr = q_tile.shape[0]
    Dh: tl.constexpr = q_tile.shape[1]
    cols = tl.arange(0, BLOCK_N)
    lanes = tl.arange(0, Dh)
    k_offsets = cols[:, None] * Dh + lanes[None, :]
    if EIGHT_BIT_PV:
        v_offsets = lanes[:, None] * (tl.cdiv(S, GROUP) * GROUP) + cols[None, :]
    else:
        v_offsets = cols[:, None] * width + lanes[None, :]
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, Dh], tl.float32)
    for start in range(0, S, BLOCK_N):
        valid = start + cols < S
        keys = tl.load(k + k_offsets, mask=valid[:, None], other=0.0)
        scale = row_scale * tl.load(k_scale + start // GROUP)
        scores = tl.dot(q_tile, tl.trans(keys)) * scale[:, None]
        scores = add_bias(scores, bias, cols, valid, rows, rows_valid, S, BIAS)
        if start + BLOCK_N > S:
            scores = tl.where(valid[None, :], scores, float("-inf"))
        weights, carry, row_max, row_sum = update_softmax(scores, row_max, row_sum)
        if EIGHT_BIT_PV:  # the block's product first, then one float32 addition
            values = tl.trans(tl.load(v + v_offsets))
            weights8 = (weights * E4M3_MAX).to(tl.float8e4nv)
            product = tl.dot(weights8, values, max_num_imprecise_acc=BLOCK_N)
            acc = acc * carry[:, None] + product
            v += BLOCK_N
        else:
            values = tl.load(v + v_offsets, mask=valid[:, None], other=0.0)
            acc = tl.dot(weights.to(values.dtype), values, acc * carry[:, None])
            v += BLOCK_N * width
        k += BLOCK_N * Dh
        if BIAS != "none":
            bias += BLOCK_N
    return acc / row_sum[:, None]


@triton.jit
def fp8_attention(
    q_ptr, k_ptr, v_ptr, q_scale_ptr, k_scale_ptr, v_amax_ptr, bias_ptr,
    T, S, H, R,
    out_ptr,
    scale: tl.constexpr, Dh: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, FULL_BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid `(ceil(T / BLOCK_M), B * H)`; shapes and meaning: `reference.fp8_attention`.

    `bias_ptr` may be the constant None; R, its number of queries, is 1 or T. Without `v_amax_ptr`
    values are 16-bit.
    """
    tl.static_assert(GROUP % BLOCK_N == 0, "a block of keys has one scale")
    EIGHT_BIT_PV: tl.constexpr = v_amax_ptr is not None
    batch = (tl.program_id(1) // H).to(tl.int64)
    head = tl.program_id(1) % H
    width = H * Dh
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows_valid = rows < T
    lanes = tl.arange(0, Dh)
    q = q_ptr + (batch * H + head) * T * Dh
    q_tile = tl.load(q + rows[:, None] * Dh + lanes[None, :], mask=rows_valid[:, None], other=0.0)
    scales = q_scale_ptr + tl.program_id(1) * tl.cdiv(T, GROUP) + rows // GROUP
    row_scale = tl.load(scales, mask=rows_valid, other=0.0) * (scale * LOG2_E)
    k = k_ptr + (batch * H + head) * S * Dh
    k_scale = k_scale_ptr + tl.program_id(1) * tl.cdiv(S, GROUP)
    if EIGHT_BIT_PV:
        v = v_ptr + (batch * width + head * Dh) * (tl.cdiv(S, GROUP) * GROUP)
    else:
        v = v_ptr + batch * S * width + head * Dh
    if bias_ptr is None:
        result = attend(
            q_tile, row_scale, k, k_scale, v, bias_ptr, S, width, rows, rows_valid,
            "none", EIGHT_BIT_PV, BLOCK_N,
        )  # fmt: skip
    else:
        bias = bias_ptr + batch * R * S
        if R == 1:
            result = attend(
                q_tile, row_scale, k, k_scale, v, bias, S, width, rows, rows_valid,
                "keys", EIGHT_BIT_PV, BLOCK_N,
            )  # fmt: skip
        else:  # a tile of biases needs registers: smaller blocks
            result = attend(
                q_tile, row_scale, k, k_scale, v, bias, S, width, rows, rows_valid,
                "full", EIGHT_BIT_PV, FULL_BLOCK_N,
            )  # fmt: skip
    if EIGHT_BIT_PV:
        amax = tl.load(v_amax_ptr + batch * width + head * Dh + lanes).to(tl.float32)
        result *= (tl.maximum(amax, LEAST_AMAX) / (E4M3_MAX * E4M3_MAX))[None, :]
    out = out_ptr + batch * T * width + head * Dh + rows[:, None] * width + lanes[None, :]
    tl.store(out, result.to(out_ptr.dtype.element_ty), mask=rows_valid[:, None])
