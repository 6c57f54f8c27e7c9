"""OpenEXR stills and frame folders, linear light as float32 (spec/media_io.md §1 and §6).

The OpenEXR package is an extra, imported when a file is first read or written.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ltx2rt.engine import F32
from ltx2rt.errors import MediaError, UnsupportedError
from ltx2rt.install import install_hint
from ltx2rt.media.color import check_frames
from ltx2rt.media.files import check_output_path, writing
from ltx2rt.media.still_reader import MAX_PIXELS
from ltx2rt.partial import Partial

HALF_MAX = np.float32(65504)
#: what OpenEXR's binding raises on damaged files
_DAMAGED = (RuntimeError, ValueError, TypeError, KeyError, OSError)


def openexr() -> Any:
    """The OpenEXR package.

    Raises:
        UnsupportedError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module("OpenEXR")
    except ImportError as error:
        raise UnsupportedError(
            "EXR files need the package OpenEXR, which is part of the exr extra: "
            f"{install_hint('exr')}"
        ) from error


def exr_folder(path: str | Path) -> Path:
    """Where the EXR frames of a video file go."""
    path = Path(path)
    return path.with_name(f"{path.stem}_exr")


def is_exr(path: Path) -> bool:
    """Whether a path is an EXR still, or a folder that directly holds some."""
    if path.is_dir():
        return any(path.glob("*.exr"))
    return path.suffix.lower() == ".exr"


def exr_files(folder: Path) -> list[Path]:
    """The frames of a folder, by file name.

    Raises:
        MediaError: it holds none.
    """
    files = sorted(folder.glob("*.exr"))
    if not files:
        raise MediaError(f"cannot read EXR frames from '{folder}': it holds no .exr files.")
    return files


def iterate_exr_frames(folder: Path, frame_cap: int | None = None) -> Iterator[F32]:
    """Frames of a folder one by one, `[H, W, 3]` float32, all of the first one's size.

    Raises:
        MediaError: see `exr_files` and `read_exr`; or a frame has another size.
    """
    size: tuple[int, int] | None = None
    for path in exr_files(folder)[:frame_cap]:
        frame = read_exr(path)
        size = _same_size(path, frame.shape[0], frame.shape[1], size)
        yield frame


def exr_folder_shape(folder: Path) -> tuple[int, int, int]:
    """Number, height and width of the frames of a folder, from their headers.

    Raises:
        MediaError: see `exr_files` and `exr_size`; or a frame has another size.
    """
    size: tuple[int, int] | None = None
    files = exr_files(folder)
    for path in files:
        size = _same_size(path, *exr_size(path), size)
    assert size is not None
    return len(files), *size


def _same_size(
    path: Path, height: int, width: int, before: tuple[int, int] | None
) -> tuple[int, int]:
    if (height, width) != (before or (height, width)):
        raise MediaError(
            f"'{path}' has {width}x{height} pixels, the frames before it have another size; all "
            "frames of a folder must be equally large."
        )
    return height, width


def exr_size(path: Path) -> tuple[int, int]:
    """Height and width of a file's data window, from its header.

    Raises:
        MediaError: missing, not EXR, or more than `MAX_PIXELS` pixels.
    """
    if not path.is_file():
        raise MediaError(f"cannot read the EXR file '{path}': there is no such file.")
    try:
        with openexr().File(str(path), header_only=True) as file:
            (left, top), (right, bottom) = (
                [int(v) for v in corner] for corner in file.header()["dataWindow"]
            )
    except _DAMAGED as error:
        raise MediaError(
            f"cannot read the EXR file '{path}': it is damaged, truncated or not EXR ({error})."
        ) from error
    height, width = bottom - top + 1, right - left + 1
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise MediaError(
            f"the EXR file '{path}' has {width}x{height} pixels; 1 to {MAX_PIXELS} are allowed."
        )
    return height, width


def read_exr(path: Path) -> F32:
    """Read a still.

    Returns:
        `[H, W, 3]` float32: channels R, G and B, or a single channel three times; others are left
        out. NaN becomes 0, infinity the largest half float, and both warn.

    Raises:
        MediaError: see `exr_size`; or the channels are not RGB.
    """
    size = exr_size(path)
    try:
        with openexr().File(str(path), separate_channels=True) as file:
            channels = {name: np.asarray(c.pixels) for name, c in file.channels().items()}
    except _DAMAGED as error:
        raise MediaError(
            f"cannot read the EXR file '{path}': it is damaged or truncated ({error})."
        ) from error
    names = list("RGB") if {"R", "G", "B"} <= channels.keys() else list(channels)[:1] * 3
    single = len(channels) == 1 or names == list("RGB")
    if not single or any(channels[name].shape != size for name in names):
        raise MediaError(
            f"the EXR file '{path}' has the channels {', '.join(channels) or 'none'}; R, G and B "
            "of full resolution are needed, or one alone."
        )
    frame = np.stack([channels[name] for name in names], axis=-1).astype(np.float32)
    if not np.isfinite(frame).all():
        warnings.warn(
            f"'{path}' holds values that are no finite numbers; read as 0 or {HALF_MAX:g}.",
            stacklevel=2,
        )
        frame = np.nan_to_num(frame, nan=0.0, posinf=float(HALF_MAX), neginf=-float(HALF_MAX))
    return frame


class ExrFolder:
    """Writes `frame_00000.exr`, ... : half float, ZIP, channels R, G and B.

    A context manager; the folder takes its name when the block ends without an exception, and
    nothing is left on any exception.

    Args:
        folder: a new or empty folder whose parent exists.
        attributes: of every file's header, e.g. `HdrFormat.exr_attributes`.

    Raises:
        MediaError: the folder cannot be written or is not empty.
        UnsupportedError: OpenEXR is not installed.
    """

    def __init__(self, folder: Path, attributes: Mapping[str, Any]) -> None:
        check_output_path(folder, "frames")
        self._exr = openexr()
        self.folder = folder
        self.num_frames = 0
        self._attributes = {
            "compression": self._exr.ZIP_COMPRESSION,
            "type": self._exr.scanlineimage,
            **attributes,
        }

    def __enter__(self) -> Self:
        with writing(self.folder):
            self._part = Partial(Path(os.path.realpath(self.folder)), folder=True)
        return self

    def write(self, frames: F32) -> None:
        """Append `[f, H, W, 3]`; values beyond half float are clamped, NaN is written as 0.

        Raises:
            ShapeError: not frames.
            MediaError: the disk is full, or the folder cannot be written.
        """
        check_frames(frames)
        for frame in frames:
            finite = np.nan_to_num(frame.astype(np.float32), nan=0.0)
            half = np.clip(finite, -HALF_MAX, HALF_MAX).astype(np.float16)
            path = self._part.path / f"frame_{self.num_frames:05d}.exr"
            channels = {name: np.ascontiguousarray(half[..., i]) for i, name in enumerate("RGB")}
            try:
                with writing(self.folder), self._exr.File(self._attributes, channels) as file:
                    file.write(str(path))
            except RuntimeError as error:
                raise MediaError(f"cannot write '{self.folder}': {error}.") from error
            self.num_frames += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                with writing(self.folder):
                    self._part.commit()
        finally:
            self._part.discard()
