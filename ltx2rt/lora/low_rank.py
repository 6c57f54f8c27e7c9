"""Arithmetic of low-rank factors: orthogonal to each other, of a lower rank, of a difference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ltx2rt.engine import Array

#: directions weaker than this, relative to the strongest, are not part of a space
_RANK_TOLERANCE = 1e-6


def orthogonalize(
    downs: Sequence[Array], ups: Sequence[Array], fraction: float = 1.0
) -> tuple[list[Array], list[Array]]:
    """Take out of each LoRA what earlier ones read and write (`lora.combine`).

    Args:
        downs: `[rank, in]` each, in order.
        ups: `[out, rank]` each.
        fraction: which part of their directions is taken out, the strongest first.

    Returns:
        float32 factors of the same shapes.
    """
    new_downs: list[Array] = []
    new_ups: list[Array] = []
    for down, up in zip(downs, ups, strict=True):
        wide_down, wide_up = down.astype(np.float64), up.astype(np.float64)
        if new_ups:
            read = _basis(np.concatenate(new_downs, axis=0).T, fraction)
            written = _basis(np.concatenate(new_ups, axis=1), fraction)
            # twice: one pass leaves rounding errors of the size of what was removed
            for _ in range(2):
                wide_down = wide_down - (wide_down @ read) @ read.T
                wide_up = wide_up - written @ (written.T @ wide_up)
        new_downs.append(wide_down.astype(np.float32))
        new_ups.append(wide_up.astype(np.float32))
    return new_downs, new_ups


def _basis(columns: Array, fraction: float) -> Array:
    """Orthonormal basis of a column space, `[n, dimensions]` float64, strongest first."""
    q, r = np.linalg.qr(columns.astype(np.float64))
    left, values, _ = np.linalg.svd(r, full_matrices=False)  # small, of the same rank
    kept = int(np.sum(values > _RANK_TOLERANCE * values.max(initial=0.0)))
    basis: Array = q @ left[:, : math.ceil(fraction * kept)]
    return basis


def truncate(down: Array, up: Array, rank: int) -> tuple[Array, Array]:
    """The nearest factors of a lower rank (Eckart-Young): singular values are shared evenly.

    Args:
        down, up: `[r, in]` and `[out, r]`.
        rank: at most `min(r, in, out)`.

    Returns:
        float32 `[rank, in]` and `[out, rank]`.
    """
    up_q, up_r = np.linalg.qr(up.astype(np.float64))
    down_q, down_r = np.linalg.qr(down.astype(np.float64).T)
    left, values, right = np.linalg.svd(up_r @ down_r.T, full_matrices=False)
    root = np.sqrt(values[:rank])
    new_up = (up_q @ left[:, :rank]) * root
    new_down = root[:, None] * (right[:rank] @ down_q.T)
    return new_down.astype(np.float32), new_up.astype(np.float32)


def low_rank_of(delta: Array, rank: int) -> tuple[Array, Array]:
    """The nearest factors of a difference `[out, in]`: `[rank, in]` and `[out, rank]` float32."""
    left, values, right = np.linalg.svd(delta, full_matrices=False)
    root = np.sqrt(values[:rank])
    return (root[:, None] * right[:rank]).astype(np.float32), (left[:, :rank] * root).astype(
        np.float32
    )
