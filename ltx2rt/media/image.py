"""Stills for conditioning: decode, H.264 round trip, resize, crop (spec/conditioning.md §3.1)."""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

from ltx2rt.engine import F32, U8, Array
from ltx2rt.errors import MediaError, OptionError, ShapeError
from ltx2rt.media import pyav as av
from ltx2rt.media.x264 import x264_options

Pixels = U8  # [H, W, 3]

MAX_PIXELS = 89_478_485  # Pillow's own warning level: a quarter GiB of RGB
_EXIF_ORIENTATION = 0x0112
_ROTATIONS = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_270,  # counter-clockwise
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders raise on damaged files, besides OSError.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def load_image(path: str | Path) -> Pixels:
    """Decode a still to 8-bit sRGB.

    EXIF orientations 3, 6 and 8 are applied (mirrored ones are ignored, as upstream does), an
    embedded colour profile is converted to sRGB (a warning and plain RGB if that fails), alpha is
    dropped without compositing, 16-bit grey keeps its upper 8 bits.

    Returns:
        `[H, W, 3]` uint8.

    Raises:
        MediaError: missing, not an image, truncated, or more than `MAX_PIXELS` pixels.
    """
    path = Path(path)
    if not path.is_file():
        what = "it is a directory" if path.is_dir() else "there is no such file"
        raise MediaError(f"cannot read the image '{path}': {what}.")
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise MediaError(
                    f"the image '{path}' has {image.width}x{image.height} pixels, more than the"
                    f" {MAX_PIXELS} allowed; scale it down first."
                )
            image.load()
            return _to_srgb(image, path)
    except Image.DecompressionBombError as error:
        raise MediaError(
            f"the image '{path}' has more than twice the {MAX_PIXELS} pixels allowed;"
            " scale it down first."
        ) from error
    except UnidentifiedImageError as error:
        raise MediaError(
            f"'{path}' is not an image that can be read; use PNG, JPEG, WebP or TIFF."
        ) from error
    except _DAMAGED as error:
        raise MediaError(
            f"the image '{path}' is damaged or truncated ({error}); save it again."
        ) from error


def _to_srgb(image: Image.Image, path: Path) -> Pixels:
    rotation = _ROTATIONS.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    profile = image.info.get("icc_profile")
    if rotation is not None:
        image = image.transpose(rotation)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise MediaError(f"the image '{path}' holds floating point pixels; save it with 8 bits.")
    elif image.mode == "RGBA":
        image = image.convert("RGB")
    elif image.mode == "LA":
        image = image.convert("L")
    if profile:
        image = _apply_profile(image, profile, path)
    return np.array(image.convert("RGB"))


def _apply_profile(image: Image.Image, profile: bytes, path: Path) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        warnings.warn(
            f"the colour profile of '{path}' cannot be used ({error}); read as sRGB.", stacklevel=4
        )
        return image
    return image if converted is None else converted


def crf_roundtrip(image: Pixels, crf: int | None) -> Pixels:
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


def image_to_vae_input(path: str | Path, height: int, width: int, crf: int | None) -> F32:
    """Read a still and bring it to what the video VAE encoder takes.

    Args:
        path: the image file.
        height, width: pixels of the stage.
        crf: of the H.264 round trip; 0 for none.

    Returns:
        `[1, 3, 1, height, width]` float32 in [-1, 1].

    Raises:
        MediaError: see `load_image`.
        OptionError: see `crf_roundtrip`.
    """
    pixels = crf_roundtrip(load_image(path), crf)
    return to_vae_input(resize_and_crop(pixels[None], height, width))
