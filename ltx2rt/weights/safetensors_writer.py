"""Write safetensors files: streaming, atomic, numpy only.

The layout is the official writer's: a JSON header padded with spaces to a multiple of 8 bytes,
tensors of wide dtypes first, so that every tensor is aligned to its element size.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from ltx2rt.engine import Array
from ltx2rt.errors import CheckpointError, InternalError
from ltx2rt.partial import Partial
from ltx2rt.weights.safetensors import DTYPES, float32_to_bfloat16

#: dtype name of `safetensors.DTYPES`, shape, and the data in order: bytes, or arrays of that dtype
#: (for bfloat16: float32, which is rounded, or uint16 bit patterns).
Stream = tuple[str, tuple[int, ...], Iterable[Array | bytes | memoryview]]

_FILE_NAMES = {name: (file_name, dtype) for file_name, (name, dtype) in DTYPES.items()}


def bfloat16(values: Array) -> Stream:
    """Mark a float array to be stored as bfloat16 (rounded to nearest even)."""
    return "bfloat16", values.shape, (values,)


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Array | Stream],
    metadata: Mapping[str, str] | None = None,
    *,
    keep_order: bool = False,
) -> None:
    """Write `tensors` to `path`; either the whole file appears or nothing does.

    Args:
        path: the file to create or replace; its directory must exist.
        tensors: arrays, or `(dtype, shape, chunks)` when a tensor is made piece by piece.
        metadata: strings for the header's `__metadata__`.
        keep_order: write tensors in the order given, for streams that are made together; sizes must
            then keep every tensor aligned.

    Raises:
        CheckpointError: the disk is full, or the file cannot be written there.
    """
    target = Path(path)
    streams = {name: _stream(value) for name, value in tensors.items()}
    order = list(streams)
    if not keep_order:
        order.sort(key=lambda n: (-_FILE_NAMES[streams[n][0]][1].itemsize, n))
    header = _header(streams, order, metadata)
    needed = len(header) + data_bytes(streams)
    require_space(target, needed)
    try:
        with Partial(target) as part:
            part.file.write(header)
            for name in order:
                written = sum(part.file.write(chunk) for chunk in _chunks(*streams[name]))
                if written != _num_bytes(streams[name]):
                    raise InternalError(f"{name} gave {written} bytes, not its shape's size")
    except OSError as error:
        raise _cannot_write(target, needed, error) from error


def require_space(target: Path, needed: int) -> None:
    """Refuse to write `needed` bytes to where there is less room.

    Raises:
        CheckpointError: the disk is full, or there is no such folder.
    """
    try:
        if shutil.disk_usage(target.parent).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise _cannot_write(target, needed, error) from error


def data_bytes(streams: Mapping[str, Stream]) -> int:
    """Bytes of all tensors together."""
    return sum(_num_bytes(stream) for stream in streams.values())


def _cannot_write(target: Path, needed: int, error: OSError) -> CheckpointError:
    why = error.strerror or error
    return CheckpointError(f"cannot write {target}, which needs {needed} bytes: {why}.")


def _stream(value: Array | Stream) -> Stream:
    if isinstance(value, tuple):
        return value
    for name, (_, dtype) in _FILE_NAMES.items():
        if dtype == value.dtype and name not in {"bfloat16"} and not name.startswith("float8"):
            return name, value.shape, (value,)
    raise InternalError(f"no safetensors dtype for numpy's {value.dtype}")


def _num_bytes(stream: Stream) -> int:
    return math.prod(stream[1]) * _FILE_NAMES[stream[0]][1].itemsize


def _header(
    streams: Mapping[str, Stream], order: Iterable[str], metadata: Mapping[str, str] | None
) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for name in order:
        dtype, shape, _ = streams[name]
        end = begin + _num_bytes(streams[name])
        entries[name] = {
            "dtype": _FILE_NAMES[dtype][0],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _chunks(
    dtype: str, shape: tuple[int, ...], data: Iterable[Array | bytes | memoryview]
) -> Iterator[bytes | memoryview]:
    target = _FILE_NAMES[dtype][1]
    for chunk in data:
        if isinstance(chunk, bytes | memoryview):
            yield chunk
            continue
        if dtype == "bfloat16" and chunk.dtype != np.uint16:
            chunk = float32_to_bfloat16(chunk.astype(np.float32))
        if chunk.dtype != target:
            raise InternalError(f"a {dtype} tensor was given {chunk.dtype} data")
        if chunk.size:
            yield np.ascontiguousarray(chunk).data.cast("B")
