"""Quantised tensors as files store them: which layouts there are, what fits, and how they decode.

Formats: spec/checkpoints.md §7; arithmetic: spec/quantization.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ltx2rt.engine import F32, Array
from ltx2rt.weights.codecs import bitsandbytes, fp8, ggml, int8, nf4, nvfp4

Shape = tuple[int, ...]
_FP8 = ("float8_e4m3fn", "float8_e5m2")
_FLOATS = ("float32", "bfloat16", "float16")
_BYTES = ("uint8", "float8_e8m0fnu")
#: plain floats in several tensors of one size, one below another: the first, and `rows_1`, ...
ROWS = "rows"
#: plain floats of a convolution whose channels are the last axis (MLX), and not the second, or, of
#: a transposed one, not the first
CHANNELS_LAST, CHANNELS_LAST_TRANSPOSED = "channels_last", "channels_last_transposed"
#: format -> the axis that the last one is in the official order
AXES = {CHANNELS_LAST: 1, CHANNELS_LAST_TRANSPOSED: 0}
#: dtypes of scales that are codes themselves
SCALE_CODES = (*_BYTES, "float8_e4m3fn")
#: parts as messages call them: with their usual name in files
_NAMES = {
    "scale": "scale (weight_scale)",
    "tensor_scale": "tensor scale (weight_scale_2)",
    "input_scale": "input_scale",
}
#: parts that `decode` takes
DECODED_PARTS = (
    *("scale", "tensor_scale"),
    *("table", "nested_scale", "nested_table", bitsandbytes.STATE),
)


class Part(Protocol):
    """One stored tensor: codes or a companion."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> Shape: ...


class Encoding(Protocol):
    """How a tensor is stored.

    `format` is a key of `LAYOUTS`, `shape` that of the codes, `group` how many inputs share a scale
    or a rotation (1: not grouped). `parts` holds `scale`, for NVFP4 `tensor_scale`, and what only
    engines use: `input_scale`.
    """

    @property
    def format(self) -> str: ...

    @property
    def shape(self) -> Shape: ...

    @property
    def group(self) -> int: ...

    @property
    def parts(self) -> Mapping[str, Part]: ...


@dataclass(frozen=True, slots=True)
class Layout:
    """What a format's tensors look like.

    Attributes:
        dtypes: of the codes.
        per_byte: values in one code byte, along the inputs.
        scale_dtypes: of `scale`.
        scale_shapes: (out, in, group) -> shapes that `scale` may have.
        tensor_scale: whether there is a second scale of one number.
        more_rows: whether `scale` may be padded to more rows than named.
    """

    dtypes: tuple[str, ...]
    per_byte: int
    scale_dtypes: tuple[str, ...]
    scale_shapes: Callable[[int, int, int], Sequence[Shape]]
    tensor_scale: bool = False
    more_rows: bool = False


def _one_or_rows(rows: int, columns: int, group: int) -> list[Shape]:
    return [(), (1,), (1, 1), (rows, 1), (rows,)]


