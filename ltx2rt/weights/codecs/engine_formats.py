"""How the linears of quantised graphs take their weights: one table for builds and for LoRAs merged
at run time, so that both give the same bits.

A format turns a weight `[out, in]` into named tensors, laid out as bundles store them. Those that
the manifest lists as `transposed` are laid out `[in, out]` when they are bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ltx2rt.engine import F32, U8, Array
from ltx2rt.weights.codecs import fp8, int4, int8, nvfp4

Tensors = dict[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFormat:
    """One format.

    Attributes:
        dtypes: part (`weight`, `weight_scale`, ...) -> dtype that files store it in.
        shapes: part -> shape for a weight `[out, in]`.
        encode: float32 `[out, in]` to its parts.
        decode: parts to float32 `[out, in]`.
    """

    name: str
    dtypes: Mapping[str, str]
    shapes: Callable[[int, int], Mapping[str, tuple[int, ...]]]
    encode: Callable[[F32], Tensors]
    decode: Callable[[Mapping[str, Array]], F32]


def _encode_fp8(weight: F32) -> Tensors:
    codes, amax = fp8.encode_per_channel(weight)
    return {"weight": codes, "weight_scale": amax / np.float32(fp8.LARGEST)}


def _decode_fp8(parts: Mapping[str, Array]) -> F32:
    return fp8.decode_scaled(parts["weight"], parts["weight_scale"][:, None])


def _encode_nvfp4(weight: F32) -> Tensors:
    return nvfp4_parts(nvfp4.encode(weight))


def nvfp4_parts(tensor: nvfp4.Nvfp4) -> Tensors:
    """Codes with the first element low, as ONNX has them; group scales in logical order."""
    return {
        "weight": nvfp4.swap_nibbles(tensor.codes),
        "weight_scale": tensor.block_scales,
        "weight_scale_2": np.array([tensor.tensor_scale], np.float32),
    }


def _decode_nvfp4(parts: Mapping[str, Array]) -> F32:
    return nvfp4.decode(
        nvfp4.Nvfp4(
            codes=nvfp4.swap_nibbles(parts["weight"]),
            block_scales=parts["weight_scale"],
            tensor_scale=np.float32(parts["weight_scale_2"][0]),
        )
    )


def _encode_int8(weight: F32) -> Tensors:
    codes, scales = int8.encode_rows(weight)
    return {"weight": codes, "weight_scale": scales[:, 0]}


def _decode_int8(parts: Mapping[str, Array]) -> F32:
    return int8.decode_rows(parts["weight"], parts["weight_scale"][:, None])


def int4_block(inputs: int) -> int:
    """Inputs that share a scale: 128, or all of a narrower weight."""
    return min(int4.BLOCK, inputs)


def _encode_int4(weight: F32) -> Tensors:
    codes, scales = int4.encode(weight, int4_block(weight.shape[1]))
    return {"weight": _transpose_nibbles(codes), "weight_scale": np.ascontiguousarray(scales.T)}


def _decode_int4(parts: Mapping[str, Array]) -> F32:
    return int4.decode(
        _transpose_nibbles(parts["weight"]), np.ascontiguousarray(parts["weight_scale"].T)
    )


def _transpose_nibbles(codes: U8) -> U8:
    """Bytes `[rows, columns/2]` of a matrix to bytes `[columns, rows/2]` of its transpose; the
    first element of a pair is low.
    """
    low, high = codes & np.uint8(15), codes >> np.uint8(4)
    values = np.empty((codes.shape[1] * 2, codes.shape[0]), np.uint8)
    values[0::2], values[1::2] = low.T, high.T
    packed: U8 = values[:, 0::2] | (values[:, 1::2] << np.uint8(4))
    return packed


FP8 = EngineFormat(
    name="fp8",
    dtypes={"weight": "float8_e4m3fn", "weight_scale": "float32"},
    shapes=lambda out, width: {"weight": (out, width), "weight_scale": (out,)},
    encode=_encode_fp8,
    decode=_decode_fp8,
)
NVFP4 = EngineFormat(
    name="nvfp4",
    dtypes={
        "weight": "uint8",
        "weight_scale": "float8_e4m3fn",
        "weight_scale_2": "float32",
    },
    shapes=lambda out, width: {
        "weight": (out, width // 2),
        "weight_scale": (out, width // nvfp4.GROUP),
        "weight_scale_2": (1,),
    },
    encode=_encode_nvfp4,
    decode=_decode_nvfp4,
)
INT8 = EngineFormat(
    name="int8",
    dtypes={"weight": "int8", "weight_scale": "float32"},
    shapes=lambda out, width: {"weight": (out, width), "weight_scale": (out,)},
    encode=_encode_int8,
    decode=_decode_int8,
)
INT4 = EngineFormat(
    name="int4",
    dtypes={"weight": "uint8", "weight_scale": "float32"},
    shapes=lambda out, width: {
        "weight": (width, out // 2),
        "weight_scale": (width // int4_block(width), out),
    },
    encode=_encode_int4,
    decode=_decode_int4,
)

#: by the name that manifests give to a quantised weight's format
ENGINE_FORMATS: dict[str, EngineFormat] = {f.name: f for f in (FP8, NVFP4, INT8, INT4)}
