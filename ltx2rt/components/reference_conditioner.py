"""Reference videos to conditioning items (spec/conditioning.md §4.1 and §4.3)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltx2rt.components.video_encoder import VideoEncoder
from ltx2rt.engine import F32
from ltx2rt.errors import Field, MediaError, OptionError, Problem, ShapeError
from ltx2rt.field_types import settle_types
from ltx2rt.latents.conditioning import (
    ReferenceVideo,
    check_mask_frames,
    mask_latent,
    subsample_indices,
)
from ltx2rt.latents.shapes import (
    VIDEO_SCALE_FACTORS,
    VideoLatentShape,
    VideoPixelShape,
)
from ltx2rt.latents.tiling import TilingConfig
from ltx2rt.media.exr import exr_files, exr_size, iterate_exr_frames
from ltx2rt.media.files import is_still
from ltx2rt.media.hdr import HdrFormat, codes_to_vae_input
from ltx2rt.media.image import fill, resize_and_pad, to_vae_input
from ltx2rt.media.reader import count_frames, iterate_video_frames, probe_video
from ltx2rt.media.still_reader import load_image


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceFile:
    """A video that guides the whole clip.

    Attributes:
        path: the video file, or with an HDR format a folder of EXR frames.
        strength: 1 shows it clean, 0 as noise.
    """

    path: Path
    strength: float = 1.0

    def __post_init__(self) -> None:
        settle_types(self)
        if not 0.0 <= self.strength <= 1.0:
            raise OptionError(
                Problem(
                    Field("strength"),
                    f"={self.strength} of the reference {self.path} is not in [0, 1].",
                )
            )


def reference_problems(paths: Iterable[Path]) -> list[str]:
    """Videos that cannot be read."""
    problems: list[str] = []
    for path in paths:
        try:
            if path.is_dir():
                exr_size(exr_files(path)[0])
            else:
                probe_video(path)
        except MediaError as error:
            problems += error.problems
    return problems


def check_mask(path: Path) -> None:
    """Refuse a mask that is no picture and no video.

    Raises:
        MediaError: it cannot be read.
    """
    if is_still(path):
        load_image(path)
    else:
        probe_video(path)


def mask_problems(
    mask: Path,
    references: Iterable[ReferenceFile],
    num_frames: int,
    frame_rate: float,
    *,
    temporal_scale: int = 1,
    latent_step: int = VIDEO_SCALE_FACTORS.time,
) -> list[str]:
    """References that an attention mask does not fit in time.

    Args:
        mask: a video or image.
        references: files that can be read.
        num_frames: of the clip; what is longer is cut.
        frame_rate: of the clip; videos of another are shown at this one.
        temporal_scale: as of `reference_item`.
        latent_step: pixel frames of a latent frame.

    Raises:
        MediaError: the mask cannot be read.
    """
    mask_frames = 1 if is_still(mask) else min(count_frames(mask, frame_rate), num_frames)
    problems = []
    for path in (reference.path for reference in references):
        frames = len(exr_files(path)) if path.is_dir() else count_frames(path, frame_rate)
        kept = len(subsample_indices(min(frames, num_frames), temporal_scale))
        try:
            check_mask_frames(mask_frames, (kept - 1) // latent_step + 1)
        except ShapeError as error:
            problems += [f"'{mask}' for '{path}': {problem}" for problem in error.problems]
    return problems


def reference_item(
    reference: ReferenceFile,
    encoder: VideoEncoder,
    pixels: VideoPixelShape,
    shown: tuple[int, int],
    *,
    downscale: int = 1,
    temporal_scale: int = 1,
    tiling: TilingConfig | None = None,
    attention_strength: float = 1.0,
    attention_mask: F32 | None = None,
    hdr: HdrFormat | None = None,
) -> ReferenceVideo:
    """Encode a reference video for one stage.

    Args:
        reference: the file; one shorter than the clip guides its beginning.
        encoder: of the bundle.
        pixels: the stage's clip.
        shown: height and width of the part of it that ends up in the clip, see `fill`.
        downscale, temporal_scale: how much smaller and slower than the clip the LoRA wants the
            reference (`lora_keys.reference_factors`).
        tiling: of the encoder; None encodes in one piece.
        attention_strength: how much reference and clip attend to each other.
        attention_mask: `[1, 1, n, H, W]` float32 in [0, 1], where they do (`load_mask`); its frames
            are those of the reference before it is encoded.
        hdr: what EXR files hold.

    Raises:
        MediaError: the file cannot be read.
        ShapeError: a size does not divide, or the mask's frames do not fit the reference's.
    """
    video = load_reference(
        reference.path,
        pixels,
        shown=shown,
        downscale=downscale,
        temporal_scale=temporal_scale,
        hdr=hdr,
    )
    latent = encoder.encode(video, tiling)
    weights: float | F32 | None = None if attention_strength == 1 else attention_strength
    if attention_mask is not None:
        shape = VideoLatentShape.from_sizes(latent.shape)
        weights = mask_latent(attention_mask, shape) * np.float32(attention_strength)
    return ReferenceVideo(
        latent=latent,
        strength=reference.strength,
        downscale=downscale,
        temporal_scale=temporal_scale,
        attention_strength=weights,
    )


def load_reference(
    path: Path,
    pixels: VideoPixelShape,
    *,
    shown: tuple[int, int] | None = None,
    downscale: int = 1,
    temporal_scale: int = 1,
    hdr: HdrFormat | None = None,
) -> F32:
    """The first frames of a video at the size of a stage over `downscale` and at the clip's frame
    rate: centre-cropped over the part that is `shown` (`fill`), or without one fitted and filled by
    reflection, as EXR frames always are (they have no rate and are taken one by one).

    Returns:
        `[1, 3, n, H, W]` float32 in [-1, 1]; n is at most the clip's frames, and with a
        `temporal_scale` the first frame and every so many-th of the others.

    Raises:
        MediaError, ShapeError: see `reference_item`.
    """
    if pixels.height % downscale or pixels.width % downscale:
        raise ShapeError(
            f"a reference {downscale} times smaller than {pixels.width}x{pixels.height} pixels has "
            f"no whole size; use a height and width that {downscale} divides."
        )
    kept = set(subsample_indices(pixels.num_frames, temporal_scale))
    height, width = pixels.height // downscale, pixels.width // downscale
    if hdr is not None and path.is_dir():
        light = (f for i, f in enumerate(iterate_exr_frames(path, max(kept) + 1)) if i in kept)
        fitted = [resize_and_pad(frame[None], height, width) for frame in light]
        return codes_to_vae_input(hdr.encode(np.concatenate(fitted)))
    read = iterate_video_frames(path, pixels.num_frames, pixels.frame_rate)
    frames = (frame for index, frame in enumerate(read) if index in kept)
    if shown is not None:
        shown = math.ceil(shown[0] / downscale), math.ceil(shown[1] / downscale)
    return _fitted(frames, height, width, shown)


def load_mask(path: Path, pixels: VideoPixelShape, shown: tuple[int, int]) -> F32:
    """A mask at the size and frame rate of a stage: `[1, 1, n, H, W]` float32 in [0, 1], mean over
    RGB; `shown` as of `fill`. A picture, read as any (`load_image`), is one frame.
    """
    if is_still(path):
        frames = iter([load_image(path)])
    else:
        frames = iterate_video_frames(path, pixels.num_frames, pixels.frame_rate)
    video = _fitted(frames, pixels.height, pixels.width, shown)
    grey: F32 = (video.mean(axis=1, keepdims=True) + np.float32(1)) / np.float32(2)
    return np.clip(grey, 0, 1)


def _fitted(
    frames: Iterator[NDArray[np.uint8]], height: int, width: int, shown: tuple[int, int] | None
) -> F32:
    """Frames fitted one by one, so that only the small ones are held."""
    small = [
        fill(frame[None], height, width, shown)
        if shown
        else resize_and_pad(frame[None], height, width)
        for frame in frames
    ]
    return to_vae_input(np.concatenate(small))
