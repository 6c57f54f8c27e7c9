"""Latent grids to token sequences and back, and the token positions RoPE reads.

Positions are half-open intervals `[start, end)` per token and axis: seconds and pixels for video,
seconds for audio. They are float32, computed in upstream's order of operations
(spec/conditioning.md §1.3, §1.4): a position in another last bit moves RoPE angles by 1e-3.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ltx2rt.engine import F32, Array
from ltx2rt.errors import ShapeError
from ltx2rt.latents.shapes import (
    AUDIO_GRID,
    VIDEO_SCALE_FACTORS,
    AudioGrid,
    AudioLatentShape,
    VideoLatentShape,
    VideoScaleFactors,
)


def patchify_video(latent: Array, patch_size: int = 1) -> Array:
    """`[B, C, F, H, W]` to `[B, T, C * p * p]`; tokens ordered frame, row, column.

    Raises:
        ShapeError: not five dimensions, or height or width is no multiple of `patch_size`.
    """
    shape = VideoLatentShape.from_sizes(latent.shape)
    rows, columns = _patch_grid(shape, patch_size)
    grid = latent.reshape(
        shape.batch, shape.channels, shape.num_frames, rows, patch_size, columns, patch_size
    )
    tokens = grid.transpose(0, 2, 3, 5, 1, 4, 6)
    return np.ascontiguousarray(tokens.reshape(shape.batch, shape.num_frames * rows * columns, -1))


def unpatchify_video(tokens: Array, shape: VideoLatentShape, patch_size: int = 1) -> Array:
    """`[B, T, C * p * p]` to `[B, C, F, H, W]` of `shape`; inverse of `patchify_video`."""
    rows, columns = _patch_grid(shape, patch_size)
    want = (
        shape.batch,
        shape.num_frames * rows * columns,
        shape.channels * patch_size * patch_size,
    )
    _check_tokens("video", tokens, want)
    grid = tokens.reshape(
        shape.batch, shape.num_frames, rows, columns, shape.channels, patch_size, patch_size
    )
    return np.ascontiguousarray(grid.transpose(0, 4, 1, 2, 5, 3, 6).reshape(shape.sizes))


def patchify_audio(latent: Array) -> Array:
    """`[B, C, T, M]` to `[B, T, C * M]`, channel-major features."""
    shape = AudioLatentShape.from_sizes(latent.shape)
    tokens = latent.transpose(0, 2, 1, 3)
    return np.ascontiguousarray(tokens.reshape(shape.batch, shape.num_frames, shape.token_features))


def unpatchify_audio(tokens: Array, shape: AudioLatentShape) -> Array:
    """`[B, T, C * M]` to `[B, C, T, M]` of `shape`; inverse of `patchify_audio`."""
    _check_tokens("audio", tokens, (shape.batch, shape.num_frames, shape.token_features))
    grid = tokens.reshape(shape.batch, shape.num_frames, shape.channels, shape.mel_bins)
    return np.ascontiguousarray(grid.transpose(0, 2, 1, 3))


def video_token_bounds(shape: VideoLatentShape, patch_size: int = 1) -> NDArray[np.int32]:
    """`[B, 3, T, 2]` bounds of every token in latent cells (frame, row, column)."""
    rows, columns = _patch_grid(shape, patch_size)
    starts = np.stack(
        np.meshgrid(
            np.arange(shape.num_frames, dtype=np.int32),
            np.arange(rows, dtype=np.int32) * patch_size,
            np.arange(columns, dtype=np.int32) * patch_size,
            indexing="ij",
        )
    ).reshape(3, -1)
    size = np.array([1, patch_size, patch_size], np.int32).reshape(3, 1)
    bounds = np.stack([starts, starts + size], axis=-1)
    return np.repeat(bounds[None], shape.batch, axis=0)


def video_pixel_bounds(
    bounds: NDArray[np.int32],
    scale_factors: VideoScaleFactors = VIDEO_SCALE_FACTORS,
    *,
    causal_fix: bool = True,
) -> F32:
    """Latent-cell bounds to pixel frames, rows and columns, `[B, 3, T, 2]` float32.

    The VAE is causal: its first latent frame covers one pixel frame. `causal_fix` shifts the time
    bounds accordingly: frame 0 covers `[0, 1)`, frame k `[8k-7, 8k+1)`.
    """
    pixels = bounds * np.array(scale_factors, np.int32).reshape(1, 3, 1, 1)
    if causal_fix:
        pixels[:, 0] = np.maximum(pixels[:, 0] + (1 - scale_factors.time), 0)
    return pixels.astype(np.float32)


def video_positions(
    shape: VideoLatentShape,
    frame_rate: float,
    scale_factors: VideoScaleFactors = VIDEO_SCALE_FACTORS,
    *,
    causal_fix: bool = True,
    patch_size: int = 1,
) -> F32:
    """`[B, 3, T, 2]` float32: time in seconds, row and column in pixels."""
    bounds = video_token_bounds(shape, patch_size)
    positions = video_pixel_bounds(bounds, scale_factors, causal_fix=causal_fix)
    positions[:, 0] /= np.float32(frame_rate)
    return positions


def audio_positions(
    shape: AudioLatentShape,
    grid: AudioGrid = AUDIO_GRID,
    *,
    causal: bool = True,
    shift: int = 0,
) -> F32:
    """`[B, 1, T, 2]` float32 seconds; `shift` counts latent frames before the first one."""
    frames = np.arange(shift, shift + shape.num_frames + 1, dtype=np.float32)
    mel = frames * np.float32(grid.downsample)
    if causal:
        mel = np.maximum(mel + np.float32(1 - grid.downsample), np.float32(0))
    seconds = mel * np.float32(grid.hop_length) / np.float32(grid.sample_rate)
    bounds = np.stack([seconds[:-1], seconds[1:]], axis=-1)[None, None]
    return np.repeat(bounds, shape.batch, axis=0)


def _patch_grid(shape: VideoLatentShape, patch_size: int) -> tuple[int, int]:
    if shape.height % patch_size or shape.width % patch_size:
        raise ShapeError(
            f"A latent of {shape.height}x{shape.width} cells does not divide into patches of "
            f"{patch_size}x{patch_size}."
        )
    return shape.height // patch_size, shape.width // patch_size


def _check_tokens(modality: str, tokens: Array, want: tuple[int, ...]) -> None:
    if tokens.shape != want:
        raise ShapeError(f"{modality} tokens have shape {tokens.shape}, expected {want}.")
