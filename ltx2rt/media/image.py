"""Pixels for conditioning: H.264 round trip, resize, crop (spec/conditioning.md §3.1)."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltx2rt.engine import F32, U8, Array
from ltx2rt.errors import MediaError, OptionError, ShapeError
from ltx2rt.media import pyav as av
from ltx2rt.media.still_reader import load_image
from ltx2rt.media.x264 import x264_options


def crf_roundtrip(image: U8, crf: int | None) -> U8:
    """Give a still the compression marks of video by an H.264 round trip in memory.

    Args:
        image: `[H, W, 3]` uint8.
        crf: x264 quality 0 to 51; 0 leaves the image untouched.

    Returns:
        uint8; odd sides lose their last row or column. An image with a side below 2 is untouched.

    Raises:
        OptionError: the CRF is unresolved (None) or out of range.
        MediaError: x264 refuses the size.
    """
    if crf is None or not 0 <= crf <= 51:
        raise OptionError(f"crf={crf} of a conditioning image is not in 0 to 51.")
    height, width = (side // 2 * 2 for side in image.shape[:2])
    if crf == 0 or not height or not width:
        return image
    memory = io.BytesIO()
    try:
        with av.open(memory, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=1, options=x264_options(crf))
            stream.codec_context.width, stream.codec_context.height = width, height
            stream.codec_context.pix_fmt = "yuv420p"
            cropped = np.ascontiguousarray(image[:height, :width])
            frame = av.VideoFrame.from_ndarray(cropped, format="rgb24").reformat(format="yuv420p")
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        memory.seek(0)
        with av.open(memory, "r") as container:
            decoded = next(container.decode(video=0)).to_ndarray(format="rgb24")
    except (av.FFmpegError, StopIteration) as error:
        raise MediaError(
            f"an image of {width}x{height} pixels cannot be compressed with H.264 ({error});"
            " scale it down or use crf=0."
        ) from error
    return decoded.astype(np.uint8, copy=False)


def _taps(
    source: int, target: int, start: int, stop: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], F32]:
    """Indices and weight of the two neighbours of output positions start..stop, in float32."""
    # The scale is rounded to float32, then product and difference are rounded once: torch's
    # kernel is compiled to a fused multiply-add.
    scale = np.float64(np.float32(source) / np.float32(target))
    exact = scale * (np.arange(start, stop) + 0.5) - 0.5
    centre = np.maximum(exact.astype(np.float32), np.float32(0))
    low = np.minimum(centre.astype(np.int64), source - 1)
    high = np.minimum(low + 1, source - 1)
    weight = np.clip(centre - low.astype(np.float32), np.float32(0), np.float32(1))
    return low, high, weight


def _interpolate(frames: F32, size: tuple[int, int], window: tuple[int, int, int, int]) -> F32:
    """Bilinear resize to `size`, of which only rows top:bottom and columns left:right are made."""
    top, bottom, left, right = window
    low, high, weight = _taps(frames.shape[2], size[1], left, right)
    weight = weight[:, None]
    one = np.float32(1)
    wide = frames[:, :, low] * (one - weight) + frames[:, :, high] * weight
    low, high, weight = _taps(frames.shape[1], size[0], top, bottom)
    weight = weight[:, None, None]
    result: F32 = wide[:, low] * (one - weight) + wide[:, high] * weight
    return result


def resize_and_crop(frames: Array, height: int, width: int) -> F32:
    """Scale so that the target is covered, then cut out its centre.

    Bilinear, align_corners=False, no antialias, in float32: the same source positions as
    `torch.nn.functional.interpolate` with a size.

    Args:
        frames: `[f, h, w, 3]`, any value range.
        height, width: of the result.

    Returns:
        `[f, height, width, 3]` float32, value range of the input.

    Raises:
        ShapeError: not frames, or an empty side.
    """
    values = _checked(frames, height, width)
    source_height, source_width = values.shape[1:3]
    scale = max(height / source_height, width / source_width)
    full = math.ceil(source_height * scale), math.ceil(source_width * scale)
    top, left = (full[0] - height) // 2, (full[1] - width) // 2
    return _interpolate(values, full, (top, top + height, left, left + width))


def fill(frames: Array, height: int, width: int, shown: tuple[int, int]) -> F32:
    """Frames for a picture of which only the top left part ends up in the clip: that part is
    covered by them (`resize_and_crop`), the rest is its reflection.

    Args:
        frames: `[f, h, w, 3]`, any value range.
        height, width: of the result.
        shown: height and width of the part that is kept.

    Returns:
        `[f, height, width, 3]` float32, value range of the input.

    Raises:
        ShapeError: not frames, or an empty side.
    """
    return resize_and_pad(resize_and_crop(frames, *shown), height, width)


def resize_and_pad(frames: Array, height: int, width: int) -> F32:
    """Fit frames inside the target and fill the bottom and right by reflection.

    Frames that already fit are not scaled. An axis whose padding is not smaller than its content
    repeats the edge instead (spec/media_io.md §6).

    Args:
        frames: `[f, h, w, 3]`, any value range.
        height, width: of the result.

    Returns:
        `[f, height, width, 3]` float32, value range of the input.

    Raises:
        ShapeError: not frames, or an empty side.
    """
    values = _checked(frames, height, width)
    source_height, source_width = values.shape[1:3]
    if source_height > height or source_width > width:
        scale = min(height / source_height, width / source_width)
        size = max(1, round(source_height * scale)), max(1, round(source_width * scale))
        values = _interpolate(values, size, (0, size[0], 0, size[1]))
    below, beside = height - values.shape[1], width - values.shape[2]
    reflect = below < values.shape[1] and beside < values.shape[2]
    padding = ((0, 0), (0, below), (0, beside), (0, 0))
    return np.pad(values, padding, mode="reflect" if reflect else "edge")


def _checked(frames: Array, height: int, width: int) -> F32:
    if frames.ndim != 4 or 0 in frames.shape[1:] or height < 1 or width < 1:
        raise ShapeError(
            f"frames of shape {list(frames.shape)} cannot be resized to {width}x{height};"
            " expected [frames, height, width, channels] and sides of at least one pixel."
        )
    return frames.astype(np.float32, copy=False)


def to_vae_input(frames: F32) -> F32:
    """`[f, H, W, 3]` in 0..255 to `[1, 3, f, H, W]` in [-1, 1], contiguous."""
    scaled = frames / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(np.moveaxis(scaled, -1, 0)[None])


def image_to_vae_input(
    path: str | Path,
    height: int,
    width: int,
    crf: int | None,
    shown: tuple[int, int] | None = None,
) -> F32:
    """Read a still and bring it to what the video VAE encoder takes.

    Args:
        path: the image file.
        height, width: pixels of the stage.
        crf: of the H.264 round trip; 0 for none.
        shown: height and width of the part that ends up in the clip, see `fill`; None: all.

    Returns:
        `[1, 3, 1, height, width]` float32 in [-1, 1].

    Raises:
        MediaError: see `load_image`.
        OptionError: see `crf_roundtrip`.
    """
    pixels = crf_roundtrip(load_image(path), crf)
    return to_vae_input(fill(pixels[None], height, width, shown or (height, width)))
