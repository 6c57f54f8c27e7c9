"""Weights as bitsandbytes stores them: 4 bits with a table in the file, and 8 bits by row.

4 bits: a table of 16 values, a scale per block of the flattened weight, which may be coded itself
(a table of 256 values, a scale per block of scales, an offset); two values a byte, the first high.
8 bits: `row = codes * SCB / 127`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ltx2rt.engine import F32, Array
from ltx2rt.errors import CheckpointError
from ltx2rt.weights.floats import round_bfloat16

#: formats of this module
FOUR_BITS, EIGHT_BITS = "nf4_bitsandbytes", "int8_bitsandbytes"
#: part -> what follows the weight's name in a file
PARTS: Mapping[str, str] = {
    "scale": "absmax",
    "table": "quant_map",
    "nested_scale": "nested_absmax",
    "nested_table": "nested_quant_map",
}
#: the part that says sizes and types, as JSON in bytes
STATE = "state"
_STEP = np.float32(1 / 127)


def read_state(data: Array) -> dict[str, Any]:
    """What a file says about one weight of 4 bits: `blocksize`, `shape`, `dtype`, ...

    Raises:
        ValueError: it is no such text.
    """
    state = json.loads(data.tobytes().decode("utf-8"))
    sizes = [state["blocksize"], *state["shape"], state.get("nested_blocksize", 1)]
    if not all(type(n) is int and n > 0 for n in sizes) or len(state["shape"]) != 2:
        raise ValueError("sizes")
    float(state.get("nested_offset", 0.0))
    found: dict[str, Any] = state
    return found


def decode_four_bits(shape: Sequence[int], codes: Array, parts: Mapping[str, Array]) -> F32:
    """Values `shape`, rounded to the dtype that they were made of.

    Args:
        codes: uint8, two values each.
        parts: `scale` (float32, or uint8 where it is coded itself), `table`, `state`, and for coded
            scales `nested_scale`, `nested_table`.
    """
    try:
        state = read_state(parts[STATE])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError("a weight of bitsandbytes says nothing about itself.") from error
    scale, coded = parts["scale"].reshape(-1), parts["scale"].dtype == np.uint8
    blocks = -(-codes.size * 2 // state["blocksize"])
    nested_blocks = -(-scale.size // state.get("nested_blocksize", 1))
    if scale.size != blocks or (coded and parts["nested_scale"].size != nested_blocks):
        raise CheckpointError("a weight of bitsandbytes has another number of scales than blocks.")
    if coded:
        nested = np.repeat(parts["nested_scale"].reshape(-1), state["nested_blocksize"])
        table = parts["nested_table"].reshape(-1)
        scale = table[scale] * nested[: scale.size] + np.float32(state["nested_offset"])
    table = parts["table"].reshape(-1)
    pairs = np.stack([np.repeat(table, 16), np.tile(table, 16)], axis=1)
    values: F32 = pairs[codes.reshape(-1)].reshape(-1)
    values *= np.repeat(scale, state["blocksize"])[: values.size]
    if state.get("dtype") == "bfloat16":
        values = round_bfloat16(values)
    elif state.get("dtype") == "float16":
        values = values.astype(np.float16).astype(np.float32)
    return values.reshape(shape)


def decode_eight_bits(codes: Array, scale: F32) -> F32:
    """`[out, in]` of int8 codes and the largest magnitude of each row."""
    values: F32 = codes.astype(np.float32)
    values *= scale.reshape(-1, 1) * _STEP
    return values
