"""From stored weights to the arrays that engines take: places, decoding, layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ltx2rt.bundle.manifest import ComponentEntry, Manifest, Place, WeightRef
from ltx2rt.engine import Array
from ltx2rt.lora.adapter import factor_names
from ltx2rt.lora.merger import LoraMerger
from ltx2rt.weights.codecs.engine_formats import ENGINE_FORMATS
from ltx2rt.weights.codecs.stored import storage_problems
from ltx2rt.weights.layout import transposed_copy
from ltx2rt.weights.precision import PRECISIONS
from ltx2rt.weights.safetensors import DTYPES, Encoding, TensorEntry, convert

#: dtype -> bytes of one element
ITEM_BYTES = {name: data_type.itemsize for name, data_type in DTYPES.values()}


def tensor_entry(name: str, ref: Place, sources: Sequence[Path]) -> TensorEntry:
    """Where a stored tensor lies on disk now: `sources` are the manifest's, in order."""

    def entry(name: str, place: Place, encoding: Encoding | None = None) -> TensorEntry:
        path = sources[place.source]
        return TensorEntry(
            path, name, place.dtype, place.shape, place.offset, place.length, encoding
        )

    if not isinstance(ref, WeightRef) or ref.encoding is None:
        return entry(name, ref)
    encoding = Encoding(
        format=ref.encoding.format,
        shape=ref.encoding.shape,
        group=ref.encoding.group,
        parts={part: entry(f"{name} ({part})", p) for part, p in ref.encoding.parts.items()},
    )
    return entry(name, ref, encoding)


def engine_tensors(
    entry: ComponentEntry, name: str, values: Array, dtype: str, where: str
) -> dict[str, Array]:
    """The arrays that an engine takes for one weight.

    Args:
        entry: the component: its precision, and which weights it takes transposed.
        name: of the weight.
        values: `[out, in]` (or the shape of any other weight), merged with LoRAs, of `dtype`.
        where: names the weight in errors.

    Returns:
        engine input or initializer -> array, contiguous.
    """
    if name in entry.quantized:
        parts = ENGINE_FORMATS[entry.quantized[name]].encode(
            convert(values, dtype, "float32", where)
        )
        module = name.removesuffix("weight")
        return {module + p: stored_tensor(entry, module + p, a) for p, a in parts.items()}
    target = entry.weight_dtypes.get(name, PRECISIONS[entry.precision].dtype)
    return {name: stored_tensor(entry, name, convert(values, dtype, target, where))}


def lora_tensors(
    entry: ComponentEntry,
    weight: str,
    shape: tuple[int, ...],
    official: str | None,
    loras: LoraMerger | None,
) -> dict[str, Array]:
    """The low-rank inputs of one linear, for a graph that takes LoRAs unmerged; zeros of rank 1
    without LoRAs. `official` is the weight's official name.
    """
    names = factor_names(weight.removesuffix(".weight"))
    dtypes = {t.name: t.dtype for t in entry.inputs}
    if loras is None or official is None:
        factors = np.zeros((shape[1], 1), np.float32), np.zeros((1, shape[0]), np.float32)
    else:
        factors = loras.factors(official, shape)
    return {n: convert(f, "float32", dtypes[n], n) for n, f in zip(names, factors, strict=True)}


def stored_tensor(entry: ComponentEntry, name: str, array: Array) -> Array:
    """A tensor that is ready but for its layout."""
    return transposed_copy(array) if name in entry.transposed else array


def weight_problems(manifest: Manifest) -> list[str]:
    """Weights that lie outside their files, or whose sizes or encodings do not fit."""
    problems = []
    for name, entry in manifest.components.items():
        if not entry.layers:
            problems.append(f"{name} lists no weights")
        if entry.precision not in PRECISIONS:
            problems.append(f"{name} has precision {entry.precision!r}")
        for layer in entry.layers:
            for weight, ref in layer.items():
                problems += [f"{name}: {weight} {p}" for p in _ref_problems(manifest, ref)]
        for overlay in entry.overlays:
            for weight, place in overlay.items():
                found = _place_problems(manifest, place, place.shape)
                problems += [f"{name}: {weight} (quantised) {p}" for p in found]
        problems += [
            f"{name}: {weight} has the unknown format {kind!r}"
            for weight, kind in entry.quantized.items()
            if kind not in ENGINE_FORMATS
        ]
    return problems


def _ref_problems(manifest: Manifest, ref: WeightRef) -> list[str]:
    if ref.encoding is None:
        return _place_problems(manifest, ref, ref.shape)
    problems = _place_problems(manifest, ref, ref.encoding.shape)
    for part, place in ref.encoding.parts.items():
        problems += [f"({part}) {p}" for p in _place_problems(manifest, place, place.shape)]
    unfit = storage_problems(ref.shape, ref.dtype, ref.encoding)
    return problems + [f"cannot be decoded: {p}" for p in unfit]


def _place_problems(manifest: Manifest, place: Place, shape: tuple[int, ...]) -> list[str]:
    if not 0 <= place.source < len(manifest.sources):
        return [f"names source {place.source}, which is not listed"]
    source = manifest.sources[place.source]
    if place.offset < 0 or place.length < 0 or place.offset + place.length > source.bytes:
        return [f"lies outside {source.path}"]
    item_bytes = ITEM_BYTES.get(place.dtype)
    if item_bytes is None or any(d < 0 for d in shape):
        return [f"has dtype {place.dtype!r} and shape {list(shape)}, which no file has"]
    if place.length != math.prod(shape) * item_bytes:
        return [f"of dtype {place.dtype!r} and shape {list(shape)} has {place.length} bytes"]
    return []
