"""One program a row: three reads, one write."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gated_residual(x_ptr, y_ptr, gate_ptr, index_ptr, out_ptr, W: tl.constexpr):
    """Grid `(B T)`. Without `index` every token has its own row of gates."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, W)
    source = row
    if index_ptr is not None:
        source = tl.load(index_ptr + row).to(tl.int64)
    gate = tl.load(gate_ptr + source * W + lane).to(tl.float32)
    x = tl.load(x_ptr + row * W + lane).to(tl.float32)
    y = tl.load(y_ptr + row * W + lane).to(tl.float32)
    tl.store(out_ptr + row * W + lane, (x + gate * y).to(out_ptr.dtype.element_ty))
