"""Rotary position tables, computed on the host in the official order of operations.

spec/transformer.md §8: the frequency ladder is float64 rounded to float32; the angles are
float32 from the first step on. The ladder's top entry is about 15708, so one float32 ulp of a
position is an angle of 1e-3: another order gives another result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ltx2rt.errors import OptionError, ShapeError

F32 = NDArray[np.float32]
RopeType = Literal["split", "interleaved"]


def rope_frequencies(count: int, theta: float, precision: str = "float64") -> F32:
    """`theta^(k / (count - 1)) pi / 2` for `k` in `0..count-1`, rounded to float32.

    Args:
        count: number of frequencies; 1 gives `[pi / 2]`.
        theta: top of the ladder.
        precision: `float64`; anything else means a float32 ladder (an old option).
    """
    if precision == "float64":
        ladder = np.power(np.float64(theta), np.linspace(0.0, 1.0, count)) * (np.pi / 2)
        return ladder.astype(np.float32)
    powers = np.power(np.float64(theta), _linspace_float32(count).astype(np.float64))
    return powers.astype(np.float32) * np.float32(np.pi / 2)


def _linspace_float32(count: int) -> F32:
    """0 to 1 with a float32 step, counted from the nearer end, each entry rounded once."""
    if count == 1:
        return np.zeros(1, np.float32)
    step = np.float64(np.float32(1) / np.float32(count - 1))
    index = np.arange(count)
    upper = 1.0 - step * (count - 1 - index)
    return np.where(index < count // 2, step * index, upper).astype(np.float32)


def rope_angles(
    positions: NDArray[Any],
    *,
    width: int,
    max_pos: Sequence[float],
    theta: float = 10000.0,
    precision: str = "float64",
) -> F32:
    """Angles per token.

    Args:
        positions: `[B, n, T, 2]` start and end bounds per axis (their middle is used), or
            `[B, n, T]` plain positions.
        width: width `W` of the rotated vectors, all heads together.
        max_pos: extent of each of the `n` axes.
        theta, precision: see `rope_frequencies`.

    Returns:
        `[B, T, K n]` float32 with `K = W // (2 n)`: frequency major, axis minor.

    Raises:
        ShapeError: the number of axes differs from `max_pos`.
    """
    single = positions.astype(np.float32, copy=False)
    if single.ndim == 4:
        single = (single[..., 0] + single[..., 1]) / np.float32(2)
    if single.ndim != 3 or single.shape[1] != len(max_pos):
        raise ShapeError(
            f"RoPE positions have shape {list(positions.shape)}; expected "
            f"[B, {len(max_pos)}, T, 2] or [B, {len(max_pos)}, T]."
        )
    axes = len(max_pos)
    extent = np.asarray(max_pos, np.float32)[None, :, None]
    centered = single / extent * np.float32(2) - np.float32(1)
    ladder = rope_frequencies(width // (2 * axes), theta, precision)
    angles = ladder[None, None, :, None] * centered.transpose(0, 2, 1)[:, :, None, :]
    return angles.reshape(single.shape[0], single.shape[2], -1)


def rope_tables(
    positions: NDArray[Any],
    *,
    width: int,
    heads: int,
    max_pos: Sequence[float],
    theta: float = 10000.0,
    rope_type: RopeType = "split",
    precision: str = "float64",
) -> tuple[F32, F32]:
    """Cosine and sine tables of one token sequence.

    Args:
        positions, width, max_pos, theta, precision: see `rope_angles`.
        heads: number of heads that share `width`.
        rope_type: the layout. `split`: different heads get different frequency bands.

    Returns:
        cos and sin, float32: `[B, heads, T, width / heads / 2]` for `split`, `[B, T, width]` for
        `interleaved`. Lanes that no frequency fills come first and do not rotate.

    Raises:
        ShapeError: `positions` do not fit.
        OptionError: unknown `rope_type`.
    """
    if rope_type not in ("split", "interleaved"):
        raise OptionError(f"rope_type={rope_type!r}; allowed: split, interleaved.")
    angles = rope_angles(positions, width=width, max_pos=max_pos, theta=theta, precision=precision)
    cos, sin = np.cos(angles), np.sin(angles)
    if rope_type == "interleaved":
        pad = width - 2 * angles.shape[-1]
        return _pad(np.repeat(cos, 2, axis=-1), pad, 1.0), _pad(
            np.repeat(sin, 2, axis=-1), pad, 0.0
        )
    pad = width // 2 - angles.shape[-1]
    return _by_head(_pad(cos, pad, 1.0), heads), _by_head(_pad(sin, pad, 0.0), heads)


def index_positions(count: int) -> F32:
    """Positions `0..count-1` on one axis, `[1, 1, count]`: those of the text connectors."""
    return np.arange(count, dtype=np.float32)[None, None]


def _pad(lanes: F32, count: int, value: float) -> F32:
    filled = np.full((*lanes.shape[:-1], count), value, np.float32)
    return np.concatenate([filled, lanes], axis=-1)


def _by_head(lanes: F32, heads: int) -> F32:
    batch, tokens, _ = lanes.shape
    return np.ascontiguousarray(lanes.reshape(batch, tokens, heads, -1).transpose(0, 2, 1, 3))
