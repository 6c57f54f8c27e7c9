"""Quantisers of files that the runtime only reads: for files and expectations of tests.

spec/quantization.md §1 to §4. A *scale* decodes: value = code * scale.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ltx2rt.weights.codecs import fp8, nvfp4
from ltx2rt.weights.floats import cast, round_bfloat16

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


def encode_per_tensor(weight: F32) -> tuple[U8, np.float32]:
    """FP8 codes and the decode scale `1 / (448 / max|W|)`, 1 for zeros (§2)."""
    amax = np.abs(weight).max(initial=0.0)
    factor = np.float32(448) / np.float32(amax) if amax > 1e-35 else np.float32(1)
    return fp8.encode(weight * factor), np.float32(1) / factor


def encode_activation(values: F32, input_scale: float, dtype: str = "bfloat16") -> U8:
    """Static FP8 activation codes of §2: `e4m3(clamp(dtype(x * (1 / input_scale))))`.

    The product is rounded to the activations' own dtype first; for bfloat16 this differs from a
    plain float32 division.
    """
    reciprocal = np.float32(1) / np.float32(input_scale)
    return fp8.encode(cast(np.asarray(values, np.float32) * reciprocal, dtype))


def static_linear(
    values: F32, codes: U8, weight_scale: float, input_scale: float, bias: F32 | None
) -> F32:
    """The W8A8 linear layer of §2 on bfloat16 values `[T, in]`, with its three roundings to
    bfloat16; `codes` `[out, in]`, scales decode.
    """
    product = fp8.decode(encode_activation(values, input_scale)) @ fp8.decode(codes).T
    result = round_bfloat16(product * (np.float32(input_scale) * np.float32(weight_scale)))
    return result if bias is None else round_bfloat16(result + round_bfloat16(bias))


def tile_scales(scales: U8) -> U8:
    """Logical `[rows, groups]` scales in the cuBLAS order of §4.2, zero padded to
    `nvfp4.tiled_shape`.
    """
    padded = np.zeros(nvfp4.tiled_shape(*scales.shape), np.uint8)
    padded[: scales.shape[0], : scales.shape[1]] = scales
    tiles = padded.reshape(padded.shape[0] // 128, 4, 32, padded.shape[1] // 4, 4)
    return np.ascontiguousarray(tiles.transpose(0, 3, 2, 1, 4)).reshape(padded.shape)
