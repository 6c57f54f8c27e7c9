"""Stills to 8-bit sRGB, upright (spec/conditioning.md §3.1)."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from ltx2rt.engine import U8
from ltx2rt.errors import MediaError
from ltx2rt.file_kind import PICTURE, name_of

MAX_PIXELS = 89_478_485  # Pillow's own warning level: a quarter GiB of RGB
#: formats whose further frames are later ones, not other sizes or pages of a picture
_ANIMATIONS = ("GIF", "WEBP", "PNG")
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,  # counter-clockwise
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders raise on damaged files, besides OSError.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
#: everything that Pillow raises about a file
IMAGE_ERRORS = (*_DAMAGED, UnidentifiedImageError, Image.DecompressionBombError)


def opened_image(path: Path, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Open an image without decoding it; Pillow's warning about large ones is left to us.

    Raises:
        IMAGE_ERRORS: whatever Pillow raises, here and when it is decoded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path, formats=formats)


def load_image(path: str | Path) -> U8:
    """Decode a still to 8-bit sRGB.

    All EXIF orientations are applied (upstream ignores mirrored ones), an embedded colour profile
    is converted to sRGB (a warning and plain RGB if that fails), what is transparent is laid on
    white with a warning (upstream shows the colours that were hidden), 16-bit grey keeps its upper
    8 bits. Of an animation the first frame is taken, with a warning.

    Returns:
        `[H, W, 3]` uint8.

    Raises:
        MediaError: missing, not an image, truncated, more than `MAX_PIXELS` pixels, or pixels of 32
            bits.
    """
    path = Path(path)
    if not path.is_file():
        what = "it is a directory" if path.is_dir() else "there is no such file"
        raise MediaError(f"cannot read the image '{path}': {what}.")
    try:
        with opened_image(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise MediaError(
                    f"the image '{path}' has {image.width}x{image.height} pixels, more than the"
                    f" {MAX_PIXELS} allowed; scale it down first."
                )
            count = getattr(image, "n_frames", 1) if image.format in _ANIMATIONS else 1
            if count > 1:
                warnings.warn(
                    f"'{path}' is an animation of {count} frames, of which the first is taken; a "
                    "video (.mp4) shows them all.",
                    stacklevel=2,
                )
            image.load()
            return _to_srgb(image, path)
    except Image.DecompressionBombError as error:
        raise MediaError(
            f"the image '{path}' has more than twice the {MAX_PIXELS} pixels allowed;"
            " scale it down first."
        ) from error
    except UnidentifiedImageError as error:
        other = name_of(path, besides=[PICTURE])
        found = f"is {other}, not an image" if other else "is not an image"
        raise MediaError(
            f"'{path}' {found} that can be read; use PNG, JPEG, WebP or TIFF."
        ) from error
    except _DAMAGED as error:
        raise MediaError(
            f"the image '{path}' is damaged or truncated ({error}); save it again."
        ) from error


def _to_srgb(image: Image.Image, path: Path) -> U8:
    upright = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    profile = image.info.get("icc_profile")
    if upright is not None:
        image = image.transpose(upright)
    alpha = None
    if image.mode.startswith("I"):
        image = _from_grey(image, path)
    elif image.mode == "F":
        raise MediaError(f"the image '{path}' holds floating point pixels; save it with 8 bits.")
    elif image.has_transparency_data:
        whole = image.convert("RGBA")
        alpha = whole.getchannel("A")
        image = image.convert("L") if image.mode.startswith("L") else whole.convert("RGB")
    elif image.mode == "P":
        image = image.convert("RGB")
    if profile:
        image = _apply_profile(image, profile, path)
    image = image.convert("RGB")
    if alpha is not None and np.asarray(alpha).min() < 255:
        warnings.warn(f"the transparent parts of '{path}' are shown white.", stacklevel=3)
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    return np.array(image)


def _from_grey(image: Image.Image, path: Path) -> Image.Image:
    """The upper 8 bits of 16-bit grey; Pillow has the same mode for more bits."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise MediaError(f"the image '{path}' holds 32-bit grey; save it with 8 or 16 bits.")
    return Image.fromarray((values >> 8).astype(np.uint8))


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
