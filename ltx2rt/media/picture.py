"""A decoded video frame as it is meant to be seen: upright, in 8-bit RGB of ordinary range."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ltx2rt.engine import U8, Array
from ltx2rt.errors import MediaError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

#: H.273 transfer characteristics with more range than a display of ordinary range has
HDR_TRANSFERS = {16: "PQ (smpte2084)", 18: "HLG (arib-std-b67)"}
_BT709 = 1


def picture_remarks(frame: VideoFrame, stream: VideoStream) -> Iterator[str]:
    """What there is to say about how a frame is read, as the end of a sentence about its file."""
    if frame.color_trc in HDR_TRANSFERS:
        yield (
            f"is HDR video, {HDR_TRANSFERS[frame.color_trc]}: it is converted to BT.709, in which "
            "what is brighter than reference white is clipped"
        )
    if frame.interlaced_frame:
        yield (
            "is interlaced: its frames are read with both fields in one; deinterlace it before "
            "where that shows"
        )
    aspect = stream.sample_aspect_ratio
    if aspect and aspect != 1:
        yield (
            f"has pixels that are not square ({aspect.numerator}:{aspect.denominator}): they are "
            "read as square; scale it before"
        )


def shown_size(frame: VideoFrame, path: str | Path) -> tuple[int, int]:
    """Width and height of a frame as it is shown."""
    transposed, _, _ = _orientation(frame, path)
    return (frame.height, frame.width) if transposed else (frame.width, frame.height)


def upright_rgb(frames: Iterable[VideoFrame], path: str | Path) -> Iterator[U8]:
    """Frames as they are shown, `[H, W, 3]` uint8, converted by libav as their colour tags say.

    Raises:
        MediaError: they are turned by something else than quarters.
    """
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()  # one for all: the tables of an HDR transfer take seconds
    for frame in frames:
        transposed, mirrored, flipped = _orientation(frame, path)
        if frame.color_trc in HDR_TRANSFERS:
            frame = reformatter.reformat(
                frame, format="rgb24", dst_color_trc=_BT709, dst_color_primaries=_BT709
            )
        pixels: Array = frame.to_ndarray(format="rgb24")
        if transposed:
            pixels = pixels.swapaxes(0, 1)
        if mirrored:
            pixels = pixels[:, ::-1]
        if flipped:
            pixels = pixels[::-1]
        yield np.ascontiguousarray(pixels, np.uint8)


def _orientation(frame: VideoFrame, path: str | Path) -> tuple[bool, bool, bool]:
    """Whether rows and columns change places, then left and right, then top and bottom."""
    matrix = _display_matrix(frame)
    if matrix is None:
        return False, False, False
    # a point (x, y) of the stored frame is shown at (a x + c y, b x + d y)
    (a, b), (c, d) = matrix
    straight, turned = min(abs(a), abs(d)), min(abs(b), abs(c))
    if min(max(abs(a), abs(d)), max(abs(b), abs(c))) > 0.01 * max(straight, turned):
        raise MediaError(
            f"the frames of '{path}' are turned by something else than 90, 180 or 270 degrees; "
            "write it upright first."
        )
    if turned > straight:
        return True, bool(c < 0), bool(b < 0)
    return False, bool(a < 0), bool(d < 0)


def _display_matrix(frame: VideoFrame) -> NDArray[np.int32] | None:
    """The upper left of the display matrix, 16.16 fixed point, or None."""
    held: Any = frame.side_data  # typed as the one kind that PyAV decodes itself
    for data in (held[i] for i in range(len(held))):
        if data.type.name == "DISPLAYMATRIX":
            return np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2]
    return None
