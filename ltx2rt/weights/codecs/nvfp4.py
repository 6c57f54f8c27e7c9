"""NVFP4: E2M1 codes, an E4M3 scale per 16 inputs, one float32 scale per tensor.

spec/quantization.md §4. A value is `code * (tensor_scale * block_scale)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ltx2rt.engine import F32, U8
from ltx2rt.errors import ShapeError
from ltx2rt.weights.codecs import fp8
from ltx2rt.weights.codecs.minifloat import (
    E2M1,
    decode_table,
    look_up,
    round_to_codes,
    row_chunks,
)

GROUP = 16
#: largest value of a tensor with scale 1: 448 (largest block scale) * 6 (largest element)
LARGEST = fp8.LARGEST * E2M1.largest
#: values of the 16 codes
VALUES = decode_table(E2M1)
#: both values of a byte: element 2j is in the high nibble
PAIRS = np.stack([np.repeat(VALUES, 16), np.tile(VALUES, 16)], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Nvfp4:
    """A quantised `[out, in]` tensor.

    Attributes:
        codes: `[out, in/2]` uint8, element 2j in the high nibble.
        block_scales: `[out, in/16]` uint8 E4M3 codes, in logical order (not tiled).
        tensor_scale: float32.
    """

    codes: U8
    block_scales: U8
    tensor_scale: np.float32


def encode(values: F32, tensor_scale: float | None = None) -> Nvfp4:
    """Quantise `[out, in]` values; `in` is a multiple of 16.

    Args:
        tensor_scale: the decode scale of the whole tensor; None takes `max|X| / 2688`, NaN ignored.

    Raises:
        ShapeError: `in` is not a multiple of 16.
    """
    rows, columns = values.shape
    if columns % GROUP:
        raise ShapeError(f"a tensor {list(values.shape)} has no whole groups of {GROUP}.")
    if tensor_scale is None:
        amax = np.fmax.reduce(np.abs(values), axis=None, initial=0.0)
        scale = np.float32(np.float32(amax) / np.float32(LARGEST))
    else:
        scale = np.float32(tensor_scale)
    codes = np.empty((rows, columns // 2), np.uint8)
    block_scales = np.zeros((rows, columns // GROUP), np.uint8)
    for part in row_chunks(values.shape):
        groups = np.asarray(values[part], np.float32).reshape(-1, columns // GROUP, GROUP)
        if scale > 0:
            amax = np.abs(groups).max(axis=-1) / np.float32(E2M1.largest)
            block_scales[part] = fp8.encode(amax / scale)
        total = scale * fp8.decode(block_scales[part])
        # multiply by the rounded reciprocal, as the kernels do; groups without scale are zeros
        factors = np.divide(np.float32(1), total, out=np.zeros_like(total), where=total > 0)
        nibbles = round_to_codes(groups * factors[..., None], E2M1).reshape(-1, columns)
        codes[part] = (nibbles[:, 0::2] << 4) | nibbles[:, 1::2]
    return Nvfp4(codes=codes, block_scales=block_scales, tensor_scale=scale)


def decode(tensor: Nvfp4) -> F32:
    """The float32 values `[out, in]`."""
    rows, columns = tensor.codes.shape[0], tensor.codes.shape[1] * 2
    values = np.empty((rows, columns), np.float32)
    for part in row_chunks(values.shape):
        total = tensor.tensor_scale * fp8.decode(tensor.block_scales[part])
        groups = look_up(PAIRS, tensor.codes[part]).reshape(-1, columns // GROUP, GROUP)
        values[part] = (groups * total[..., None]).reshape(-1, columns)
    return values


def swap_nibbles(codes: U8) -> U8:
    """Between "element 2j high" (files) and "element 2j low" (ONNX, TensorRT)."""
    four = np.uint8(4)
    return (codes << four) | (codes >> four)


def tiled_shape(rows: int, groups: int) -> tuple[int, int]:
    """Shape of tiled scales: padded to multiples of (128, 4)."""
    return -(-rows // 128) * 128, -(-groups // 4) * 4


def untile_scales(tiled: U8, rows: int, groups: int) -> U8:
    """Logical `[rows, groups]` scales from the cuBLAS order (spec/quantization.md §4.2), without
    the padding, also whole rows of it below the last tile.
    """
    tiled = tiled[: tiled_shape(rows, groups)[0]]
    tiles = tiled.reshape(tiled.shape[0] // 128, tiled.shape[1] // 4, 32, 4, 4)
    logical = tiles.transpose(0, 3, 2, 1, 4).reshape(tiled.shape)
    return np.ascontiguousarray(logical[:rows, :groups])
