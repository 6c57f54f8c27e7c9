"""Inputs of attention kernels as LTX makes them: normed heads, outlier channels, drifting keys."""

from __future__ import annotations

import torch
from torch import Tensor

from ltx2rt_kernels.fp8_attention.reference import quantize_tokens, quantize_values

BIASES = ("none", "keys", "full")


def make_qkv(
    lengths: tuple[int, int], head_dim: int, dtype: torch.dtype, *, batch: int = 2, heads: int = 2
) -> dict[str, Tensor]:
    """Queries and keys `[B, H, T, Dh]` with two outlier channels, values `[B, S, H*Dh]`."""
    generator = torch.Generator().manual_seed(sum(lengths) + head_dim)
    outliers = torch.ones(head_dim)
    outliers[torch.tensor([3, head_dim // 2 + 5])] = 6.0
    drift = 2 * torch.randn(heads, 1, head_dim, generator=generator)
    T, S = lengths
    q = torch.randn(batch, heads, T, head_dim, generator=generator) * outliers / 3
    k = torch.randn(batch, heads, S, head_dim, generator=generator) * outliers / 3 + drift
    v = torch.randn(batch, S, heads * head_dim, generator=generator)
    return {n: t.to(dtype) for n, t in (("q", q), ("k", k), ("v", v))}


def make_bias(kind: str, lengths: tuple[int, int], dtype: torch.dtype, batch: int = 2) -> Tensor:
    """`[B, 1, 1, S]` ("keys") or `[B, 1, T, S]` ("full").

    The last third of the keys is masked with the dtype's minimum; the first sample's first query
    with -inf, everywhere.
    """
    T, S = lengths
    generator = torch.Generator().manual_seed(7)
    bias = torch.randn(batch, 1, T if kind == "full" else 1, S, generator=generator).to(dtype)
    bias[..., S - S // 3 :] = torch.finfo(dtype).min
    bias[0, :, 0] = -torch.inf
    return bias


def quantized(inputs: dict[str, Tensor], *, values: bool) -> dict[str, Tensor]:
    """Inputs of the 8-bit attention: q, k, their scales, and v or quantised v with `v_amax`."""
    q, q_scale = quantize_tokens(inputs["q"])
    mean = inputs["k"].float().mean(dim=2, keepdim=True)
    k, k_scale = quantize_tokens(inputs["k"], mean)
    made = {"q": q, "k": k, "v": inputs["v"], "q_scale": q_scale, "k_scale": k_scale}
    if values:
        made["v_amax"] = inputs["v"].abs().amax(dim=1, keepdim=True)
        made["v"] = quantize_values(inputs["v"], made["v_amax"])
    return made
