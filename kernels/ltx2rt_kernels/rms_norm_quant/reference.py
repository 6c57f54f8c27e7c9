"""RMS norm without a weight, then E4M3 codes with a scale a token, in plain float32."""

from __future__ import annotations

import torch
from torch import Tensor

from ltx2rt_kernels.spec import E4M3_MAX, LEAST_TOKEN_AMAX


def rms_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """`x / sqrt(mean(x^2) + epsilon)` over the last axis, float32 (spec/transformer.md §11)."""
    wide = x.float()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)


def quantize_tokens(wide: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and the maximum of every token.

    Args:
        wide: `[B, T, W]` float32.

    Returns:
        `[B, T, W]` float8_e4m3fn, `e4m3(wide * (448 / amax))`; `[B, T, 1]` float32,
        `amax = max(|wide|, 1e-20)`. The value is about `code * amax / 448`.
    """
    amax = wide.abs().amax(-1, keepdim=True).clamp(min=LEAST_TOKEN_AMAX)
    return (wide * (E4M3_MAX / amax)).to(torch.float8_e4m3fn), amax


def rms_norm_quant(x: Tensor, *, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Codes of the normed rows of `x` `[B, T, W]`; see `quantize_tokens`."""
    return quantize_tokens(rms_norm(x, epsilon))
