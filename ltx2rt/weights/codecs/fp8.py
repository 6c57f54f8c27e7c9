"""FP8 E4M3 (fn): plain, scaled per tensor, output channel or square block; MXFP8.

spec/quantization.md §1 to §3. A *scale* is always the factor that decodes: value = code *
scale.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ltx2rt.engine import F32, U8
from ltx2rt.weights.codecs.minifloat import (
    E4M3,
    decode_table,
    look_up,
    round_to_codes,
    row_chunks,
)

LARGEST = E4M3.largest
#: values of the 256 codes; 0x7F and 0xFF are NaN
TABLE = decode_table(E4M3)
TABLE[[0x7F, 0xFF]] = np.nan
#: E5M2 is the high byte of a float16
E5M2_TABLE = (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32)
#: by the names of safetensors dtypes
TABLES = {"float8_e4m3fn": TABLE, "float8_e5m2": E5M2_TABLE}
#: E8M0: powers of two, 0xFF is NaN
E8M0_TABLE = np.append(np.exp2(np.arange(-127.0, 128.0)), np.nan).astype(np.float32)
#: below it, `448 / amax` leaves the range of float32: such values are zeros
_TINY = np.float32(1e-35)
MX_BLOCK = 32


def encode(values: F32) -> U8:
    """Codes of float32 values: nearest, ties to even, clamped to +-448; NaN stays NaN."""
    return round_to_codes(values, E4M3)


def decode(codes: U8) -> F32:
    """Float32 values of codes."""
    return look_up(TABLE, codes)


def encode_per_channel(weight: F32) -> tuple[U8, F32]:
    """Codes `[out, in]` of `W * (448 / amax)`, and `amax = max|W|` of each row, `[out]`.

    A weight is `code * (amax / 448)`; a row of zeros has amax 0 and codes 0.
    """
    amax = np.abs(weight).max(axis=1, initial=0.0).astype(np.float32)
    return _encode_rows(weight, _factors(amax)), amax


def decode_scaled(codes: U8, scale: F32 | np.float32) -> F32:
    """`code * scale`; `scale` is one number or broadcasts against `[out, in]`, e.g. `[out, 1]`."""
    values = decode(codes)
    values *= np.asarray(scale, np.float32)
    return values


def scale_blocks(values: F32, scales: F32) -> F32:
    """Multiply every square tile of `[out, in]` by its scale `[out/block, in/block]`, in place."""
    block = values.shape[0] // scales.shape[0]
    tiles = values.reshape(scales.shape[0], block, scales.shape[1], block)
    tiles *= scales[:, None, :, None]
    return values


def decode_mx(codes: U8, scales: U8) -> F32:
    """MXFP8: E4M3 codes `[out, in]`, E8M0 scale codes `[out, in/32]`, one per 32 inputs."""
    values = decode(codes)
    groups = values.reshape(*scales.shape, MX_BLOCK)
    groups *= E8M0_TABLE[scales][..., None]
    return values


def decode_dtype(codes: U8, dtype: str) -> F32:
    """Float32 values of codes of a safetensors dtype: `float8_e4m3fn` or `float8_e5m2`."""
    return look_up(TABLES[dtype], codes)


def _factors(amax: ArrayLike) -> F32:
    """`448 / amax`; 1 where amax is 0 (the reference divides by zero there) or next to it."""
    largest = np.asarray(amax, np.float32)
    factors = np.ones_like(largest)
    return np.divide(np.float32(LARGEST), largest, out=factors, where=largest > _TINY)


def _encode_rows(weight: F32, factors: F32) -> U8:
    codes = np.empty(weight.shape, np.uint8)
    for rows in row_chunks(weight.shape):
        codes[rows] = encode(weight[rows] * factors[rows].reshape(-1, *[1] * (weight.ndim - 1)))
    return codes