LAYOUTS: dict[str, Layout] = {
    "fp8_scaled": Layout(_FP8, 1, _FLOATS, _one_or_rows),
    "fp8_blocks": Layout(_FP8, 1, _FLOATS, lambda r, c, g: [(r // g, c // g)]),
    "mxfp8": Layout(
        ("float8_e4m3fn",), 1, _BYTES, lambda r, c, g: [nvfp4.tiled_shape(r, c // g), (r, c // g)]
    ),
    "nvfp4": Layout(
        ("uint8",),
        2,
        ("float8_e4m3fn",),
        lambda r, c, g: [nvfp4.tiled_shape(r, c // g)],
        tensor_scale=True,
        more_rows=True,
    ),
    "nf4": Layout(("uint8",), 2, _FLOATS, lambda r, c, g: [(r, c // g, 1), (r, c // g)]),
    "int8": Layout(("int8",), 1, _FLOATS, _one_or_rows),
    "int8_convrot": Layout(("int8",), 1, _FLOATS, _one_or_rows),
    bitsandbytes.EIGHT_BITS: Layout(("int8",), 1, _FLOATS, lambda r, c, g: [(r,)]),
}
#: group sizes that a format fixes
GROUPS = {"mxfp8": fp8.MX_BLOCK, "nvfp4": nvfp4.GROUP}


def storage_problems(shape: Shape, dtype: str, encoding: Encoding) -> list[str]:
    """Why a tensor of values `shape`, with codes of `dtype`, cannot be decoded; [] when it can.

    Everything that `decode` relies on is checked, from headers alone.
    """
    if encoding.format == bitsandbytes.FOUR_BITS:
        return _four_bits_problems(shape, dtype, encoding)
    if encoding.format == ROWS:
        return _rows_problems(shape, dtype, encoding)
    if encoding.format in AXES:
        return _axes_problems(shape, dtype, encoding)
    layout = LAYOUTS.get(encoding.format)
    if layout is None:
        return [f"its format {encoding.format!r} is unknown"]
    if len(shape) != 2 or 0 in shape:
        return [f"its shape {list(shape)} is not that of a matrix"]
    rows, columns = shape
    group = encoding.group
    problems = []
    if dtype not in layout.dtypes:
        problems.append(f"its dtype {dtype} is not {' or '.join(layout.dtypes)}")
    if tuple(encoding.shape) != (rows, columns // layout.per_byte) or columns % layout.per_byte:
        problems.append(f"codes {list(encoding.shape)} do not hold {list(shape)} values")
    if group < 1 or columns % group or group != GROUPS.get(encoding.format, group):
        return [*problems, f"{columns} inputs have no whole groups of {group}"]
    if encoding.format == "fp8_blocks" and rows % group:
        problems.append(f"{rows} outputs have no whole blocks of {group}")
    if encoding.format == "int8_convrot" and not int8.is_rotation(group):
        problems.append(f"a rotation of {group} inputs does not exist")
    wanted = {"scale": (layout.scale_dtypes, layout.scale_shapes(rows, columns, group))}
    if layout.tensor_scale:
        wanted["tensor_scale"] = (_FLOATS, [(), (1,)])
    if "input_scale" in encoding.parts:
        wanted["input_scale"] = (_FLOATS, [(), (1,)])
    for name, (dtypes, shapes) in wanted.items():
        part = encoding.parts.get(name)
        if part is None:
            problems.append(f"it has no {_NAMES[name]}")
        elif part.dtype not in dtypes or not (
            tuple(part.shape) in shapes
            or (name == "scale" and layout.more_rows and _is_longer(part.shape, shapes[0]))
        ):
            allowed = " or ".join(str(list(s)) for s in dict.fromkeys(shapes))
            found = f"its {_NAMES[name]} is {part.dtype} {list(part.shape)}"
            problems.append(f"{found}, expected {' or '.join(dtypes)} {allowed}")
    return problems


def _rows_problems(shape: Shape, dtype: str, encoding: Encoding) -> list[str]:
    """As `storage_problems`, of plain tensors one below another."""
    each = tuple(encoding.shape)
    names = [f"{ROWS}_{number}" for number in range(1, len(encoding.parts) + 1)]
    if not each or tuple(shape) != (each[0] * (1 + len(names)), *each[1:]):
        return [f"{1 + len(names)} tensors of {list(each)} do not hold {list(shape)} values"]
    if dtype not in _FLOATS:
        return [f"its dtype {dtype} is not {' or '.join(_FLOATS)}"]
    return [
        f"its {name} is not {dtype} {list(each)}"
        for name in names
        if (part := encoding.parts.get(name)) is None
        or (part.dtype, tuple(part.shape)) != (dtype, each)
    ]


def _axes_problems(shape: Shape, dtype: str, encoding: Encoding) -> list[str]:
    """As `storage_problems`, of a plain tensor with its last axis elsewhere."""
    *outer, last = encoding.shape or (0,)
    outer.insert(AXES[encoding.format], last)
    if not 3 <= len(outer) <= 5 or tuple(shape) != tuple(outer):
        return [f"{list(encoding.shape)} with channels last is not {list(shape)}"]
    return [] if dtype in _FLOATS else [f"its dtype {dtype} is not {' or '.join(_FLOATS)}"]


def _four_bits_problems(shape: Shape, dtype: str, encoding: Encoding) -> list[str]:
    """As `storage_problems`, of flat codes whose sizes are in a part."""
    if dtype != "uint8" or math.prod(encoding.shape) * 2 != math.prod(shape) or len(shape) != 2:
        return [f"codes {list(encoding.shape)} of {dtype} do not hold {list(shape)} values"]
    wanted = {"scale": 0, "table": 16, bitsandbytes.STATE: 0}
    scale = encoding.parts.get("scale")
    if scale is not None and scale.dtype == "uint8":
        wanted |= {"nested_scale": 0, "nested_table": 256}
    problems = []
    for name, count in wanted.items():
        part = encoding.parts.get(name)
        if part is None:
            problems.append(f"it has no {_NAMES.get(name, name)} of bitsandbytes")
        elif count and (math.prod(part.shape) != count or part.dtype not in _FLOATS):
            problems.append(f"its {name} is {part.dtype} {list(part.shape)}")
    return problems


def _is_longer(shape: Shape, wanted: Shape) -> bool:
    return len(shape) == 2 and shape[1] == wanted[1] and shape[0] > wanted[0]


def decode(
    shape: Shape, dtype: str, encoding: Encoding, codes: Array, parts: Mapping[str, Any]
) -> F32:
    """The float32 values of a tensor without `storage_problems`.

    Args:
        shape: of the values, `[out, in]`.
        dtype: of the codes.
        codes: as stored.
        parts: `scale` and `tensor_scale`: bytes as stored where they are codes, else float32.
    """
    if encoding.format.startswith(ggml.PREFIX):
        return ggml.decode(shape, encoding.format, codes)
    scale = parts["scale"]
    match encoding.format:
        case bitsandbytes.FOUR_BITS:
            return bitsandbytes.decode_four_bits(shape, codes, parts)
        case bitsandbytes.EIGHT_BITS:
            return bitsandbytes.decode_eight_bits(codes, scale)
        case "fp8_scaled":
            values = fp8.decode_dtype(codes, dtype)
            values *= scale.reshape(-1, 1)
            return values
        case "fp8_blocks":
            return fp8.scale_blocks(fp8.decode_dtype(codes, dtype), scale)
        case "mxfp8":
            return fp8.decode_mx(codes, _untiled(scale, shape, fp8.MX_BLOCK))
        case "nvfp4":
            tensor_scale = parts["tensor_scale"].reshape(-1)[0]
            scales = nvfp4.untile_scales(scale, shape[0], shape[1] // nvfp4.GROUP)
            return nvfp4.decode(
                nvfp4.Nvfp4(codes=codes, block_scales=scales, tensor_scale=tensor_scale)
            )
        case "nf4":
            return nf4.decode(codes, scale.reshape(shape[0], -1))
        case "int8":
            return int8.decode_rows(codes, scale.reshape(-1, 1))
        case _:
            return int8.decode_convrot(codes, scale.reshape(-1, 1), encoding.group)


def _untiled(scale: Array, shape: Shape, group: int) -> Array:
    rows, groups = shape[0], shape[1] // group
    if scale.shape == nvfp4.tiled_shape(rows, groups):
        return nvfp4.untile_scales(scale, rows, groups)
    return scale
