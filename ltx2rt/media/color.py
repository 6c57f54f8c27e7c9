"""RGB to 8-bit I420 (BT.709, limited range) and to 8-bit RGB, in plain numpy.

The media library is not trusted with this: it converts with BT.601 whatever the stream says.
Formula and constants: spec/media_io.md §2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ltx2rt.engine import F32, U8, Array
from ltx2rt.errors import ShapeError

LUMA = tuple(np.float32(v) for v in (0.2126, 0.7152, 0.0722))
BLUE_DIFFERENCE = tuple(np.float32(v) for v in (-0.1146, -0.3854, 0.5))
RED_DIFFERENCE = tuple(np.float32(v) for v in (0.5, -0.4542, -0.0458))

U16 = NDArray[np.uint16]
#: what frames may leave a decoder as, and a file is written from: `i420` `[f, 3 * H / 2, W]` uint8
#: as `rgb_to_i420` gives them; `rgb` `[f, H, W, 3]` uint8, truncated, or rounded as `to_uint8`
#: does; `yuv422p10` `[f, 2 * H, W]` uint16 as `pack_yuv422p10` gives them
PackedForm = Literal["i420", "rgb", "rgb_rounded", "yuv422p10"]
#: the same, or `float` `[f, H, W, 3]` float32 in [0, 1]
FrameForm = Literal["i420", "rgb", "rgb_rounded", "yuv422p10", "float"]
Frames = Array  # [f, H, W, 3], float in [0, 1] or uint8


def frame_shape(form: FrameForm, height: int, width: int) -> tuple[int, ...]:
    """Of one frame in a form."""
    if form == "i420":
        return height * 3 // 2, width
    return (2 * height, width) if form == "yuv422p10" else (height, width, 3)


def check_frames(frames: Frames) -> None:
    """Refuse anything but `[f, H, W, 3]` float or uint8 frames.

    Raises:
        ShapeError: wrong rank, channel count or dtype.
    """
    floating = np.issubdtype(frames.dtype, np.floating)
    if frames.ndim != 4 or frames.shape[-1] != 3 or not (floating or frames.dtype == np.uint8):
        raise ShapeError(
            f"frames have shape {list(frames.shape)} and type {frames.dtype};"
            " expected [frames, height, width, 3] in float32 (0 to 1) or uint8."
        )


def unit_float(frame: Frames) -> tuple[F32, int]:
    """Bring frames of any supported type to float32 in [0, 1].

    Values outside are clamped. NaN becomes 0 (black), because it has no nearest colour.

    Returns:
        The float32 frames (a new array) and how many values were NaN.
    """
    if frame.dtype == np.uint8:
        return np.divide(frame, np.float32(255), dtype=np.float32), 0
    values = frame.astype(np.float32)
    not_numbers = int(np.isnan(values).sum()) if values.size and np.isnan(values.min()) else 0
    np.fmax(values, np.float32(0), out=values)  # fmax, unlike maximum, drops NaN
    np.minimum(values, np.float32(1), out=values)
    return values, not_numbers


def to_uint8(frames: Frames) -> tuple[U8, int]:
    """Round frames to 8-bit RGB; uint8 frames pass unchanged.

    Returns:
        `[..., 3]` uint8 and the number of NaN values (written as 0).
    """
    if frames.dtype == np.uint8:
        return frames, 0
    values, not_numbers = unit_float(frames)
    return (values * np.float32(255) + np.float32(0.5)).astype(np.uint8), not_numbers


def rgb_to_i420(frames: Frames) -> tuple[U8, int]:
    """Convert RGB to limited-range BT.709 4:2:0, truncating as the official writer does.

    Args:
        frames: `[f, H, W, 3]`, float in [0, 1] or uint8; H and W even. Floats outside [0, 1] are
            clamped and NaN is written as black.

    Returns:
        `[f, H * 3 / 2, W]` uint8: H rows of Y, then all of U, then all of V; and the NaN count.

    Raises:
        ShapeError: not frames, or an odd side.
    """
    check_frames(frames)
    count, height, width = frames.shape[:3]
    if height % 2 or width % 2 or not height or not width:
        raise ShapeError(
            f"frames of {width}x{height} cannot be stored as 4:2:0 video;"
            " width and height must be even and positive."
        )
    out = np.empty((count, height * 3 // 2, width), np.uint8)
    not_numbers = 0
    for frame, packed in zip(frames, out, strict=True):
        rgb, bad = unit_float(frame)
        not_numbers += bad
        # planes first: strided access once instead of in each of the nine products
        planes = list(np.ascontiguousarray(np.moveaxis(rgb, -1, 0)))
        packed[:height] = _limited(_weigh(planes, LUMA), 219, 16)
        chroma = packed[height:].reshape(2, height // 2, width // 2)
        halved = [_average_2x2(plane) for plane in planes]
        chroma[0] = _limited(_weigh(halved, BLUE_DIFFERENCE), 224, 128)
        chroma[1] = _limited(_weigh(halved, RED_DIFFERENCE), 224, 128)
    return out, not_numbers


def cropped(frames: Array, height: int, width: int, top: int = 0, left: int = 0) -> Array:
    """A part of frames in any `FrameForm`, the upper left one unless said otherwise; sides and
    corner are even where colours are shared.
    """
    if frames.ndim == 4:
        return frames[:, top : top + height, left : left + width]
    count, rows, columns = frames.shape
    down = 1 if frames.dtype == np.uint16 else 2  # rows that share a colour
    whole = rows // 2 if down == 1 else rows * 2 // 3
    if (whole, columns) == (height, width):
        return frames
    luma = frames[:, top : top + height, left : left + width].reshape(count, -1)
    chroma = frames[:, whole:].reshape(count, 2, whole // down, columns // 2)
    top, left = top // down, left // 2
    shared = chroma[:, :, top : top + height // down, left : left + width // 2].reshape(count, -1)
    packed: Array = np.concatenate([luma, shared], axis=1)
    return packed.reshape(count, -1, width)


def rgb_to_yuv422p10(frame: Frames) -> tuple[tuple[U16, U16, U16], int]:
    """Convert a frame to limited-range BT.709 4:2:2 of 10 bits, rounded; pairs of columns share
    their mean colour.

    Args:
        frame: `[H, W, 3]`, float in [0, 1] (clamped; NaN is black) or uint8; W even.

    Returns:
        Y `[H, W]`, U and V `[H, W / 2]` uint16, and the NaN count.
    """
    rgb, not_numbers = unit_float(frame)
    planes = list(np.ascontiguousarray(np.moveaxis(rgb, -1, 0)))
    halved = [(plane[:, 0::2] + plane[:, 1::2]) * np.float32(0.5) for plane in planes]
    weighed = (
        (_weigh(planes, LUMA), 876, 64),
        (_weigh(halved, BLUE_DIFFERENCE), 896, 512),
        (_weigh(halved, RED_DIFFERENCE), 896, 512),
    )
    y, u, v = (np.rint(p * np.float32(s) + np.float32(o)).astype(np.uint16) for p, s, o in weighed)
    return (y, u, v), not_numbers


def pack_yuv422p10(frames: Frames) -> tuple[U16, int]:
    """Frames `[f, H, W, 3]` as `rgb_to_yuv422p10` makes them, planes one after another: H rows of
    Y, then all of U, then all of V, `[f, 2 * H, W]`; and the NaN count.
    """
    count, height, width = frames.shape[:3]
    packed, not_numbers = np.empty((count, 2 * height, width), np.uint16), 0
    for frame, into in zip(frames, packed, strict=True):
        planes, bad = rgb_to_yuv422p10(frame)
        into.reshape(-1)[:] = np.concatenate([plane.reshape(-1) for plane in planes])
        not_numbers += bad
    return packed, not_numbers


def yuv422p10_planes(packed: U16) -> tuple[U16, U16, U16]:
    """Y, U and V of a frame `[2 * H, W]`."""
    height, width = packed.shape[0] // 2, packed.shape[1]
    blue, red = packed[height:].reshape(2, height, width // 2)
    return packed[:height], blue, red


def _weigh(planes: Sequence[F32], weights: tuple[np.float32, ...]) -> F32:
    red, green, blue = planes
    total = red * weights[0]
    total += green * weights[1]
    total += blue * weights[2]
    return total


def _average_2x2(plane: F32) -> F32:
    total = plane[0::2, 0::2] + plane[0::2, 1::2]
    total += plane[1::2, 0::2]
    total += plane[1::2, 1::2]
    total *= np.float32(0.25)
    return total


def _limited(plane: F32, scale: int, offset: int) -> U8:
    plane *= np.float32(scale)
    plane += np.float32(offset)
    return plane.astype(np.uint8)  # within 16..240 by construction: truncation only
