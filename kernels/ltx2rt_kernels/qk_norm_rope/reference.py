"""RMS norm of q and k over the whole inner width, then RoPE, in plain float32."""

from __future__ import annotations

import torch
from torch import Tensor


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    q_cos: Tensor,
    q_sin: Tensor,
    k_cos: Tensor,
    k_sin: Tensor,
    *,
    num_heads: int,
    epsilon: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Normalised and rotated q and k, head by head; computed in float32, rounded once at the end.

    Formulas: spec/transformer.md §8.2, §8.3 and §9.

    Args:
        q: `[B, Tq, W]`, `W = num_heads * Dh`.
        k: `[B, Tk, W]`.
        q_weight, k_weight: `[W]`.
        q_cos, q_sin: split layout `[B, num_heads, Tq, Dh / 2]`, each head with a band of its own;
            or interleaved layout `[B, Tq, W]`, where two neighbouring lanes hold one value.
        k_cos, k_sin: the same for k, with `Tk`.
        num_heads: heads that share the width.
        epsilon: added to the mean square.

    Returns:
        `[B, num_heads, Tq, Dh]` and `[B, num_heads, Tk, Dh]`, in the dtype of q.
    """
    rope_q, rope_k = (q_cos, q_sin), (k_cos, k_sin)
    return (
        _norm_rope(q, q_weight, rope_q, num_heads, epsilon),
        _norm_rope(k, k_weight, rope_k, num_heads, epsilon),
    )


def _norm_rope(
    x: Tensor, weight: Tensor, rope: tuple[Tensor, Tensor], heads: int, epsilon: float
) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon) * weight.float()
    cos, sin = (t.float() for t in rope)
    if cos.dim() == 3:  # interleaved: pairs (2i, 2i + 1) of the full width
        pairs = torch.unflatten(wide, -1, (-1, 2))
        turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
        rotated = torch.unflatten(wide * cos + turned * sin, -1, (heads, -1)).transpose(1, 2)
    else:  # split: pairs (i, i + Dh / 2) of a head
        first, second = torch.unflatten(wide, -1, (heads, -1)).transpose(1, 2).chunk(2, dim=-1)
        rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    result: Tensor = rotated.to(x.dtype).contiguous()
    return result
