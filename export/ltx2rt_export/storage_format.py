"""Find quantised layers in a file and say how each is decoded, from names, dtypes and shapes.

Formats: spec/checkpoints.md §7. A layer counts by its own companions, never by a fixed list.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ltx2rt.errors import CheckpointError, UnsupportedError, shortened
from ltx2rt.weights.codecs import bitsandbytes, int8
from ltx2rt.weights.codecs.stored import GROUPS, LAYOUTS, storage_problems
from ltx2rt.weights.safetensors import Encoding, MappedFiles, TensorEntry

#: format -> how to name it in a sentence
FORMATS: dict[str, str] = {
    "fp8_scaled": "FP8 with a scale per tensor or row",
    "fp8_blocks": "FP8 with a scale per block",
    "fp8": "FP8 without scales",
    "mxfp8": "MXFP8 (block scales of 32)",
    "nvfp4": "NVFP4 (4-bit, block scales of 16)",
    "int8_convrot": "Comfy INT8 (row scales, ConvRot)",
    "int8": "INT8 with scales",
    "nf4": "NF4 (musubi-tuner)",
    bitsandbytes.FOUR_BITS: "NF4 or FP4 (bitsandbytes)",
    bitsandbytes.EIGHT_BITS: "INT8 (bitsandbytes)",
    "unknown": "an unknown 8-bit or 4-bit format",
}
READABLE = ("fp8", *LAYOUTS, bitsandbytes.FOUR_BITS)

_PLAIN = ("float32", "float16", "bfloat16", "float64")
#: what a layer's companions are called; `weight_scale` in new files, `scale_weight` in older ones
COMPANION = re.compile(
    r"\.(weight_scale(_2)?|scale_weight|input_scale|scale_input|comfy_quant|nf4_shape"
    r"|weight_scalar|SCB|weight_format|weight\.(absmax|quant_map|nested_\w+|quant_state\.\w+))$|(^|\.)scaled_fp8$"
)
#: what `comfy_quant` may call a layout of ours
_COMFY_NAMES = {
    "float8_e4m3fn": "fp8_scaled",
    "float8_e5m2": "fp8_scaled",
    "float8_e4m3fn_rowwise": "fp8_scaled",
    "float8_e4m3fn_blockwise": "fp8_blocks",
    "mxfp8": "mxfp8",
    "hybrid_mxfp8": "mxfp8",
    "nvfp4": "nvfp4",
    "int8_tensorwise": "int8",
}
_MAX_COMFY_BYTES = 4096


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
    layers = _quantized_layers(tensors)
    if not layers:
        return None
    counts = Counter(layer.format for layer in layers.values())
    static = sum("input_scale" in layer.parts for layer in layers.values())
    return StorageFormat(counts.most_common(1)[0][0], counts.total(), static, dict(counts))


def with_encodings(tensors: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """The tensors of a component, quantised weights as their values, companions left out.

    Raises:
        UnsupportedError: layers in a format that is not read.
        CheckpointError: companions are missing or do not fit; all layers are listed.
    """
    layers = _quantized_layers(tensors)
    if not layers:
        return dict(tensors)
    where = next(iter(layers.values())).weight.path
    unread = Counter(layer.format for layer in layers.values() if layer.format not in READABLE)
    if unread:
        found = ", ".join(f"{n} layers as {FORMATS[f]} ({f})" for f, n in unread.items())
        raise UnsupportedError(
            f"{where} stores {found}, which is not read: give a file in bfloat16 or in one of "
            f"{', '.join(READABLE)}."
        )
    problems = [
        f"{layer.name}.weight: {problem}" for layer in layers.values() for problem in layer.problems
    ]
    problems += _missing_scales(layers)
    if problems:
        raise CheckpointError(
            f"{where} cannot be decoded", shortened(problems), "Download or convert it again."
        )
    plain = {n: e for n, e in tensors.items() if not COMPANION.search(n)}
    return plain | {f"{n}.weight": layer.entry for n, layer in layers.items()}


def _quantized_layers(tensors: Mapping[str, TensorEntry]) -> dict[str, _Layer]:
    files = MappedFiles()
    return {
        (layer := name.removesuffix(".weight")): _Layer(layer, tensors, files)
        for name, entry in tensors.items()
        if name.endswith(".weight") and entry.dtype not in _PLAIN and entry.encoding is None
    }


def _missing_scales(layers: Mapping[str, _Layer]) -> list[str]:
    """FP8 weights without a scale are valid only where no FP8 weight has one."""
    bare = [name for name, layer in layers.items() if layer.format == "fp8"]
    if len(bare) == sum(layer.weight.dtype.startswith("float8") for layer in layers.values()):
        return []
    return [f"{name}.weight: it has no scale, other FP8 weights of the file have" for name in bare]


class _Layer:
    """One quantised layer: its weight, companions and format."""

    def __init__(self, name: str, tensors: Mapping[str, TensorEntry], files: MappedFiles) -> None:
        self.name = name
        self._files = files
        self.weight = tensors[f"{name}.weight"]
        self._companions = {
            key: entry
            for key in ("comfy_quant", "nf4_shape")
            if (entry := tensors.get(f"{name}.{key}")) is not None
        }
        given = {
            "scale": ("weight_scale", "scale_weight"),
            "tensor_scale": ("weight_scale_2",),
            "input_scale": ("input_scale", "scale_input"),
        }
        if f"{name}.SCB" in tensors:
            given["scale"] = ("SCB",)
        self.parts = {
            part: tensors[f"{name}.{key}"]
            for part, keys in given.items()
            for key in keys
            if f"{name}.{key}" in tensors
        }
        self._is_bitsandbytes = any(
            f"{name}.weight.{key}" in tensors for key in ("absmax", "quant_map", "nested_absmax")
        )
        self._state: dict[str, Any] = {}
        if self._is_bitsandbytes:
            self._read_bitsandbytes(tensors)
        self._comfy, self._comfy_problem = self._read_comfy()
        self.format = self._format()

    def _format(self) -> str:
        scale, dtype = self.parts.get("scale"), self.weight.dtype
        named = self._comfy.get("format")
        if named is not None and named not in _COMFY_NAMES:
            return "unknown"
        if dtype.startswith("float8"):
            if scale is None:
                return "fp8"
            if scale.dtype in {"float8_e8m0fnu", "uint8"}:
                return "mxfp8"
            one_or_rows = LAYOUTS["fp8_scaled"].scale_shapes(sum(self.weight.shape[:1]), 0, 1)
            is_blocks = len(scale.shape) == 2 and scale.shape not in one_or_rows
            return "fp8_blocks" if is_blocks else "fp8_scaled"
        if "nf4_shape" in self._companions:
            return "nf4"
        if self._is_bitsandbytes:
            return bitsandbytes.FOUR_BITS
        if dtype == "int8" and scale is not None and scale.name.endswith(".SCB"):
            return bitsandbytes.EIGHT_BITS
        if dtype == "uint8" and scale is not None and scale.dtype == "float8_e4m3fn":
            return "nvfp4"
        if dtype == "uint8" and ("tensor_scale" in self.parts or named == "nvfp4"):
            return "nvfp4"
        if dtype == "int8" and (scale is not None or named is not None):
            return "int8_convrot" if self._comfy.get("convrot") else "int8"
        return "unknown"

    @property
    def problems(self) -> list[str]:
        """Why this layer cannot be decoded; [] when it can."""
        if self._comfy_problem:
            return [self._comfy_problem]
        if self.format == "fp8":
            return []
        problems = storage_problems(self.shape, self.weight.dtype, self.encoding)
        return problems + (self._nf4_shape_problems() if self.format == "nf4" else [])

    @property
    def entry(self) -> TensorEntry:
        """The weight as its values `[out, in]`."""
        if self.format == "fp8":
            return self.weight
        return dataclasses.replace(self.weight, shape=self.shape, encoding=self.encoding)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values: a byte may hold two."""
        codes = self.weight.shape
        if self.format == bitsandbytes.FOUR_BITS:
            return tuple(self._state.get("shape", ()))
        return (*codes[:-1], codes[-1] * LAYOUTS[self.format].per_byte) if codes else codes

    @property
    def encoding(self) -> Encoding:
        """How the weight decodes."""
        return Encoding(
            format=self.format,
            shape=self.weight.shape,
            group=self._group(self.shape),
            parts=self.parts,
        )

    def _group(self, shape: tuple[int, ...]) -> int:
        if self.format in GROUPS:
            return GROUPS[self.format]
        if self.format == "int8_convrot":
            group = self._comfy.get("convrot_groupsize", int8.GROUP)
            return group if type(group) is int else 0
        scale = self.parts.get("scale")
        if self.format in {"nf4", "fp8_blocks"} and scale is not None and len(scale.shape) > 1:
            return shape[-1] // max(scale.shape[1], 1)
        return 1

    def _read_bitsandbytes(self, tensors: Mapping[str, TensorEntry]) -> None:
        """The parts of 4-bit weights, and what the file says about them."""
        own = f"{self.name}.weight."
        self.parts = {
            part: tensors[own + suffix]
            for part, suffix in bitsandbytes.PARTS.items()
            if own + suffix in tensors
        }
        for name in tensors:
            if name.startswith(f"{own}quant_state.") and tensors[name].length <= _MAX_COMFY_BYTES:
                self.parts[bitsandbytes.STATE] = tensors[name]
        if (entry := self.parts.get(bitsandbytes.STATE)) is not None:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                self._state = bitsandbytes.read_state(self._files.raw(entry))

    def _read_comfy(self) -> tuple[dict[str, Any], str]:
        """The JSON object in `comfy_quant`, and what is wrong with it."""
        entry = self._companions.get("comfy_quant")
        if entry is None:
            return {}, ""
        if entry.dtype not in {"uint8", "int8"} or entry.length > _MAX_COMFY_BYTES:
            return {}, f"its comfy_quant is {entry.dtype} {list(entry.shape)}, not a short text"
        try:
            value = json.loads(self._files.raw(entry).tobytes().rstrip(b"\0").decode("utf-8"))
        except (ValueError, RecursionError):
            return {}, "its comfy_quant is not JSON"
        return (value, "") if isinstance(value, dict) else ({}, "its comfy_quant is not an object")

    def _nf4_shape_problems(self) -> list[str]:
        entry = self._companions["nf4_shape"]
        if entry.dtype != "int64" or entry.shape != (2,):
            return [f"its nf4_shape is {entry.dtype} {list(entry.shape)}, expected int64 [2]"]
        named, found = self._files.raw(entry).tolist(), list(self.shape)
        return [] if named == found else [f"its nf4_shape is {named}, the codes hold {found}"]


def storage_summary(tensors: Mapping[str, TensorEntry]) -> dict[str, Any] | None:
    """What `ltx2rt inspect` says about a component's quantisation; None for plain floats."""
    found = detect_storage_format(tensors)
    if found is None:
        return None
    summary = {**dataclasses.asdict(found), "description": found.description, "buildable": True}
    try:
        with_encodings(tensors)
    except (CheckpointError, UnsupportedError) as error:
        summary |= {"buildable": False, "problem": str(error)}
    return summary


def is_companion_of(name: str, weights: set[str]) -> bool:
    """Whether a tensor tells how one of these weights (`….weight`) is stored."""
    match = COMPANION.search(name)
    return match is not None and f"{name[: match.start()]}.weight" in weights
