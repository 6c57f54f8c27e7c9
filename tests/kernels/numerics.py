"""Error measures of the kernel tests."""

from __future__ import annotations

from torch import Tensor


def rel_rms(got: Tensor, want: Tensor) -> float:
    """RMS of the error relative to the RMS of what is wanted; NaN anywhere gives NaN."""
    want = want.double()
    error = (got.double() - want).square().mean().sqrt()
    return float(error / want.square().mean().sqrt())
