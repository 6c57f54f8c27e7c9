"""The layout of weights in memory: files hold `[out, in]`, engines take some as `[in, out]`."""

from __future__ import annotations

import numpy as np

from ltx2rt.engine import Array

_CACHE_LINE_BYTES = 64


def transposed_copy(matrix: Array) -> Array:
    """A contiguous copy of `matrix.T`.

    Strips of rows as wide as a cache line are written one after another: at sizes that are powers
    of two, numpy's own copy touches one new line per element and is about six times slower.
    """
    if matrix.ndim != 2:
        return np.ascontiguousarray(matrix.T)
    strip = max(1, _CACHE_LINE_BYTES // matrix.itemsize)
    result = np.empty(matrix.shape[::-1], matrix.dtype)
    for begin in range(0, matrix.shape[0], strip):
        rows = slice(begin, begin + strip)
        result[:, rows] = matrix[rows].T
    return result
