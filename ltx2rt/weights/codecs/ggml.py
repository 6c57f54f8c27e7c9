"""The block formats of GGUF files (Q8_0, Q4_K, ...), decoded by the `gguf` package (extra `gguf`).

Only builds read them: what engines take is written into the bundle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from ltx2rt.engine import F32, Array
from ltx2rt.errors import UnsupportedError
from ltx2rt.install import install_hint

#: what the names of these formats begin with: `ggml_q8_0`
PREFIX = "ggml_"
#: float32 of norms, which llama.cpp stores plus one
LESS_ONE = f"{PREFIX}f32_less_one"
#: values decoded at a time: a tensor is never held twice as a whole
_STEP_VALUES = 2**22


def decode(shape: Sequence[int], name: str, codes: Array) -> F32:
    """Values `[..., columns]` of rows of blocks, float32 exactly as the package decodes them.

    Args:
        shape: of the values.
        name: of the format.
        codes: uint8, `[rows, bytes of a row]`.
    """
    if name == LESS_ONE:
        shifted = np.frombuffer(codes.tobytes(), "<f4").reshape(shape)
        plain: F32 = shifted - np.float32(1)
        return plain
    quants = gguf_package("a GGUF file").quants
    kind = kind_of(name)
    columns = shape[-1] if shape else 1
    rows = math.prod(shape) // max(columns, 1)
    values = np.empty((rows, columns), np.float32)
    step = max(1, _STEP_VALUES // max(columns, 1))
    for begin in range(0, rows, step):
        part = slice(begin, begin + step)
        values[part] = quants.dequantize(codes[part], kind)
    return values.reshape(shape)


def kind_of(name: str) -> object:
    """The package's own name of a format."""
    return gguf_package("a GGUF file").GGMLQuantizationType[name.removeprefix(PREFIX).upper()]


def gguf_package(what: str) -> ModuleType:
    """The `gguf` package.

    Raises:
        UnsupportedError: it is not installed; `what` needs it.
    """
    try:
        import gguf
        import gguf.quants
    except ModuleNotFoundError as error:
        raise UnsupportedError(f"{what} needs the package gguf: {install_hint('gguf')}") from error
    module: ModuleType = gguf
    return module
