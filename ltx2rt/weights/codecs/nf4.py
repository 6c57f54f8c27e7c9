"""NF4 as musubi-tuner stores it: 16 normal-float levels, a scale per block of inputs.

spec/quantization.md §5.
"""

from __future__ import annotations

import numpy as np

from ltx2rt.engine import F32, U8
from ltx2rt.weights.codecs.minifloat import check_blocks, decode_pairs, row_chunks
from ltx2rt.weights.floats import round_bfloat16

BLOCK = 32
LEVELS = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
#: a value equal to a middle takes the lower level
_MIDDLES = (LEVELS[1:] + LEVELS[:-1]) / np.float32(2)
#: both levels of a byte: element 2j is in the high nibble
_PAIRS = np.stack([np.repeat(LEVELS, 16), np.tile(LEVELS, 16)], axis=1)


def encode(weight: F32, block: int = BLOCK) -> tuple[U8, F32]:
    """Quantise a bfloat16 weight `[out, in]`.

    Returns:
        bytes `[out, in/2]`, and scales `[out, in/block]`: `max|W|` of a block, at least 1e-8,
        rounded to bfloat16.

    Raises:
        ShapeError: `in` is not a multiple of `block`, or `block` is odd.
    """
    rows, columns = weight.shape
    check_blocks(weight, block)
    codes = np.empty((rows, columns // 2), np.uint8)
    scales = np.empty((rows, columns // block), np.float32)
    for part in row_chunks(weight.shape):
        groups = np.asarray(weight[part], np.float32).reshape(-1, columns // block, block)
        amax = np.maximum(np.abs(groups).max(axis=-1), np.float32(1e-8))
        scales[part] = round_bfloat16(amax)
        levels = np.searchsorted(_MIDDLES, groups / scales[part][..., None], side="left")
        nibbles = levels.astype(np.uint8).reshape(-1, columns)
        codes[part] = (nibbles[:, 0::2] << 4) | nibbles[:, 1::2]
    return codes, scales


def decode(codes: U8, scales: F32) -> F32:
    """Bfloat16 values `[out, in]` of bytes `[out, in/2]` and scales `[out, in/block]`."""
    return decode_pairs(_PAIRS, codes, scales, round_bfloat16)
