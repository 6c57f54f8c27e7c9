"""One program a row: read it once, norm, scale, shift, write it or its codes."""

from __future__ import annotations

import triton
import triton.language as tl

from ltx2rt_kernels.rms_norm_quant.triton import store_codes, unit_row


@triton.jit
def adaln_modulate(
    x_ptr,
    scale_ptr,
    shift_ptr,
    index_ptr,
    out_ptr,
    codes_ptr,
    amax_ptr,
    W: tl.constexpr,
    epsilon: tl.constexpr,
):
    """Grid `(B T)`. Without `index` every token has its own row of scale and shift; the result goes
    to `out`, or to `codes` and `amax`.
    """
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, W)
    source = row
    if index_ptr is not None:
        source = tl.load(index_ptr + row).to(tl.int64)
    scale = tl.load(scale_ptr + source * W + lane).to(tl.float32)
    shift = tl.load(shift_ptr + source * W + lane).to(tl.float32)
    value = unit_row(x_ptr, row, lane, W, epsilon) * (1 + scale) + shift
    if out_ptr is not None:
        tl.store(out_ptr + row * W + lane, value.to(out_ptr.dtype.element_ty))
    else:
        store_codes(value, codes_ptr, amax_ptr, row, lane, W)
