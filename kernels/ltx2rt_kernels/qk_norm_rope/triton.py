"""One program a token of q or k: read the row once, norm, rotate, write it head by head."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def qk_norm_rope(
    q_ptr,
    k_ptr,
    q_weight_ptr,
    k_weight_ptr,
    q_cos_ptr,
    q_sin_ptr,
    k_cos_ptr,
    k_sin_ptr,
    Tq,
    Tk,
    q_out_ptr,
    k_out_ptr,
    H: tl.constexpr,
    Dh: tl.constexpr,
    epsilon: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Grid `(2 max(Tq, Tk), B)`: q and k of one position run side by side, so that the tables they
    share in self-attention are read from memory once.
    """
    token = tl.program_id(0) // 2
    batch = tl.program_id(1)
    if tl.program_id(0) % 2 == 0:
        if token < Tq:
            _norm_rope_row(
                q_ptr, q_weight_ptr, q_cos_ptr, q_sin_ptr, q_out_ptr,
                batch, token, Tq, H, Dh, epsilon, INTERLEAVED,
            )  # fmt: skip
    else:
        if token < Tk:
            _norm_rope_row(
                k_ptr, k_weight_ptr, k_cos_ptr, k_sin_ptr, k_out_ptr,
                batch, token, Tk, H, Dh, epsilon, INTERLEAVED,
            )  # fmt: skip


@triton.jit
def _norm_rope_row(
    x_ptr,
    weight_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    batch,
    token,
    tokens,
    H: tl.constexpr,
    Dh: tl.constexpr,
    epsilon: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    W: tl.constexpr = H * Dh
    HALF: tl.constexpr = Dh // 2
    row = batch.to(tl.int64) * tokens + token
    if INTERLEAVED:
        lane = tl.arange(0, W)
        x = tl.load(x_ptr + row * W + lane).to(tl.float32)
        weight = tl.load(weight_ptr + lane).to(tl.float32)
        x *= tl.rsqrt(tl.sum(x * x, axis=0) / W + epsilon) * weight
        first, second = tl.split(tl.reshape(x, (W // 2, 2)))
        cos, _ = tl.split(tl.reshape(tl.load(cos_ptr + row * W + lane), (W // 2, 2)))
        sin, _ = tl.split(tl.reshape(tl.load(sin_ptr + row * W + lane), (W // 2, 2)))
        cos = cos.to(tl.float32)
        sin = sin.to(tl.float32)
        y = tl.interleave(first * cos - second * sin, second * cos + first * sin)
        head = batch.to(tl.int64) * H + lane // Dh
        at = (head * tokens + token) * Dh + lane % Dh
        tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty))
    else:
        head = tl.arange(0, H)[:, None]
        lane = tl.arange(0, HALF)[None, :]
        at = head * Dh + lane
        first = tl.load(x_ptr + row * W + at).to(tl.float32)
        second = tl.load(x_ptr + row * W + at + HALF).to(tl.float32)
        squares = tl.sum(tl.sum(first * first + second * second, axis=1), axis=0)
        scale = tl.rsqrt(squares / W + epsilon)
        first *= scale * tl.load(weight_ptr + at).to(tl.float32)
        second *= scale * tl.load(weight_ptr + at + HALF).to(tl.float32)
        line = (batch.to(tl.int64) * H + head) * tokens + token
        cos = tl.load(cos_ptr + line * HALF + lane).to(tl.float32)
        sin = tl.load(sin_ptr + line * HALF + lane).to(tl.float32)
        dtype = out_ptr.dtype.element_ty
        out = out_ptr + line * Dh + lane
        tl.store(out, (first * cos - second * sin).to(dtype))
        tl.store(out + HALF, (second * cos + first * sin).to(dtype))
