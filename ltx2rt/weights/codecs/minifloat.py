"""Rounding float32 to floats of 8 bits or fewer, shared by the FP8 and FP4 codecs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltx2rt.engine import F32, U8, Array
from ltx2rt.errors import ShapeError

#: elements handled at a time: temporaries stay in the processor's cache and memory stays bounded
CHUNK = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniFloat:
    """A float format: sign, exponent with `bias`, `mantissa` bits, the `largest` finite value.

    `nan` is the code (without sign) that stands for NaN.
    """

    bias: int
    mantissa: int
    largest: float
    nan: int
    sign_bit: int


E4M3 = MiniFloat(bias=7, mantissa=3, largest=448.0, nan=0x7F, sign_bit=7)
#: has no NaN: like the hardware's conversion, NaN becomes the largest value
E2M1 = MiniFloat(bias=1, mantissa=1, largest=6.0, nan=0x7, sign_bit=3)


def round_to_codes(values: F32, kind: MiniFloat) -> U8:
    """Nearest code of each value, ties to the even code, saturating; the sign of zero is kept.

    Args:
        values: float32, any shape.

    Returns:
        uint8 codes, same shape.
    """
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    codes = np.empty(flat.size, np.uint8)
    for part in chunks(flat.size):
        codes[part] = _round(flat[part], kind)
    return codes.reshape(np.shape(values))


def _round(values: F32, kind: MiniFloat) -> NDArray[np.uint32]:
    shift = np.uint32(23 - kind.mantissa)
    magnitude = np.abs(values)
    is_nan = np.isnan(magnitude)
    np.minimum(magnitude, np.float32(kind.largest), out=magnitude)
    # normal numbers: float32 bits without the low mantissa bits, exponents counted from `bias`
    bits = magnitude.view(np.uint32)
    codes = bits + ((bits >> shift) & np.uint32(1)) + np.uint32((1 << (int(shift) - 1)) - 1)
    codes >>= shift
    codes -= np.uint32((127 - kind.bias) << kind.mantissa)
    # below the smallest normal, codes count multiples of the smallest subnormal: adding a number
    # whose last place is that subnormal rounds to nearest even and leaves the count in its mantissa
    unit = np.float32(2.0 ** (23 + 1 - kind.bias - kind.mantissa))
    counts = (magnitude + unit).view(np.uint32) - unit.view(np.uint32)
    np.copyto(codes, counts, where=magnitude < np.float32(2.0 ** (1 - kind.bias)))
    codes[is_nan] = kind.nan
    codes |= np.signbit(values).astype(np.uint32) << np.uint32(kind.sign_bit)
    return codes


def decode_table(kind: MiniFloat) -> F32:
    """The value of each byte of a signed format; unused high bits must be zero."""
    codes = np.arange(2 << kind.sign_bit)
    steps = 1 << kind.mantissa
    exponent = (codes & ((1 << kind.sign_bit) - 1)) >> kind.mantissa
    fraction = (codes & (steps - 1)) / steps
    scale = np.exp2(np.maximum(exponent, 1.0) - kind.bias)
    values = np.where(codes >> kind.sign_bit, -1.0, 1.0) * scale * (fraction + (exponent > 0))
    table: F32 = values.astype(np.float32)
    return table


def look_up(table: Array, codes: Array) -> Array:
    """`table[codes]` with bounded memory (plain indexing widens all codes to 64 bits first)."""
    flat = np.ascontiguousarray(codes).reshape(-1)
    values = np.empty((flat.size, *table.shape[1:]), table.dtype)
    for part in chunks(flat.size):
        np.take(table, flat[part], axis=0, out=values[part], mode="clip")
    return values.reshape(*codes.shape, *table.shape[1:])


def check_blocks(weight: F32, block: int) -> None:
    """Refuse a weight `[out, in]` that two values a byte and a scale a block of inputs cannot hold.

    Raises:
        ShapeError: `in` is not a multiple of `block`, or `block` is odd.
    """
    if block % 2 or weight.shape[1] % block:
        raise ShapeError(f"a weight {list(weight.shape)} has no whole blocks of {block}.")


def decode_pairs(pairs: F32, codes: U8, scales: F32, finish: Callable[[F32], F32]) -> F32:
    """Float32 values `[out, in]` of bytes `[out, in/2]` and scales `[out, in/block]`.

    Args:
        pairs: `[256, 2]`, the values of a byte.
        finish: rounds a value times its scale.
    """
    values = np.empty((codes.shape[0], codes.shape[1] * 2), np.float32)
    for part in row_chunks(values.shape):
        groups = look_up(pairs, codes[part]).reshape(*scales[part].shape, -1)
        values[part] = finish(groups * scales[part][..., None]).reshape(-1, values.shape[1])
    return values


def chunks(size: int, step: int = CHUNK) -> Iterator[slice]:
    """Consecutive slices that cover `size` elements."""
    return (slice(begin, min(begin + step, size)) for begin in range(0, size, step))


def row_chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Consecutive slices of rows, about `CHUNK` elements each."""
    return chunks(shape[0], max(1, CHUNK // max(1, int(np.prod(shape[1:])))))
