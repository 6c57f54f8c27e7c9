"""Safetensors files that take no disk: official names and shapes, data that is one hole."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

Shapes = dict[str, tuple[int, ...]]

#: tensors that released files keep in float32: spec/transformer.md §3
FLOAT32 = re.compile(r"transformer_blocks\.\d+\..*scale_shift_table")


_ITEM_BYTES = {"BF16": 2, "F32": 4, "U8": 1, "F8_E4M3": 1}


def shapes_of(prefix: str, module: nn.Module) -> Shapes:
    """Names and shapes of a module's tensors below a prefix."""
    return {prefix + name: tuple(t.shape) for name, t in module.state_dict().items()}


def write_sparse(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    metadata: Mapping[str, str],
    assets: Mapping[str, bytes] | None = None,
    dtypes: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file of bfloat16 tensors (the tables of a transformer: float32) that are
    holes and read as zeros.

    Args:
        assets: files that are packed as uint8 tensors, before the others; these are written.
        dtypes: of tensors that are none of these: `U8`, `F8_E4M3`, `F32`.
    """
    assets, dtypes = assets or {}, dtypes or {}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, data in assets.items():
        end = offset + len(data)
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [offset, end]}
        offset = end
    for name, shape in shapes.items():
        kind = dtypes.get(name, "F32" if FLOAT32.search(name) else "BF16")
        end = offset + _ITEM_BYTES[kind] * math.prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for data in assets.values():
            file.write(data)
        file.truncate(8 + len(text) + offset)
