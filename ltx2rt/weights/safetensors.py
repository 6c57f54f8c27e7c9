"""Read safetensors headers and map their tensors, without loading them.

Format: 8 bytes little-endian header length, a JSON header, then the data; each entry holds dtype,
shape and `data_offsets` relative to the data. Only numpy is used; bfloat16 and fp8 tensors come as
raw integers.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ltx2rt.engine import Array
from ltx2rt.errors import CheckpointError
from ltx2rt.file_kind import sentence_about
from ltx2rt.user_files import open_regular
from ltx2rt.weights.codecs import fp8, stored
from ltx2rt.weights.codecs.stored import DECODED_PARTS, SCALE_CODES
from ltx2rt.weights.floats import bfloat16_bits

MAX_HEADER_BYTES = 100_000_000
#: limits of shapes: an empty tensor takes no bytes whatever its other sizes
MAX_DIMENSIONS, MAX_SIZE = 16, 2**40

#: safetensors dtype -> (name used by manifests, numpy dtype of the raw data)
DTYPES: dict[str, tuple[str, np.dtype[Any]]] = {
    "F64": ("float64", np.dtype("<f8")),
    "F32": ("float32", np.dtype("<f4")),
    "F16": ("float16", np.dtype("<f2")),
    "BF16": ("bfloat16", np.dtype("<u2")),
    "F8_E4M3": ("float8_e4m3fn", np.dtype("u1")),
    "F8_E5M2": ("float8_e5m2", np.dtype("u1")),
    "F8_E8M0": ("float8_e8m0fnu", np.dtype("u1")),
    "I64": ("int64", np.dtype("<i8")),
    "I32": ("int32", np.dtype("<i4")),
    "I16": ("int16", np.dtype("<i2")),
    "I8": ("int8", np.dtype("i1")),
    "U64": ("uint64", np.dtype("<u8")),
    "U32": ("uint32", np.dtype("<u4")),
    "U16": ("uint16", np.dtype("<u2")),
    "U8": ("uint8", np.dtype("u1")),
    "BOOL": ("bool", np.dtype("?")),
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies: `[offset, offset + length)` bytes of `path` (absolute offset).

    A quantised tensor has an `encoding`: `shape` is that of its values, `dtype` that of its codes.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int
    encoding: Encoding | None = None

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How a quantised tensor is stored; see `codecs.stored.Encoding`."""

    format: str
    shape: tuple[int, ...]
    group: int
    parts: Mapping[str, TensorEntry]


class SafetensorsFile(Mapping[str, TensorEntry]):
    """The header of one file, checked on opening. Maps tensor names to their entries.

    Raises:
        CheckpointError: the file is missing, not safetensors (says what it is), truncated, or its
            offsets are wrong.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            if self.path.is_dir():
                raise CheckpointError(sentence_about(self.path) or f"{self.path} is a folder.")
            with open_regular(self.path) as file:
                self.file_bytes = os.fstat(file.fileno()).st_size
                self._header, raw = _read_header(file, self.path, self.file_bytes)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror or error}") from error
        except ValueError as error:
            raise CheckpointError(f"cannot read {str(self.path)!r}: {error}") from error
        self.metadata: dict[str, str] = raw.pop("__metadata__", None) or {}
        if not isinstance(self.metadata, dict) or not all(
            isinstance(value, str) for value in self.metadata.values()
        ):
            raise CheckpointError(
                f"{self.path} is corrupt: its metadata is not a table of strings."
            )
        self.data_offset = 8 + len(self._header)
        self._entries = {name: self._entry(name, value) for name, value in raw.items()}
        self._refuse_overlaps()
        expected = max(
            (e.offset + e.length for e in self._entries.values()), default=self.data_offset
        )
        if expected > self.file_bytes:
            raise CheckpointError(
                sentence_about(self.path)
                or f"{self.path} is truncated: its header describes {expected} bytes, the file has "
                f"{self.file_bytes}; download or copy it again."
            )

    def _refuse_overlaps(self) -> None:
        """Two tensors that share bytes: one of them is not what its name says."""
        end, before = 0, ""
        for entry in sorted(self._entries.values(), key=lambda e: (e.offset, e.length)):
            if entry.length and entry.offset < end:
                raise CheckpointError(
                    f"{self.path} is corrupt: {before!r:.80} and {entry.name!r:.80} overlap."
                )
            if entry.length:
                end, before = entry.offset + entry.length, entry.name

    @property
    def header_sha256(self) -> str:
        """Digest of the JSON header: names, shapes and offsets, without reading the data."""
        return hashlib.sha256(self._header).hexdigest()

    def _entry(self, name: str, value: Any) -> TensorEntry:
        try:
            dtype, data_type = DTYPES[value["dtype"]]
            shape, offsets = tuple(value["shape"]), tuple(value["data_offsets"])
            # bool is an int to Python; JSON floats and strings must not pass as sizes either
            if len(offsets) != 2 or not all(type(n) is int for n in (*shape, *offsets)):
                raise ValueError("sizes are not integers")
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path} is corrupt: the header entry of {name!r:.80} is not valid "
                f"({value!r:.80})."
            ) from error
        begin, end = offsets
        if len(shape) > MAX_DIMENSIONS or any(d > MAX_SIZE for d in shape):
            raise CheckpointError(
                f"{self.path} is corrupt: {name!r:.80} has {len(shape)} dimensions, the largest "
                f"{max(shape)}, which no tensor has."
            )
        length = math.prod(shape) * data_type.itemsize
        if begin < 0 or any(d < 0 for d in shape) or end - begin != length:
            raise CheckpointError(
                f"{self.path} is corrupt: {name!r} has shape {list(shape)} and dtype {dtype}, "
                f"which is {length} bytes, but its offsets span {end - begin}."
            )
        return TensorEntry(self.path, name, dtype, shape, self.data_offset + begin, length)

    def __getitem__(self, name: str) -> TensorEntry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _read_header(file: Any, path: Path, file_bytes: int) -> tuple[bytes, dict[str, Any]]:
    """The header's text and what it says."""
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > MAX_HEADER_BYTES or length < 2:
        found = f"its header length reads {length}"
        raise _not_safetensors(
            path, found if len(start) == 8 else f"it has only {file_bytes} bytes"
        )
    header: bytes = file.read(length)
    if len(header) < length:
        raise CheckpointError(
            sentence_about(path)
            or f"{path} is truncated: its header has {length} bytes, the file only {file_bytes}; "
            "download or copy it again."
        )
    return header, _parse_header(header, path)


