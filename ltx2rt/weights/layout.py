"""The layout of weights in memory: files hold `[out, in]`, engines take some as `[in, out]`."""

from __future__ import annotations

import numpy as np

from ltx2rt.engine import Array
from ltx2rt.parallel import each

#: rows and columns that are transposed together: a part of the cache of one core
_TILE = 256
#: between the rows of a tile: rows of powers of two would fall on the same lines of the cache
_PAD_BYTES = 64


def transposed_copy(matrix: Array) -> Array:
    """A contiguous copy of `matrix.T`, tile by tile, each through a copy whose rows lie apart: at
    sizes that are powers of two, numpy's own copy touches one new line of the cache per element.
    Threads share the rows.
    """
    if matrix.ndim != 2:
        return np.ascontiguousarray(matrix.T)
    result = np.empty(matrix.shape[::-1], matrix.dtype)

    def strip(row: int) -> None:
        near = np.empty((_TILE, _TILE + max(1, _PAD_BYTES // matrix.itemsize)), matrix.dtype)
        for column in range(0, matrix.shape[1], _TILE):
            tile = matrix[row : row + _TILE, column : column + _TILE]
            height, width = tile.shape
            np.copyto(near[:height, :width], tile)
            result[column : column + width, row : row + height] = near[:height, :width].T

    each(strip, range(0, matrix.shape[0], _TILE))
    return result
