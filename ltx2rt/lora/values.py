"""Look through the numbers of an adapter before they are used: NaN or infinity would spread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ltx2rt.engine import Array
from ltx2rt.errors import CheckpointError
from ltx2rt.lora.updates import Update
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile, TensorEntry, convert

_CHUNK = 1 << 20
#: exponent bits of a number that is not finite, where the raw data says so at once
_EXPONENTS = {"bfloat16": np.uint16(0x7F80)}
#: files that were fine in this process, by what changes when they do
_SOUND: set[tuple[Path, int, int, str, frozenset[str]]] = set()


def check_finite(file: SafetensorsFile, updates: Iterable[Update]) -> None:
    """Read every tensor that updates are made of; a file that was fine is not read again until it
    changes.

    Raises:
        CheckpointError: names the first tensor with a NaN or an infinity.
    """
    entries = {part.name: part for update in updates for part in _stored(update)}
    try:
        changed = file.path.stat().st_mtime_ns
    except OSError as error:
        raise CheckpointError(f"cannot read {file.path}: {error.strerror or error}") from error
    key = (file.path, file.file_bytes, changed, file.header_sha256, frozenset(entries))
    if key in _SOUND:
        return
    files = MappedFiles()
    for name, entry in entries.items():
        if not _is_finite(files, entry):
            raise CheckpointError(
                f"{file.path} is corrupt: {name} holds values that are not finite numbers; its "
                "training failed, or the download is damaged."
            )
    _SOUND.add(key)


def _stored(update: Update) -> Iterator[TensorEntry]:
    for part in update.parts():
        yield part
        if part.encoding is not None:
            yield from part.encoding.parts.values()


def _is_finite(files: MappedFiles, entry: TensorEntry) -> bool:
    raw: Array = files.raw(entry).reshape(-1)
    if raw.dtype.kind in "iu" and entry.dtype.startswith(("int", "uint")):
        return True
    mask = _EXPONENTS.get(entry.dtype)
    for begin in range(0, raw.size, _CHUNK):
        chunk = raw[begin : begin + _CHUNK]
        if mask is not None:
            if ((chunk & mask) == mask).any():
                return False
            continue
        with np.errstate(over="ignore"):  # float64 beyond float32: infinite where it is used
            values = convert(chunk, entry.dtype, "float32", entry.name)
        if not np.isfinite(values).all():
            return False
    return True
