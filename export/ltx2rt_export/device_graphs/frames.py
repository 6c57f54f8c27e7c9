"""Decoded pixels to finished frames: patches are put together, overlapping tiles are blended, and
frames become numbers of 8 or 10 bits.

`components.video_decoder` and `media.color` are their twins in numpy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ltx2rt.engine import TensorSpec
from ltx2rt.media.color import BLUE_DIFFERENCE, LUMA, RED_DIFFERENCE
from ltx2rt.names import (
    VIDEO_BLEND,
    VIDEO_FLOAT,
    VIDEO_I420,
    VIDEO_RGB,
    VIDEO_UNPATCH,
    VIDEO_YUV422,
)
from ltx2rt_export.device_graphs.graph_writer import GraphWriter
from ltx2rt_export.graph import ExportedGraph

_END = 2**31 - 1


def blend_graph() -> ExportedGraph:
    """One channel of a weighted tile, added to what is there already."""
    size = ("F", "H", "W")
    inputs = (
        TensorSpec("sum", "float32", size),
        TensorSpec("tile", "float32", size),
        TensorSpec("frame_weights", "float32", ("F",)),
        TensorSpec("row_weights", "float32", ("H",)),
        TensorSpec("column_weights", "float32", ("W",)),
    )
    write = GraphWriter()
    rows = write.op("Unsqueeze", "row_weights", write.integers(1))
    weights = write.op("Mul", rows, "column_weights")
    frames = write.op("Unsqueeze", "frame_weights", write.integers(1, 2))
    weighted = write.op("Mul", "tile", write.op("Mul", frames, weights))
    total = write.op("Add", "sum", weighted)
    return write.finish(VIDEO_BLEND, inputs, {TensorSpec("blended", "float32", size): total})


def unpatch_graph(patch_size: int) -> ExportedGraph:
    """Patches of a diffusion decoder, channels c*s^2 + column*s + row, to pixels; its twin is
    `diffusion_decoder.unpatchify`.
    """
    width = 3 * patch_size**2
    inputs = (TensorSpec("patches", "float32", (1, "F", "Hc", "Wc", width)),)
    write = GraphWriter()
    frames = write.op("Squeeze", "patches", write.integers(0))
    turned = write.op("Transpose", frames, perm=[0, 3, 2, 1])  # [F, 3*s^2, Wc, Hc]
    spread = write.op("DepthToSpace", turned, blocksize=patch_size, mode="CRD")
    pixels = write.op("Transpose", spread, perm=[1, 0, 3, 2])
    outputs = {TensorSpec("pixels", "float32", (3, "F", "H", "W")): pixels}
    return write.finish(VIDEO_UNPATCH, inputs, outputs)


def rgb_graph() -> ExportedGraph:
    """Pixels to 8-bit RGB, truncated after `rounding` (0 or 0.5) was added."""
    inputs = (_PIXELS, TensorSpec("rounding", "float32", (1,)))
    write = GraphWriter()
    unit, bad = _unit(write)
    scaled = write.op("Add", write.op("Mul", unit, write.number(255)), "rounding")
    last = write.op("Transpose", scaled, perm=[0, 2, 3, 1])
    frames = _bytes(write, last)
    outputs = {TensorSpec("frames", "uint8", ("F", "H", "W", 3)): frames, _NOT_NUMBERS: bad}
    return write.finish(VIDEO_RGB, inputs, outputs)


def i420_graph() -> ExportedGraph:
    """Pixels to limited-range BT.709 4:2:0: H rows of Y, then all of U, then all of V
    (spec/media_io.md §2).
    """
    write = GraphWriter()
    unit, bad = _unit(write)
    luma = _weighed(write, _planes(write, unit), LUMA, 219, 16)
    halved = _planes(write, _averages(write, unit))
    blue = _weighed(write, halved, BLUE_DIFFERENCE, 224, 128)
    red = _weighed(write, halved, RED_DIFFERENCE, 224, 128)
    packed = write.op("Concat", luma, blue, red, axis=1)
    outputs = {TensorSpec("frames", "uint8", ("F", "P")): _bytes(write, packed), _NOT_NUMBERS: bad}
    return write.finish(VIDEO_I420, (_PIXELS,), outputs)


def float_graph() -> ExportedGraph:
    """Pixels to float32 in [0, 1], for what wants more than bytes; NaN stays."""
    write = GraphWriter()
    unit, bad = _unit(write)
    kept = write.op("Where", write.op("IsNaN", "pixels"), "pixels", unit)
    last = write.op("Transpose", kept, perm=[0, 2, 3, 1])
    outputs = {TensorSpec("frames", "float32", ("F", "H", "W", 3)): last, _NOT_NUMBERS: bad}
    return write.finish(VIDEO_FLOAT, (_PIXELS,), outputs)


def yuv422p10_graph() -> ExportedGraph:
    """Pixels to limited-range BT.709 4:2:2 of 10 bits: H rows of Y, then all of U, then all of V
    (spec/media_io.md §2). Libraries give no 16-bit integers; float16 holds these exactly.
    """
    write = GraphWriter()
    unit, bad = _unit(write)
    planes = _planes(write, unit)
    halved = _planes(write, _pairs(write, unit))
    luma = _weighed(write, planes, LUMA, 876, 64)
    blue = _weighed(write, halved, BLUE_DIFFERENCE, 896, 512)
    red = _weighed(write, halved, RED_DIFFERENCE, 896, 512)
    packed = write.op("Round", write.op("Concat", luma, blue, red, axis=1))
    frames = write.cast(packed, "float16")
    outputs = {TensorSpec("frames", "float16", ("F", "P")): frames, _NOT_NUMBERS: bad}
    return write.finish(VIDEO_YUV422, (_PIXELS,), outputs)


#: about [-1, 1], as decoders give them
_PIXELS = TensorSpec("pixels", "float32", ("F", 3, "H", "W"))
#: how many values are NaN; they become black
_NOT_NUMBERS = TensorSpec("not_numbers", "int32", (1,))


def _unit(write: GraphWriter) -> tuple[str, str]:
    """Pixels in [0, 1], and how many are NaN."""
    zero, one = write.number(0), write.number(1)
    bad = write.op("IsNaN", "pixels")
    axes = write.integers(0, 1, 2, 3)
    count = write.op("ReduceSum", write.cast(bad, "int32"), axes, keepdims=0)
    moved = write.op("Mul", write.op("Add", "pixels", one), write.number(0.5))
    clean = write.op("Where", bad, zero, moved)
    unit = write.op("Clip", clean, zero, one)
    return unit, write.op("Unsqueeze", count, write.integers(0))


def _planes(write: GraphWriter, pixels: str) -> list[str]:
    """`[F, 3, H, W]` -> three of `[F, H, W]`."""
    axis = write.integers(1)
    return [
        write.op(
            "Squeeze",
            write.op("Slice", pixels, write.integers(i), write.integers(i + 1), axis),
            axis,
        )
        for i in range(3)
    ]


def _averages(write: GraphWriter, pixels: str) -> str:
    """The mean of every 2x2 pixels, summed in the order of `color._average_2x2`."""
    parts = [
        write.op(
            "Slice", pixels, write.integers(row, column), write.integers(_END, _END),
            write.integers(2, 3), write.integers(2, 2),
        )
        for row in range(2)
        for column in range(2)
    ]  # fmt: skip
    total = parts[0]
    for part in parts[1:]:
        total = write.op("Add", total, part)
    return write.op("Mul", total, write.number(0.25))


def _pairs(write: GraphWriter, pixels: str) -> str:
    """The mean of every two columns."""
    even, odd = (
        write.op(
            "Slice", pixels, write.integers(column), write.integers(_END), write.integers(3),
            write.integers(2),
        )
        for column in range(2)
    )  # fmt: skip
    return write.op("Mul", write.op("Add", even, odd), write.number(0.5))


def _weighed(
    write: GraphWriter,
    planes: Sequence[str],
    weights: Sequence[np.float32],
    scale: int,
    offset: int,
) -> str:
    """A weighted sum of planes in its limited range, `[F, H * W]`."""
    parts = [
        write.op("Mul", p, write.number(float(w))) for p, w in zip(planes, weights, strict=True)
    ]
    total = write.op("Add", write.op("Add", parts[0], parts[1]), parts[2])
    ranged = write.op("Add", write.op("Mul", total, write.number(scale)), write.number(offset))
    return write.op("Flatten", ranged, axis=1)


def _bytes(write: GraphWriter, values: str) -> str:
    """Truncated: libraries round otherwise when they cast."""
    return write.cast(write.op("Floor", values), "uint8")
