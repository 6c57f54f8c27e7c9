"""Symmetric INT8 with a scale per output row, and Comfy's ConvRot rotation.

spec/quantization.md §6.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ltx2rt.engine import F32, Array
from ltx2rt.errors import ShapeError
from ltx2rt.weights.codecs.minifloat import row_chunks

I8 = NDArray[np.int8]
GROUP = 256


def encode_rows(weight: F32) -> tuple[I8, F32]:
    """Codes `[out, in]` and scales `[out, 1]`: `max|row| / 127`, 1 for zeros; nearest even."""
    codes = np.empty(weight.shape, np.int8)
    scales = np.empty((weight.shape[0], 1), np.float32)
    for part in row_chunks(weight.shape):
        values = np.asarray(weight[part], np.float32)
        amax = np.abs(values).max(axis=1, keepdims=True, initial=0.0)
        scales[part] = np.where(amax > 0, amax / np.float32(127), np.float32(1))
        codes[part] = np.clip(np.rint(values / scales[part]), -128, 127)
    return codes, scales


def decode_rows(codes: Array, scales: F32) -> F32:
    """`code * scale`; scales are one number, or `[out, 1]`."""
    values = codes.astype(np.float32)
    values *= np.asarray(scales, np.float32)
    return values


def decode_convrot(codes: I8, scales: F32, group: int = GROUP) -> F32:
    """The weight in its own basis: decode each row, then rotate back."""
    return rotate(decode_rows(codes, scales), group)


def rotate(weight: F32, group: int = GROUP) -> F32:
    """Multiply each group of inputs by the regular Hadamard matrix, its own inverse.

    Args:
        weight: `[out, in]` float32; `in` is a multiple of `group`.
        group: a power of 4.

    Raises:
        ShapeError: the sizes do not fit.
    """
    _check_group(group)
    if weight.shape[1] % group:
        raise ShapeError(f"a weight {list(weight.shape)} has no whole groups of {group} inputs.")
    result = np.empty(weight.shape, np.float32)
    for part in row_chunks(weight.shape):
        result[part] = _rotate(np.asarray(weight[part], np.float32), group)
    return result


def _rotate(weight: F32, group: int) -> F32:
    """The product with `H4 x H4 x ... / sqrt(group)`, factor by factor: additions alone, in a fixed
    order.

    Works on the transposed groups, so that every step is along long rows.
    """
    values = weight.reshape(-1, group).T.copy()
    stride = 1
    while stride < group:
        a, b, c, d = np.moveaxis(values.reshape(-1, 4, stride, values.shape[1]), 1, 0)
        left, right, up, down = a + b, c - d, c + d, a - b
        np.add(left, right, out=a)
        np.subtract(left, right, out=b)
        np.add(up, down, out=c)
        np.subtract(up, down, out=d)
        stride *= 4
    values *= np.float32(group**-0.5)
    return np.ascontiguousarray(values.T).reshape(weight.shape)


def is_rotation(size: int) -> bool:
    """Whether the regular Hadamard matrix of this size exists: a power of 4."""
    return size > 0 and size & (size - 1) == 0 and size.bit_length() % 2 == 1


def _check_group(size: int) -> None:
    if not is_rotation(size):
        raise ShapeError(f"a rotation of {size} inputs does not exist: a power of 4 is needed.")
