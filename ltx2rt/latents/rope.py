"""Rotary position tables, computed on the host in the official order of operations.

spec/transformer.md §8: the frequency ladder is float64 rounded to float32; the angles are
float32 from the first step on. The ladder's top entry is about 15708, so one float32 ulp of a
position is an angle of 1e-3: another order gives another result.

A video has tens of thousands of tokens, but few distinct positions on each axis: cosines and sines
are computed for those and gathered, which gives the same bits as computing them for every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ltx2rt.engine import F32, NUMPY_DTYPES, Array
from ltx2rt.errors import OptionError, ShapeError
from ltx2rt.weights.floats import as_dtype

RopeType = Literal["split", "interleaved"]

#: tokens that are gathered at once: what one head has of them fits a processor's cache
GATHERED = 2048


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
    positions: Array,
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
    single = _middles(positions, len(max_pos))
    axes = len(max_pos)
    extent = np.asarray(max_pos, np.float32)[None, :, None]
    centered = single / extent * np.float32(2) - np.float32(1)
    ladder = rope_frequencies(width // (2 * axes), theta, precision)
    angles = ladder[None, None, :, None] * centered.transpose(0, 2, 1)[:, :, None, :]
    return angles.reshape(single.shape[0], single.shape[2], -1)


def _middles(positions: Array, axes: int) -> F32:
    """`[B, n, T]` float32 positions, of bounds or plain ones."""
    single = positions.astype(np.float32, copy=False)
    if single.ndim == 4:
        single = (single[..., 0] + single[..., 1]) / np.float32(2)
    if single.ndim != 3 or single.shape[1] != axes:
        raise ShapeError(
            f"RoPE positions have shape {list(positions.shape)}; expected "
            f"[B, {axes}, T, 2] or [B, {axes}, T]."
        )
    return single


def rope_tables(
    positions: Array,
    *,
    width: int,
    heads: int,
    max_pos: Sequence[float],
    theta: float = 10000.0,
    rope_type: RopeType = "split",
    precision: str = "float64",
    dtype: str = "float32",
) -> tuple[Array, Array]:
    """Cosine and sine tables of one token sequence.

    Args:
        positions, width, max_pos, theta, precision: see `rope_angles`.
        heads: number of heads that share `width`.
        rope_type: the layout. `split`: different heads get different frequency bands.
        dtype: to which the float32 tables are rounded; bfloat16 ones are bit patterns.

    Returns:
        cos and sin: `[B, heads, T, width / heads / 2]` for `split`, `[B, T, width]` for
        `interleaved`. Lanes that no frequency fills come first and do not rotate.

    Raises:
        ShapeError: `positions` do not fit.
        OptionError: unknown `rope_type`.
    """
    if rope_type not in ("split", "interleaved"):
        raise OptionError(f"rope_type={rope_type!r}; allowed: split, interleaved.")
    single = _middles(positions, len(max_pos))
    if rope_type == "interleaved":
        heads, repeats = 1, 2
    else:
        repeats = 1
    lanes = repeats * width // 2 // heads
    shape = (single.shape[0], heads, single.shape[2], lanes)
    cos = np.empty(shape, NUMPY_DTYPES[dtype])
    sin = np.empty(shape, NUMPY_DTYPES[dtype])
    for sample, axes in enumerate(single):
        cosines: list[Array] = []
        sines: list[Array] = []
        index: list[Array] = []
        for axis, values in enumerate(axes):
            distinct, which = np.unique(values, return_inverse=True)
            both = _axis_lanes(distinct, axis, width, max_pos, theta, precision)
            for table, rows in zip(both, (cosines, sines), strict=True):
                laid = np.repeat(as_dtype(table, dtype), repeats, axis=-1)
                rows.append(laid.reshape(len(distinct), heads, lanes))
            index.append(which.reshape(-1))
        _gather(cos[sample], cosines, index)
        _gather(sin[sample], sines, index)
    return (cos[:, 0], sin[:, 0]) if rope_type == "interleaved" else (cos, sin)


def _axis_lanes(
    distinct: F32, axis: int, width: int, max_pos: Sequence[float], theta: float, precision: str
) -> tuple[F32, F32]:
    """Cosines and sines `[U, width / 2]` of the distinct positions of one axis in its own lanes,
    zeros in those of the others; the first axis fills those that no frequency does.
    """
    axes = len(max_pos)
    ladder = rope_frequencies(width // (2 * axes), theta, precision)
    extent = np.float32(max_pos[axis])
    centered = distinct / extent * np.float32(2) - np.float32(1)
    angles = ladder[None] * centered[:, None]
    pad = width // 2 - axes * len(ladder)
    cos, sin = (np.zeros((len(distinct), width // 2), np.float32) for _ in range(2))
    cos[:, pad + axis :: axes] = np.cos(angles)
    sin[:, pad + axis :: axes] = np.sin(angles)
    if axis == 0:
        cos[:, :pad] = 1
    return cos, sin


def _gather(out: Array, rows: Sequence[Array], index: Sequence[Array]) -> None:
    """Fill `[heads, T, lanes]` with each token's rows `[U, heads, lanes]` of all axes: as every
    lane is zero on all axes but one, their bits are put together with `or`.
    """
    bits = np.dtype(f"u{out.dtype.itemsize}")
    tables = [np.ascontiguousarray(table.swapaxes(0, 1)).view(bits) for table in rows]
    buffer = np.empty((GATHERED, out.shape[2]), bits)
    for begin in range(0, out.shape[1], GATHERED):
        parts = [which[begin : begin + GATHERED] for which in index]
        found = buffer[: len(parts[0])]
        for head in range(out.shape[0]):
            tokens = out[head, begin : begin + GATHERED].view(bits)
            for axis, (table, which) in enumerate(zip(tables, parts, strict=True)):
                # every index is in range: "clip" only spares numpy a copy
                np.take(table[head], which, axis=0, out=found if axis else tokens, mode="clip")
                if axis:
                    tokens |= found


def index_positions(count: int) -> F32:
    """Positions `0..count-1` on one axis, `[1, 1, count]`: those of the text connectors."""
    return np.arange(count, dtype=np.float32)[None, None]
