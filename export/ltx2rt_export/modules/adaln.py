"""Timestep features and adaptive layer norms (spec/transformer.md §6)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FEATURES = 256


def sinusoid_frequencies() -> Tensor:
    """`exp(-ln(10000) j / 128)`, `[128]` float32."""
    half = FEATURES // 2
    steps = torch.arange(half, dtype=torch.float32, device="cpu")
    return torch.exp(steps * (-math.log(10000.0)) / half)


def timestep_features(timesteps: Tensor, frequencies: Tensor) -> Tensor:
    """Cosines, then sines, of every timestep times every frequency.

    Args:
        timesteps: `[N]` float32, already times 1000.
        frequencies: `[128]` float32, `sinusoid_frequencies()`.

    Returns:
        `[N, 256]` float32.
    """
    angles = timesteps.unsqueeze(-1) * frequencies
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


class TimestepEmbedder(nn.Module):
    """Two linears with SiLU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(FEATURES, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.linear_2(nn.functional.silu(self.linear_1(features)))
        return result


class TimestepEmbedding(nn.Module):
    """Holds the embedder under its official name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(width)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.timestep_embedder(features)
        return result


class AdaLayerNormSingle(nn.Module):
    """Timestep to `rows` modulation rows of width `width`, and the embedding they come from."""

    def __init__(self, width: int, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.emb = TimestepEmbedding(width)
        self.linear = nn.Linear(width, rows * width)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[N, 256]` to rows `[N, rows, width]` and embedded timesteps `[N, width]`."""
        embedded = self.emb(features)
        rows = self.linear(nn.functional.silu(embedded))
        return rows.unflatten(-1, (self.rows, -1)), embedded


def gather_rows(row: Tensor, index: Tensor) -> Tensor:
    """Row of each token: `[U, D]` and `[B, T]` int64 to `[B, T, D]` (one Gather)."""
    return nn.functional.embedding(index, row)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`x (1 + scale) + shift`."""
    return x * (1 + scale) + shift
