"""Gated residual in plain float32."""

from __future__ import annotations

from torch import Tensor


def gated_residual(x: Tensor, y: Tensor, gate: Tensor, index: Tensor | None = None) -> Tensor:
    """`x + gate y`; float32 inside, rounded once (spec/transformer.md §11).

    Args:
        x: `[B, T, W]`, the stream.
        y: `[B, T, W]`, what a layer adds to it.
        gate: `[U, W]`, one row for each distinct timestep, if `index` is given; else `[B, T, W]`.
        index: `[B, T]` int64, row of each token.

    Returns:
        `[B, T, W]`, in the dtype of x.
    """
    rows = gate if index is None else gate[index]
    return (x.float() + rows.float() * y.float()).to(x.dtype)
