"""Merge updates into one tensor, with the official rounding (spec/lora.md §2)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import numpy as np

from ltx2rt.engine import Array
from ltx2rt.lora.updates import Load, LowRank, Update
from ltx2rt.weights.floats import cast, round_bfloat16_inplace

#: rows that are multiplied and rounded at once: their delta stays in the processor's cache. Whether
#: rows are cut here or multiplied together changes no bit.
ROWS = 256


def fuse(
    weight: Array,
    updates: Sequence[tuple[Update, float]],
    load: Load,
    *,
    dtype: str = "bfloat16",
    delta_dtype: str = "bfloat16",
    threads: int = 1,
) -> Array:
    """Apply updates in order; float32 values of the same shape. `weight` is not changed.

    Low-rank updates that follow each other follow the official recipe; the other kinds, which it
    does not know, are computed in float32.

    Args:
        weight: float32 values.
        updates: each with its strength.
        load: float32 values of an adapter's tensor.
        dtype: the weight's own dtype, `bfloat16` or `float32`; the result is rounded to it.
        delta_dtype: what factors and deltas of low-rank updates are rounded to. Official: bfloat16
            whatever `dtype` is; float32 is what the official arithmetic does to a float32 model.
        threads: how many blocks of rows are worked on at once.
    """
    runs = [(low, list(run)) for low, run in groupby(updates, key=_is_low_rank)]
    for index, (low, run) in enumerate(runs):
        if low:
            loaded = [_factors(update, strength, load) for update, strength in run]
            rounded = dtype if index == len(runs) - 1 else "float32"
            weight = add_low_rank(
                weight, loaded, dtype=rounded, delta_dtype=delta_dtype, threads=threads
            )
        else:
            for update, strength in run:
                weight = update.merged(weight, strength, load)
    return cast(weight, dtype) if runs and not runs[-1][0] else weight


def add_low_rank(
    weight: Array,
    factors: Sequence[tuple[Array, Array, float]],
    *,
    dtype: str = "bfloat16",
    delta_dtype: str = "bfloat16",
    threads: int = 1,
) -> Array:
    """Add `strength * up @ down` of all factors, a block of rows at a time; see `fuse`.

    Args:
        weight: `[out, in]` float32.
        factors: `(down [rank, in], up [out, rank], strength)` in order; float32 values.
    """
    if not factors:
        return weight
    prepared = [
        (cast(down, delta_dtype), cast(up, delta_dtype), np.float32(strength))
        for down, up, strength in factors
    ]
    (down_1, up_1, scale_1), *others = prepared
    scaled = cast(up_1 * scale_1, delta_dtype)
    result = np.empty(weight.shape, np.float32)

    def merge_rows(begin: int) -> None:
        rows = slice(begin, begin + ROWS)
        delta = result[rows]
        np.matmul(scaled[rows], down_1, out=delta)
        _round(delta, delta_dtype)
        for down, up, scale in others:
            product = up[rows] @ down
            product *= scale
            delta += product
            _round(delta, delta_dtype)
        delta += weight[rows]
        _round(delta, dtype)

    begins = range(0, weight.shape[0], ROWS)
    if threads == 1 or len(begins) == 1:
        for begin in begins:
            merge_rows(begin)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(merge_rows, begins))
    return result


def _round(values: Array, dtype: str) -> None:
    if dtype == "bfloat16":
        round_bfloat16_inplace(values)


def _is_low_rank(item: tuple[Update, float]) -> bool:
    return isinstance(item[0], LowRank)


def _factors(update: Update, strength: float, load: Load) -> tuple[Array, Array, float]:
    assert isinstance(update, LowRank)
    down, up = update.factors(load)
    return down, up, strength * update.scale
