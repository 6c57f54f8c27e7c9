"""One program a row: read it once, norm, take the maximum, write codes."""

from __future__ import annotations

import triton
import triton.language as tl

from ltx2rt_kernels import spec

E4M3_MAX = tl.constexpr(spec.E4M3_MAX)
LEAST_TOKEN_AMAX = tl.constexpr(spec.LEAST_TOKEN_AMAX)


@triton.jit
def unit_row(x_ptr, row, lane, W: tl.constexpr, epsilon: tl.constexpr):
    """`x / sqrt(mean(x^2) + epsilon)` of one row, float32."""
    x = tl.load(x_ptr + row * W + lane).to(tl.float32)
    return x * tl.rsqrt(tl.sum(x * x, axis=0) / W + epsilon)


@triton.jit
def store_codes(value, codes_ptr, amax_ptr, row, lane, W: tl.constexpr):
    """E4M3 codes of a float32 row, scaled by its maximum."""
    amax = tl.maximum(tl.max(tl.abs(value), axis=0), LEAST_TOKEN_AMAX)
    codes = (value * (E4M3_MAX / amax)).to(codes_ptr.dtype.element_ty)
    tl.store(codes_ptr + row * W + lane, codes)
    tl.store(amax_ptr + row, amax)


@triton.jit
def rms_norm_quant(x_ptr, codes_ptr, amax_ptr, W: tl.constexpr, epsilon: tl.constexpr):
    """Grid `(B T)`."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, W)
    value = unit_row(x_ptr, row, lane, W, epsilon)
    store_codes(value, codes_ptr, amax_ptr, row, lane, W)
