"""Weight-only INT4: symmetric, a scale per block of 128 inputs.

The layout TensorRT and ONNX take: codes -8..7, two in a byte, element 2j in the low nibble.
"""

from __future__ import annotations

import numpy as np

from ltx2rt.engine import F32, U8
from ltx2rt.weights.codecs.minifloat import check_blocks, decode_pairs, row_chunks

BLOCK = 128
_LEVELS = np.array([0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1], np.float32)
#: both values of a byte: element 2j is in the low nibble
_PAIRS = np.stack([np.tile(_LEVELS, 16), np.repeat(_LEVELS, 16)], axis=1)


def encode(weight: F32, block: int = BLOCK) -> tuple[U8, F32]:
    """Quantise `[out, in]`.

    Returns:
        bytes `[out, in/2]`, and scales `[out, in/block]`: `max|W| / 7` of a block, 1 for zeros.
        Codes are rounded to nearest even.

    Raises:
        ShapeError: `in` is not a multiple of `block`, or `block` is odd.
    """
    rows, columns = weight.shape
    check_blocks(weight, block)
    codes = np.empty((rows, columns // 2), np.uint8)
    scales = np.empty((rows, columns // block), np.float32)
    for part in row_chunks(weight.shape):
        groups = np.asarray(weight[part], np.float32).reshape(-1, columns // block, block)
        amax = np.abs(groups).max(axis=-1)
        scales[part] = np.where(amax > 0, amax / np.float32(7), np.float32(1))
        steps = np.clip(np.rint(groups / scales[part][..., None]), -8, 7).astype(np.int8)
        nibbles = steps.view(np.uint8).reshape(-1, columns) & np.uint8(15)
        codes[part] = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
    return codes, scales


def decode(codes: U8, scales: F32) -> F32:
    """Float32 values `[out, in]` of bytes `[out, in/2]` and scales `[out, in/block]`."""
    return decode_pairs(_PAIRS, codes, scales, lambda values: values)
