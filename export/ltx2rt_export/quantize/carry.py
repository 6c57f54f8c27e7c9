"""Codes and scales that a file holds in an engine's own format are taken over bit by bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ltx2rt.weights.codecs import nvfp4
from ltx2rt.weights.codecs.engine_formats import (
    FP8,
    INT8,
    NVFP4,
    EngineFormat,
    Tensors,
    nvfp4_parts,
)
from ltx2rt.weights.safetensors import Encoding, MappedFiles, TensorEntry

Carry = Callable[[MappedFiles, TensorEntry, Encoding], Tensors]

E4M3 = "float8_e4m3fn"


def is_quantized(entry: TensorEntry) -> bool:
    """Whether a file holds codes of a weight: with scales, or E4M3 codes without."""
    return entry.encoding is not None or entry.dtype == E4M3


def is_carried(kind: EngineFormat, entry: TensorEntry) -> bool:
    """Whether an engine format takes over what a file holds of a weight."""
    if entry.encoding is None:
        return kind is FP8 and entry.dtype == E4M3
    # E5M2 codes with a scale are fp8_scaled too
    right = kind is not FP8 or entry.dtype == E4M3
    return right and (kind.name, entry.encoding.format) in _CARRIES


def carried(files: MappedFiles, entry: TensorEntry, kind: EngineFormat) -> Tensors | None:
    """The parts of a weight as the file has them; None where its format is another."""
    if not is_carried(kind, entry):
        return None
    if entry.encoding is None:
        scale = np.ones(entry.shape[0], np.float32)
        return {"weight": files.raw(entry), "weight_scale": scale}
    return _CARRIES[kind.name, entry.encoding.format](files, entry, entry.encoding)


def _rows(files: MappedFiles, entry: TensorEntry, encoding: Encoding) -> Tensors:
    """Codes with one scale, or one a row."""
    scale = files.load(encoding.parts["scale"], "float32").reshape(-1)
    scales = np.ascontiguousarray(np.broadcast_to(scale, entry.shape[:1]))
    return {"weight": files.raw(entry), "weight_scale": scales}


def _groups(files: MappedFiles, entry: TensorEntry, encoding: Encoding) -> Tensors:
    """Codes with a scale a group, tiled, and one above."""
    out, width = entry.shape
    scales = nvfp4.untile_scales(files.raw(encoding.parts["scale"]), out, width // nvfp4.GROUP)
    scale = files.load(encoding.parts["tensor_scale"], "float32").reshape(-1)[0]
    return nvfp4_parts(nvfp4.Nvfp4(codes=files.raw(entry), block_scales=scales, tensor_scale=scale))


#: (engine format, stored format) -> what takes one over as the other
_CARRIES: dict[tuple[str, str], Carry] = {
    (FP8.name, "fp8_scaled"): _rows,
    (INT8.name, "int8"): _rows,
    (NVFP4.name, NVFP4.name): _groups,
}
