"""Detect how the weights of a file are quantised, from names and dtypes alone.

Formats: spec/checkpoints.md section 7. A layer counts by its own companions, never by a fixed list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ltx2rt.safetensors import TensorEntry

#: format -> how to name it in a sentence
FORMATS: dict[str, str] = {
    "fp8_scaled": "FP8 with a scale per tensor",
    "fp8": "FP8 without scales",
    "mxfp8": "MXFP8 (block scales of 32)",
    "nvfp4": "NVFP4 (4-bit, block scales of 16)",
    "int8_convrot": "Comfy INT8 (row scales, ConvRot)",
    "int8": "INT8 with scales",
    "nf4": "NF4 (musubi-tuner)",
    "nf4_bitsandbytes": "NF4 (bitsandbytes)",
    "unknown": "an unknown 8-bit or 4-bit format",
}


@dataclass(frozen=True, slots=True)
class StorageFormat:
    """How the linear layers of one component are stored.

    Attributes:
        name: a key of `FORMATS`; the most frequent one when formats are mixed.
        layers: number of quantised layers, all formats together.
        static_input_scales: how many of them carry a calibrated activation scale.
        formats: layers per format.
    """

    name: str
    layers: int
    static_input_scales: int
    formats: Mapping[str, int]

    @property
    def description(self) -> str:
        return FORMATS[self.name]


def detect_storage_format(tensors: Mapping[str, TensorEntry]) -> StorageFormat | None:
    """The quantised format of a component's weights; None when they are plain floats."""
    counts: Counter[str] = Counter()
    static = 0
    for name, entry in tensors.items():
        if not name.endswith(".weight") or entry.dtype in {"float32", "float16", "bfloat16"}:
            continue
        layer = name.removesuffix(".weight")
        counts[_layer_format(layer, entry, tensors)] += 1
        static += f"{layer}.input_scale" in tensors or f"{layer}.scale_input" in tensors
    if not counts:
        return None
    return StorageFormat(counts.most_common(1)[0][0], counts.total(), static, dict(counts))


def _layer_format(layer: str, weight: TensorEntry, tensors: Mapping[str, TensorEntry]) -> str:
    scale = tensors.get(f"{layer}.weight_scale") or tensors.get(f"{layer}.scale_weight")
    if weight.dtype.startswith("float8"):
        if scale is None:
            return "fp8"
        return "mxfp8" if scale.dtype in {"float8_e8m0fnu", "uint8"} else "fp8_scaled"
    if f"{layer}.nf4_shape" in tensors:
        return "nf4"
    if any(
        f"{layer}.weight.{part}" in tensors for part in ("absmax", "quant_map", "nested_absmax")
    ):
        return "nf4_bitsandbytes"
    if weight.dtype == "uint8" and scale is not None and scale.dtype == "float8_e4m3fn":
        return "nvfp4" if f"{layer}.weight_scale_2" in tensors else "unknown"
    if weight.dtype == "int8" and scale is not None:
        return "int8_convrot" if f"{layer}.comfy_quant" in tensors else "int8"
    return "unknown"