def _not_safetensors(path: Path, found: str) -> CheckpointError:
    return CheckpointError(sentence_about(path) or f"{path} is not a safetensors file: {found}.")


def _parse_header(header: bytes, path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(header.decode("utf-8"), object_pairs_hook=_unique)
        if not isinstance(raw, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise _not_safetensors(path, f"its header is not JSON ({error!s:.60})") from error
    return raw


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the header: no name twice, readers would differ in which one counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


class HasMetadata(Protocol):
    """Whatever has the metadata of a weight file."""

    @property
    def metadata(self) -> Mapping[str, str]: ...


def read_metadata(file: HasMetadata, key: str) -> Any:
    """One metadata value: parsed when it is JSON, else the string; None when absent."""
    text = file.metadata.get(key)
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


class MappedFiles:
    """Memory maps of weight files, opened once each and shared by all readers."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}

    def raw(self, entry: TensorEntry) -> Array:
        """Map the tensor's data as stored: read-only, no copy; dtype as in `DTYPES`.

        Raises:
            CheckpointError: the file cannot be mapped, or is shorter than when it was opened.
        """
        if entry.path not in self._maps:
            try:
                with entry.path.open("rb") as file:
                    self._maps[entry.path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"cannot map {entry.path}: {error}") from error
        # reading a page that the file does not have any more ends the process
        if self._maps[entry.path].size() < entry.offset + entry.length:
            raise CheckpointError(
                f"{entry.path} was cut off after it was opened: {entry.name} is no longer in it; "
                "copy or download it again."
            )
        data_type = next(t for name, t in DTYPES.values() if name == entry.dtype)
        shape = entry.encoding.shape if entry.encoding else entry.shape
        flat = np.frombuffer(
            self._maps[entry.path], dtype=data_type, count=math.prod(shape), offset=entry.offset
        )
        return flat.reshape(shape)

    def load(self, entry: TensorEntry, dtype: str) -> Array:
        """Convert the tensor to `dtype` (a key of `engine.NUMPY_DTYPES`); no copy if it has it."""
        values, source = self.values(entry)
        return convert(values, source, dtype, where=f"{entry.name} in {entry.path}")

    def values(self, entry: TensorEntry) -> tuple[Array, str]:
        """The tensor's values `entry.shape` and their dtype: as stored, or decoded to float32.
        Rows of several tensors are copied into one, axes in another order into a new one.
        """
        encoding = entry.encoding
        if encoding is None:
            return self.raw(entry), entry.dtype
        if encoding.format == stored.ROWS:
            rows = [
                self.raw(entry),
                *(self.raw(part) for _, part in sorted(encoding.parts.items())),
            ]
            return np.concatenate(rows), entry.dtype
        if encoding.format in stored.AXES:
            axis = stored.AXES[encoding.format]
            return np.ascontiguousarray(np.moveaxis(self.raw(entry), -1, axis)), entry.dtype
        parts = {n: self._part(encoding.parts[n]) for n in DECODED_PARTS if n in encoding.parts}
        codes = self.raw(entry)
        return stored.decode(entry.shape, entry.dtype, encoding, codes, parts), "float32"

    def _part(self, entry: TensorEntry) -> Array:
        return self.raw(entry) if entry.dtype in SCALE_CODES else self.load(entry, "float32")

    def close(self) -> None:
        """Forget the maps; memory is released when the last array into them is gone."""
        self._maps.clear()


def convert(raw: Array, source: str, target: str, where: str) -> Array:
    """Convert raw data of dtype `source` to `target`: exact or rounded to nearest even."""
    if source == target:
        return raw
    if source in fp8.TABLES:
        return convert(fp8.decode_dtype(raw, source), "float32", target, where)
    if source == "bfloat16":
        wide: Array = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return wide if target == "float32" else convert(wide, "float32", target, where)
    if source in {"float16", "float32", "float64"} and target == "bfloat16":
        return float32_to_bfloat16(raw.astype(np.float32))
    if source in {"float16", "float32", "float64"} and target in {"float16", "float32"}:
        return raw.astype(np.dtype(target))
    raise CheckpointError(f"cannot convert {where} from {source} to {target}.")


def float32_to_bfloat16(values: Array) -> Array:
    """Round float32 values to bfloat16 bit patterns (uint16); see `floats.bfloat16_bits`."""
    return bfloat16_bits(values)
