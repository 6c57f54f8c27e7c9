"""Rounding to the short float formats; bfloat16 values are carried in float32 arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltx2rt.engine import F32, Array
from ltx2rt.errors import OptionError

#: dtype names a tensor may be rounded to; "bfloat16" results are float32 arrays of bfloat16 values.
FLOAT_DTYPES = ("float64", "float32", "bfloat16", "float16")

_CHUNK = 1 << 16


def bfloat16_bits(values: ArrayLike) -> NDArray[np.uint16]:
    """Round float32 values to bfloat16 (nearest, ties to even) and return the bit patterns.

    NaN stays NaN; the shape is kept. Works in pieces that fit the processor's cache.
    """
    shape = np.shape(values)
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    result = np.empty(flat.size, np.uint16)
    for begin in range(0, flat.size, _CHUNK):
        single = flat[begin : begin + _CHUNK]
        bits = single.view(np.uint32)
        rounded = bits >> np.uint32(16)
        rounded &= np.uint32(1)
        rounded += np.uint32(0x7FFF)
        rounded += bits
        rounded >>= np.uint32(16)
        rounded[np.isnan(single)] = 0x7FC0
        result[begin : begin + _CHUNK] = rounded
    return result.reshape(shape)


def bfloat16_values(bits: NDArray[np.uint16]) -> F32:
    """Widen bfloat16 bit patterns to float32."""
    wide: NDArray[np.uint32] = np.left_shift(bits, 16, dtype=np.uint32)
    return wide.view(np.float32)


def round_bfloat16(values: ArrayLike) -> F32:
    """Round to the nearest bfloat16 values, kept in a float32 array of the same shape."""
    return bfloat16_values(bfloat16_bits(values))


def round_bfloat16_inplace(values: F32) -> None:
    """Round a contiguous float32 array to the nearest bfloat16 values: `round_bfloat16` without a
    copy.
    """
    flat = values.reshape(-1)
    for begin in range(0, flat.size, _CHUNK):
        single = flat[begin : begin + _CHUNK]
        bits = single.view(np.uint32)
        no_number = np.isnan(single)
        half = bits >> np.uint32(16)
        half &= np.uint32(1)
        half += np.uint32(0x7FFF)
        bits += half
        bits &= np.uint32(0xFFFF0000)
        bits[no_number] = 0x7FC00000


def cast(values: Array, dtype: str) -> Array:
    """Cast as the reference framework does: float64 goes to the 16-bit types through float32.

    Args:
        values: any float array.
        dtype: a name of `FLOAT_DTYPES`.

    Returns:
        An array of that dtype (bfloat16: float32 holding bfloat16 values). May alias `values`.

    Raises:
        OptionError: unknown dtype name.
    """
    if dtype == "bfloat16":
        return round_bfloat16(values)
    if dtype == "float16":
        return values.astype(np.float32, copy=False).astype(np.float16)
    if dtype in FLOAT_DTYPES:
        return values.astype(dtype, copy=False)
    raise OptionError(f"dtype={dtype!r} is not one of {', '.join(FLOAT_DTYPES)}.")


def as_dtype(array: Array, dtype: str) -> Array:
    """Host floats in the dtype of an engine (bfloat16: bit patterns); float64 goes through float32.
    Arrays that are no float32 or float64 pass unchanged: they have the engine's dtype already.
    """
    if array.dtype not in (np.float32, np.float64):
        return array
    single = array.astype(np.float32, copy=False)
    if dtype == "bfloat16":
        return bfloat16_bits(single)
    return single.astype(np.float16) if dtype == "float16" else single


def as_float32(array: Array, dtype: str) -> Array:
    """An engine's output of that dtype in float32; integers pass unchanged."""
    if dtype == "bfloat16":
        return bfloat16_values(array)
    return array.astype(np.float32) if dtype == "float16" else array
