"""Attention, feed-forward and RMS norms of the diffusion transformer and the text connectors.

Behaviour: spec/transformer.md §8 to §10. State-dict names are the official ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

Rope = tuple[Tensor, Tensor]


def rms_norm(x: Tensor, eps: float, weight: Tensor | None = None) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis; float32 inside, rounded once."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    if weight is not None:
        normed = normed * weight.float()
    return normed.to(x.dtype)


class RMSNorm(nn.Module):
    """RMS norm over the last axis with a learned weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.eps, self.weight)


def apply_split_rope(x: Tensor, rope: Rope) -> Tensor:
    """Rotate `x` `[B, H, T, Dh]` by tables `[B, H, T, Dh/2]`; halves of a head form the pairs."""
    cos, sin = rope
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def apply_interleaved_rope(x: Tensor, rope: Rope) -> Tensor:
    """Rotate `x` `[B, T, W]` by tables `[B, T, W]`; neighbouring lanes form the pairs."""
    cos, sin = rope
    pairs = torch.unflatten(x, -1, (-1, 2))
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    return x * cos + turned * sin


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Plain `softmax(q k^T / sqrt(Dh) + bias) v` on `[B, H, T, Dh]`: backends fuse this form."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    return torch.softmax(scores, dim=-1) @ v


class Attention(nn.Module):
    """Multi-head attention with full-width q/k norm, optional RoPE, bias, pass-through and gates.

    Args:
        query_dim: width of `x`.
        context_dim: width of `context` (keys and values).
        heads, head_dim: the inner width is their product.
        out_dim: width of the result.
        eps: of the q and k norms.
        gated: add `to_gate_logits`, one gate a head, read from `x`.
    """

    def __init__(
        self,
        query_dim: int,
        context_dim: int,
        heads: int,
        head_dim: int,
        out_dim: int,
        eps: float,
        *,
        gated: bool,
    ) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads, self.head_dim = heads, head_dim
        self.to_q = nn.Linear(query_dim, inner)
        self.to_k = nn.Linear(context_dim, inner)
        self.to_v = nn.Linear(context_dim, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, out_dim)])
        self.q_norm = RMSNorm(inner, eps)
        self.k_norm = RMSNorm(inner, eps)
        self.to_gate_logits = nn.Linear(query_dim, heads) if gated else None

    def split_heads(self, x: Tensor) -> Tensor:
        """`[B, T, H*Dh]` -> `[B, H, T, Dh]`."""
        return torch.unflatten(x, -1, (self.heads, self.head_dim)).transpose(1, 2)

    def _rotated_heads(self, x: Tensor, rope: Rope | None) -> Tensor:
        if rope is None:
            return self.split_heads(x)
        if rope[0].dim() == 3:
            return self.split_heads(apply_interleaved_rope(x, rope))
        return apply_split_rope(self.split_heads(x), rope)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        bias: Tensor | None = None,
        rope_q: Rope | None = None,
        rope_k: Rope | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Attend from `x` to `context`.

        Args:
            x: `[B, T, query_dim]`.
            context: `[B, S, context_dim]`; `x` itself for self-attention.
            bias: additive float, broadcastable to `[B, H, T, S]`.
            rope_q: (cos, sin), `[B, H, T, Dh/2]` (split) or `[B, T, W]` (interleaved).
            rope_k: the same for keys.
            keep: `[B]`, 1 = attention, 0 = values pass through instead (self-attention only).

        Returns:
            `[B, T, out_dim]`.
        """
        q = self._rotated_heads(self.q_norm(self.to_q(x)), rope_q)
        k = self._rotated_heads(self.k_norm(self.to_k(context)), rope_k)
        values = self.to_v(context).unflatten(-1, (self.heads, self.head_dim))
        out = attend(q, k, values.transpose(1, 2), bias).transpose(1, 2)
        if keep is not None:
            share = keep.reshape(-1, 1, 1, 1)
            out = out * share + values * (1 - share)
        if self.to_gate_logits is not None:
            out = out * (2 * torch.sigmoid(self.to_gate_logits(x))).unsqueeze(-1)
        result: Tensor = self.to_out[0](out.flatten(-2))
        return result


class GeluProjection(nn.Module):
    """Linear, then GELU with the tanh approximation."""

    def __init__(self, width: int, hidden: int, *, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """`net.2(gelu_tanh(net.0.proj(x)))`, hidden width 4 times the width; `net.1` holds nothing."""

    def __init__(self, width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [
                GeluProjection(width, 4 * width, bias=bias),
                nn.Identity(),
                nn.Linear(4 * width, width, bias=bias),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.net[2](self.net[0](x))
        return result
