"""Counts and lengths in the head of a GGUF file, checked against its size before anything is read.

The package `gguf` trusts them: a file that claims 2^60 names would keep it busy for ever.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

#: bytes of a value; of the GGUF specification (`gguf_metadata_value_type`)
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_MAGIC, _VERSIONS = b"GGUF", (2, 3)
#: the tokenizer of a large model takes 20 MB
MAX_HEAD_BYTES = 1 << 26
_MAX_DEPTH, _MAX_DIMENSIONS = 4, 8


def check_head(path: Path) -> None:
    """Walk over the head of a file.

    Raises:
        ValueError: says what is wrong with it.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                _walk(data)
            except struct.error as error:
                raise ValueError("it ends in its head") from error


def _walk(data: mmap.mmap) -> None:
    if data[:4] != _MAGIC:
        raise ValueError("it does not begin as GGUF files do")
    version, tensors, values = struct.unpack_from("<IQQ", data, 4)
    if version not in _VERSIONS:
        raise ValueError(f"version {version}, or another order of bytes")
    at = 24
    for _ in range(values):
        at = _behind_string(data, at)
        at = _behind_value(data, at + 4, struct.unpack_from("<I", data, at)[0], 0)
    for _ in range(tensors):
        at = _behind_string(data, at)
        (dimensions,) = struct.unpack_from("<I", data, at)
        if dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        at = _within(data, at + 4 + 8 * dimensions + 12)


def _behind_value(data: mmap.mmap, at: int, kind: int, depth: int) -> int:
    if kind in _BYTES:
        return _within(data, at + _BYTES[kind])
    if kind == _STRING:
        return _behind_string(data, at)
    if kind != _ARRAY or depth == _MAX_DEPTH:
        raise ValueError(f"a value of kind {kind} at byte {at}")
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in _BYTES:
        return _within(data, at + count * _BYTES[inner])
    for _ in range(count):
        at = _behind_value(data, at, inner, depth + 1)
    return at


def _behind_string(data: mmap.mmap, at: int) -> int:
    return _within(data, at + 8 + int(struct.unpack_from("<Q", data, at)[0]))


def _within(data: mmap.mmap, at: int) -> int:
    if at > len(data) or at > MAX_HEAD_BYTES:
        raise ValueError("its head claims more than there is")
    return at
