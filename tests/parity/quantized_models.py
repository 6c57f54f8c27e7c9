"""Quantised copies of model files, in every format that is read, and twins of decoded values."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from ltx2rt.weights.codecs import fp8, int8, nf4, nvfp4
from ltx2rt.weights.floats import round_bfloat16
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from ltx2rt.weights.safetensors_writer import Stream, bfloat16, write_safetensors
from tests.encoders import encode_per_tensor, tile_scales

#: the linears that fp8-cast takes (spec/quantization.md §1), without those of block 0:
#: released files keep some blocks in bfloat16
TRANSFORMER = re.compile(
    r"\.transformer_blocks\.[1-9]\d*\.\S*(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2)$"
)
#: Comfy's files quantise the connectors too
WITH_CONNECTORS = re.compile(
    TRANSFORMER.pattern
    + "|"
    + TRANSFORMER.pattern.replace(r"transformer_blocks\.[1-9]\d*", r"transformer_1d_blocks\.\d+")
)
GEMMA = re.compile(r"\.layers\.\d+\.\S+_proj$")
CONVROT_GROUP = 16

Tensors = dict[str, np.ndarray | Stream]
#: layer, weight [out, in] -> the layer's tensors, and the values they decode to
Quantizer = Callable[[str, np.ndarray], tuple[Tensors, np.ndarray]]


def _e4m3(codes: np.ndarray) -> Stream:
    return "float8_e4m3fn", codes.shape, (codes.tobytes(),)


def _comfy(**values: object) -> np.ndarray:
    return np.frombuffer(json.dumps(values).encode(), np.uint8).copy()


def _fp8_scaled(layer: str, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    codes, scale = encode_per_tensor(weight)
    tensors = {
        f"{layer}.weight": _e4m3(codes),
        f"{layer}.weight_scale": np.array(scale),
        f"{layer}.input_scale": np.array(0.01, np.float32),
    }
    return tensors, fp8.decode(codes) * scale


def _fp8_legacy(layer: str, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    codes, scale = encode_per_tensor(weight)
    tensors = {
        f"{layer}.weight": _e4m3(codes),
        f"{layer}.scale_weight": np.array([scale]),
        f"{layer}.scale_input": np.array([0.01], np.float32),
    }
    return tensors, fp8.decode(codes) * scale


def _fp8_rows(layer: str, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    codes, amax = fp8.encode_per_channel(weight)
    scale = amax / np.float32(448)
    tensors = {
        f"{layer}.weight": _e4m3(codes),
        f"{layer}.weight_scale": scale,
        f"{layer}.comfy_quant": _comfy(format="float8_e4m3fn_rowwise"),
    }
    return tensors, fp8.decode(codes) * scale[:, None]


def _fp8_blocks(layer: str, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    tiles = weight.reshape(weight.shape[0] // 16, 16, -1, 16)
    scale = np.abs(tiles).max(axis=(1, 3)) / np.float32(448)
    codes = fp8.encode(tiles / scale[:, None, :, None])
    decoded = (fp8.decode(codes) * scale[:, None, :, None]).reshape(weight.shape)
    tensors = {
        f"{layer}.weight": _e4m3(codes.reshape(weight.shape)),
        f"{layer}.weight_scale": scale,
    }
    return tensors, decoded


def _fp8_cast(layer: str, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    codes = fp8.encode(weight)
    return {f"{layer}.weight": _e4m3(codes)}, fp8.decode(codes)


def _mxfp8(layer: str, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    amax = np.abs(weight.reshape(weight.shape[0], -1, 32)).max(axis=-1)
    scale = np.clip(np.ceil(np.log2(amax / 448)) + 127, 0, 254).astype(np.uint8)
    factor = np.repeat(np.exp2(scale.astype(np.float32) - 127), 32, axis=1)
    codes = fp8.encode(weight / factor)
    tensors = {
        f"{layer}.weight": _e4m3(codes),
        f"{layer}.weight_scale": tile_scales(scale),
        f"{layer}.comfy_quant": _comfy(format="mxfp8"),
    }
    return tensors, fp8.decode(codes) * factor


def _nvfp4(layer: str, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    tensor = nvfp4.encode(weight)
    tensors = {
        f"{layer}.weight": tensor.codes,
        f"{layer}.weight_scale": _e4m3(tile_scales(tensor.block_scales)),
        f"{layer}.weight_scale_2": np.array(tensor.tensor_scale),
        f"{layer}.input_scale": np.array(0.01, np.float32),
    }
    return tensors, nvfp4.decode(tensor)


def _nf4(layer: str, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    codes, scales = nf4.encode(weight)
    tensors = {
        f"{layer}.weight": codes,
        f"{layer}.scale_weight": bfloat16(scales[..., None]),
        f"{layer}.nf4_shape": np.array(weight.shape, np.int64),
    }
    return tensors, nf4.decode(codes, scales)


def _int8(layer: str, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    codes, scales = int8.encode_rows(weight)
    tensors = {f"{layer}.weight": codes, f"{layer}.weight_scale": scales}
    return tensors, codes * scales


def _int8_convrot(layer: str, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    codes, scales = int8.encode_rows(int8.rotate(weight, CONVROT_GROUP))
    comfy = _comfy(format="int8_tensorwise", convrot=True, convrot_groupsize=CONVROT_GROUP)
    tensors = {
        f"{layer}.weight": codes,
        f"{layer}.weight_scale": scales,
        f"{layer}.comfy_quant": comfy,
    }
    return tensors, int8.decode_convrot(codes, scales, CONVROT_GROUP)


def _four_bits(layer: str, weight: np.ndarray, *, nested: bool) -> tuple[Tensors, np.ndarray]:
    """As bitsandbytes 0.50 writes them: blocks of 64 of the flat weight, whose scales are coded in
    blocks of 256 above their mean.
    """
    flat = weight.reshape(-1)
    scale = np.abs(np.pad(flat, (0, -flat.size % 64)).reshape(-1, 64)).max(axis=1)
    unit = flat / np.repeat(scale, 64)[: flat.size]
    levels = np.abs(unit[:, None] - nf4.LEVELS).argmin(axis=1).astype(np.uint8)
    state: dict[str, object] = {
        "quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(weight.shape),
    }  # fmt: skip
    tensors: Tensors = {
        f"{layer}.weight": (levels[0::2] << 4 | levels[1::2])[:, None],
        f"{layer}.weight.quant_map": nf4.LEVELS,
        f"{layer}.weight.absmax": scale,
    }
    if nested:
        offset = scale.mean()
        table = np.linspace(-1, 1, 256, dtype=np.float32)
        above = np.pad(scale - offset, (0, -scale.size % 256)).reshape(-1, 256)
        largest = np.abs(above).max(axis=1)
        codes = np.abs((above / largest[:, None])[..., None] - table).argmin(axis=-1)
        codes = codes.reshape(-1)[: scale.size].astype(np.uint8)
        scale = table[codes] * np.repeat(largest, 256)[: scale.size] + np.float32(offset)
        state |= {
            "nested_blocksize": 256,
            "nested_dtype": "float32",
            "nested_offset": float(offset),
        }
        tensors |= {
            f"{layer}.weight.absmax": codes,
            f"{layer}.weight.nested_absmax": largest,
            f"{layer}.weight.nested_quant_map": table,
        }
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    tensors[f"{layer}.weight.quant_state.bitsandbytes__nf4"] = text
    values = nf4.LEVELS[levels] * np.repeat(scale, 64)[: flat.size]
    return tensors, round_bfloat16(values).reshape(weight.shape)


def _eight_bits(layer: str, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    codes, scales = int8.encode_rows(weight)
    largest = scales[:, 0] * np.float32(127)
    tensors: Tensors = {
        f"{layer}.weight": codes,
        f"{layer}.SCB": largest,
        f"{layer}.weight_format": np.zeros((), np.uint8),
    }
    return tensors, codes * (largest[:, None] * np.float32(1 / 127))


QUANTIZERS: dict[str, Quantizer] = {
    "fp8_scaled": _fp8_scaled,
    "fp8_legacy": _fp8_legacy,
    "fp8_rows": _fp8_rows,
    "fp8_blocks": _fp8_blocks,
    "fp8": _fp8_cast,
    "mxfp8": _mxfp8,
    "nvfp4": _nvfp4,
    "nf4": _nf4,
    "int8": _int8,
    "int8_convrot": _int8_convrot,
}
#: those that text encoders come in
TEXT_QUANTIZERS: dict[str, Quantizer] = {
    "nf4_bitsandbytes": partial(_four_bits, nested=False),
    "nf4_bitsandbytes_nested": partial(_four_bits, nested=True),
    "int8_bitsandbytes": _eight_bits,
}
#: what the file is called by `detect_storage_format`, where that is another name
STORAGE = {"fp8_legacy": "fp8_scaled", "fp8_rows": "fp8_scaled"}


def quantize_file(
    source: Path,
    target: Path,
    kind: str,
    layers: re.Pattern[str] = TRANSFORMER,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, np.ndarray]:
    """Write a copy of a weight file whose matching linears are quantised.

    Returns:
        tensor name -> the float32 values that the stored ones stand for.
    """
    file, maps = SafetensorsFile(source), MappedFiles()
    tensors: Tensors = {}
    decoded: dict[str, np.ndarray] = {}
    every = QUANTIZERS | TEXT_QUANTIZERS
    for name, entry in file.items():
        layer, _, part = name.rpartition(".")
        if part == "weight" and layers.search(layer):
            added, decoded[name] = every[kind](layer, maps.load(entry, "float32"))
            tensors |= added
        elif part == "bias" and layers.search(layer) and kind == "fp8":
            codes = fp8.encode(maps.load(entry, "float32"))
            tensors[name], decoded[name] = _e4m3(codes), fp8.decode(codes)
        else:
            tensors[name] = entry.dtype, entry.shape, (maps.raw(entry).tobytes(),)
    if kind == "fp8_legacy":
        tensors["scaled_fp8"] = _e4m3(np.zeros(2, np.uint8))
    write_safetensors(target, tensors, {**file.metadata, **(metadata or {})})
    return decoded


def decoded_twin(source: Path, target: Path, decoded: Mapping[str, np.ndarray]) -> Path:
    """Write a copy of a weight file that holds these float32 values in place of its own."""
    file, maps = SafetensorsFile(source), MappedFiles()
    tensors: Tensors = {
        name: decoded[name] if name in decoded else (e.dtype, e.shape, (maps.raw(e).tobytes(),))
        for name, e in file.items()
    }
    write_safetensors(target, tensors, file.metadata)
    return target
