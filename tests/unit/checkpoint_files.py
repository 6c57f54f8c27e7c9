"""Tiny weight files for tests: shapes do not matter to detection, names do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ltx2rt.weights.safetensors import SafetensorsFile
from ltx2rt.weights.safetensors_writer import write_safetensors


def write_names(
    path: Path,
    names: Iterable[str] | Mapping[str, tuple[str, tuple[int, ...]]],
    metadata: Mapping[str, str] | None = None,
) -> SafetensorsFile:
    """A file with these tensors: `[2, 2]` float32 zeros, or the given (dtype, shape)."""
    specs = names if isinstance(names, Mapping) else {n: ("float32", (2, 2)) for n in names}
    itemsize = {"float32": 4, "bfloat16": 2, "int64": 8}
    tensors = {
        name: (dtype, shape, [bytes(int(np.prod(shape)) * itemsize.get(dtype, 1))])
        for name, (dtype, shape) in specs.items()
    }
    write_safetensors(path, tensors, metadata)
    return SafetensorsFile(path)


def copy_with(
    source: Path,
    target: Path,
    *,
    keep=lambda name: True,
    rename=lambda name: name,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Rewrite a safetensors file with some tensors dropped or renamed."""
    file = SafetensorsFile(source)
    data = source.read_bytes()
    tensors = {
        rename(name): (e.dtype, e.shape, [data[e.offset : e.offset + e.length]])
        for name, e in file.items()
        if keep(name)
    }
    write_safetensors(target, tensors, file.metadata if metadata is None else metadata)
    return target


def sharded(checkpoint: Path, folder: Path, *, index: bool) -> list[Path]:
    """A checkpoint in two files, the configuration in the second."""
    names = sorted(SafetensorsFile(checkpoint))
    halves = [set(names[: len(names) // 2]), set(names[len(names) // 2 :])]
    shards = []
    for number, half in enumerate(halves, 1):
        path = folder / f"model-0000{number}-of-00002.safetensors"
        metadata = {} if number == 1 else None
        shards.append(copy_with(checkpoint, path, keep=half.__contains__, metadata=metadata))
    if index:
        table = {n: shards[n in halves[1]].name for n in names}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return shards
