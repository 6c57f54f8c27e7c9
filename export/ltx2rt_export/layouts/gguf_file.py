"""GGUF files: their tensors, under the names that their makers kept (see `decode_gguf` too)."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt.weights.codecs.ggml import PREFIX, gguf_package
from ltx2rt.weights.safetensors import Encoding, TensorEntry
from ltx2rt_export.layouts.gguf_bounds import check_head

_PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
#: formats whose arithmetic the package has; others are for other programs
_DECODED = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
    "IQ4_XS",
)  # fmt: skip
_SHAPES = "comfy.gguf.orig_shape."


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A file's identity: as a `SafetensorsFile` tells it."""

    path: Path
    file_bytes: int
    header_sha256: str


def open_gguf(path: Path) -> tuple[GgufFile, dict[str, TensorEntry]]:
    """The tensors of a GGUF file; shapes are those of the values, outermost first.

    Raises:
        CheckpointError: it is damaged or truncated.
        UnsupportedError: the package is missing, or tensors are in formats that are not read (all
            are counted).
    """
    package = gguf_package(f"{path} is a GGUF file, which")
    try:
        check_head(path)
        reader = package.GGUFReader(path)
    except (ValueError, KeyError, IndexError, OverflowError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or truncated ({error!s:.80}): download or copy it again."
        ) from error
    unread: dict[str, int] = {}
    tensors: dict[str, TensorEntry] = {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        if kind not in _PLAIN and kind not in _DECODED:
            unread[kind] = unread.get(kind, 0) + 1
            continue
        tensors[tensor.name] = _entry(path, reader, tensor, kind)
    if unread:
        found = ", ".join(f"{count} tensors as {kind}" for kind, count in sorted(unread.items()))
        raise UnsupportedError(
            f"{path} holds {found}, which is not read: give a file in "
            f"{', '.join((*_PLAIN, *_DECODED))}."
        )
    header = reader.data[: reader.data_offset].tobytes()
    return GgufFile(path, path.stat().st_size, hashlib.sha256(header).hexdigest()), tensors


def _entry(path: Path, reader: Any, tensor: Any, kind: str) -> TensorEntry:
    shape = tuple(int(n) for n in tensor.shape)[::-1]
    named = reader.get_field(f"{_SHAPES}{tensor.name}")
    if named is not None:  # more than four dimensions, or a last one that no block fits
        shape = tuple(int(named.parts[i][0]) for i in named.data)
    offset, length = int(tensor.data_offset), int(tensor.n_bytes)
    if offset + length > path.stat().st_size or math.prod(shape) != int(tensor.n_elements):
        raise CheckpointError(
            f"{path} is truncated or damaged at {tensor.name}: download or copy it again."
        )
    if kind in _PLAIN:
        return TensorEntry(path, tensor.name, _PLAIN[kind], shape, offset, length)
    rows = math.prod(int(n) for n in tensor.shape[1:])
    encoding = Encoding(
        format=PREFIX + kind.lower(), shape=(rows, length // rows), group=1, parts={}
    )
    return TensorEntry(path, tensor.name, "uint8", shape, offset, length, encoding)


def is_gguf(entry: TensorEntry) -> bool:
    """Whether a tensor lies in a GGUF file."""
    return entry.path.suffix.lower() == ".gguf"


def gguf_summary(tensors: Mapping[str, TensorEntry]) -> dict[str, Any] | None:
    """What `ltx2rt inspect` says about the formats of a GGUF file; None for other files."""
    encoded = [e.encoding.format for e in tensors.values() if e.encoding and is_gguf(e)]
    if not encoded:
        return None
    counts = Counter(name.removeprefix(PREFIX).upper() for name in encoded)
    shown = ", ".join(f"{count} as {name}" for name, count in counts.most_common())
    return {
        "name": "gguf",
        "description": f"GGUF ({shown}), decoded while building",
        "layers": len(encoded),
        "formats": dict(counts),
        "buildable": True,
    }
