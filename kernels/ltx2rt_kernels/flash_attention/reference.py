"""Attention as the formula says, in float32."""

from __future__ import annotations

import torch
from torch import Tensor

#: Biases are raised to this value first: rows whose keys are all masked stay free of NaN.
LOWEST_BIAS = -2.0e38


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`[B, T, H*Dh]` -> `[B, H, T, Dh]` float32."""
    return torch.unflatten(x.float(), -1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """`[B, H, T, Dh]` -> `[B, T, H*Dh]`."""
    return x.transpose(1, 2).flatten(-2)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """`softmax(q k^T / sqrt(Dh) + bias) v` of every head.

    Args:
        q: `[B, H, T, Dh]`, any float dtype; T >= 1.
        k: `[B, H, S, Dh]`, S >= 1.
        v: `[B, S, H*Dh]`, as projected.
        bias: additive, `[B, 1, 1, S]` (keys) or `[B, 1, T, S]`; may hold -inf or the dtype's
            minimum. A row that masks every key attends to all of them alike.

    Returns:
        `[B, T, H*Dh]` float32, as the output projection reads it.
    """
    scores = q.float() @ k.float().transpose(-2, -1) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias.float().clamp(min=LOWEST_BIAS)
    return join_heads(torch.softmax(scores, dim=-1) @ split_heads(v, q.shape[1]))
