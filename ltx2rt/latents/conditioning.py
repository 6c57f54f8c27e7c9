"""Conditioning items: what is fixed, pulled or shown to the model besides the text.

Each item is applied to a state, in list order, before noise is added: `item.apply(state)` returns
the new state (spec/conditioning.md §2). Encoded latents are `[B, C, F, H, W]`. A `strength` of 1
fixes a token, 0 leaves it free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ltx2rt.engine import F32, Array
from ltx2rt.errors import OptionError, ShapeError
from ltx2rt.latents.patchify import (
    audio_positions,
    patchify_audio,
    patchify_video,
    video_pixel_bounds,
    video_positions,
    video_token_bounds,
)
from ltx2rt.latents.shapes import AUDIO_GRID, AudioGrid, AudioLatentShape, VideoLatentShape
from ltx2rt.latents.state import (
    LatentState,
    append_tokens,
    attention_bias,
    drop_appended,
    freeze,
    grow_attention_mask,
    make_audio_state,
    make_video_state,
    slot_latents,
    target_latent,
)
from ltx2rt.weights.floats import cast

__all__ = [
    "ConditioningItem",
    "GeneratedKeyframes",
    "Keyframe",
    "LatentState",
    "ReferenceAudio",
    "ReferenceVideo",
    "ReplaceAudio",
    "Remade",
    "ReplaceLatent",
    "TemporalRegion",
    "append_tokens",
    "apply_items",
    "attention_bias",
    "drop_appended",
    "freeze",
    "grow_attention_mask",
    "keyframe_indices",
    "make_audio_state",
    "make_video_state",
    "mask_latent",
    "slot_latents",
    "subsample_indices",
    "target_latent",
]


_REFERENCE_AUDIO_GAP_S = 0.04


class ConditioningItem(Protocol):
    """Anything that turns a state into a conditioned one."""

    def apply(self, state: LatentState) -> LatentState: ...


def apply_items(state: LatentState, items: Iterable[ConditioningItem]) -> LatentState:
    """Apply items in order."""
    for item in items:
        state = item.apply(state)
    return state


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReplaceLatent:
    """Set the clean values of whole latent frames, from `latent_index` on (image at frame 0)."""

    latent: Array
    strength: float = 1.0
    latent_index: int = 0

    def apply(self, state: LatentState) -> LatentState:
        shape, frames = state.video_shape, self.latent.shape[2]
        want = (shape.batch, shape.channels, frames, shape.height, shape.width)
        if self.latent.shape != want:
            raise ShapeError(f"The encoded image is {self.latent.shape}, the target needs {want}.")
        if not 0 <= self.latent_index <= shape.num_frames - frames:
            raise ShapeError(
                f"{frames} latent frames at index {self.latent_index} do not fit a clip of "
                f"{shape.num_frames} latent frames."
            )
        start = self.latent_index * shape.tokens_per_frame
        where = slice(start, start + frames * shape.tokens_per_frame)
        clean, mask = state.clean.copy(), state.mask.copy()
        clean[:, where] = cast(patchify_video(self.latent), state.dtype)
        mask[:, where] = 1.0 - self.strength
        return replace(state, clean=clean, mask=mask)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReplaceAudio:
    """Fix steps of sound, from `first_step` on, to a latent `[B, C, T, M]`."""

    latent: Array
    first_step: int = 0

    def apply(self, state: LatentState) -> LatentState:
        tokens, stop = patchify_audio(self.latent), self.first_step + self.latent.shape[2]
        if not 0 <= self.first_step < stop <= state.target_count:
            raise ShapeError(
                f"{self.latent.shape[2]} steps of sound at step {self.first_step} do not fit a "
                f"clip of {state.target_count}."
            )
        clean, mask = state.clean.copy(), state.mask.copy()
        clean[:, self.first_step : stop] = cast(tokens, state.dtype)
        mask[:, self.first_step : stop] = 0
        return replace(state, clean=clean, mask=mask)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Keyframe:
    """Append an encoded image or clip as guidance at pixel frame `frame_index`."""

    latent: Array
    frame_index: int
    strength: float = 1.0
    attention_strength: float | F32 | None = None

    def apply(self, state: LatentState) -> LatentState:
        shape = VideoLatentShape.from_sizes(self.latent.shape)
        pixels = video_pixel_bounds(
            video_token_bounds(shape), state.scale_factors, causal_fix=self.frame_index == 0
        )
        pixels[:, 0] += np.float32(self.frame_index)
        if shape.num_frames == 1:
            pixels[:, 0, :, 1] = pixels[:, 0, :, 0] + np.float32(1)
        pixels[:, 0] /= np.float32(state.frame_rate)
        return append_tokens(
            state,
            clean=patchify_video(self.latent),
            mask_value=1.0 - self.strength,
            positions=pixels,
            attention_strength=self.attention_strength,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReferenceVideo:
    """Append an encoded reference clip (IC-LoRA).

    `downscale` and `temporal_scale` say how much smaller and slower than the target the reference
    was encoded; its positions are stretched back onto the target's.
    """

    latent: Array
    strength: float = 1.0
    downscale: int = 1
    temporal_scale: int = 1
    attention_strength: float | F32 | None = None

    def apply(self, state: LatentState) -> LatentState:
        shape = VideoLatentShape.from_sizes(self.latent.shape)
        positions = video_positions(
            shape, state.frame_rate / self.temporal_scale, state.scale_factors
        )
        if self.temporal_scale != 1:
            first_end = state.positions[:, 0, :1, 1:]
            shift = np.float32(self.temporal_scale - 1) * first_end
            positions[:, 0] = np.maximum(positions[:, 0] - shift, np.float32(0))
        if self.downscale != 1:
            positions[:, 1:] *= np.float32(self.downscale)
        return append_tokens(
            state,
            clean=patchify_video(self.latent),
            mask_value=1.0 - self.strength,
            positions=positions,
            attention_strength=self.attention_strength,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReferenceAudio:
    """Append reference audio tokens `[B, M, D]` with the caller's positions `[B, 1, M, 2]`."""

    tokens: Array
    positions: F32
    strength: float = 1.0
    attention_strength: float | F32 | None = None

    @classmethod
    def before_start(
        cls, latent: Array, strength: float = 1.0, grid: AudioGrid = AUDIO_GRID
    ) -> ReferenceAudio:
        """A latent `[B, C, T, M]` placed before the clip: it ends 0.04 s before time 0."""
        positions = audio_positions(AudioLatentShape.from_sizes(latent.shape), grid)
        positions = positions - positions.max() - np.float32(_REFERENCE_AUDIO_GAP_S)
        return cls(tokens=patchify_audio(latent), positions=positions, strength=strength)

    def apply(self, state: LatentState) -> LatentState:
        return append_tokens(
            state,
            clean=self.tokens,
            mask_value=1.0 - self.strength,
            positions=self.positions,
            attention_strength=self.attention_strength,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TemporalRegion:
    """Regenerate only tokens that touch the open window `(start_s, end_s)`; fix all others."""

    start_s: float
    end_s: float

    def apply(self, state: LatentState) -> LatentState:
        starts, ends = state.positions[:, 0, :, 0], state.positions[:, 0, :, 1]
        inside = (ends > np.float32(self.start_s)) & (starts < np.float32(self.end_s))
        return replace(state, mask=inside[..., None].astype(np.float32))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Remade:
    """Regenerate only tokens that touch one of the open windows `(start_s, end_s)` and, of a video,
    lie in `cells` `[B, F, H, W]` (above 0); fix all others.
    """

    windows: Sequence[tuple[float, float]]
    cells: F32 | None = None

    def apply(self, state: LatentState) -> LatentState:
        mask = np.zeros_like(state.mask)
        for start_s, end_s in self.windows:
            region = TemporalRegion(start_s=start_s, end_s=end_s)
            mask = np.maximum(mask, region.apply(state).mask)
        if self.cells is not None:
            mask *= self.cells.reshape(mask.shape) > 0
        return replace(state, mask=mask)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GeneratedKeyframes:
    """Append slots that are generated along with the clip, one per pixel frame index (LTX-2.5).

    `latents` `[B, C, K, H, W]` optionally seeds them. Read them back with `slot_latents`.
    """

    frame_indices: Sequence[int]
    latents: Array | None = None

    def apply(self, state: LatentState) -> LatentState:
        shape, indices = state.video_shape, list(self.frame_indices)
        limit = shape.pixel_frames(state.scale_factors)
        if not indices or sorted(set(indices)) != indices or indices[0] < 0 or indices[-1] >= limit:
            raise OptionError(
                f"Keyframe indices must rise strictly within 0..{limit - 1}, found {indices}."
            )
        if state.slots is not None:
            raise OptionError("A state takes one set of generated keyframes, found two.")
        slots = replace(shape, num_frames=len(indices))
        if self.latents is not None and self.latents.shape != slots.sizes:
            raise ShapeError(
                f"Keyframe latents are {self.latents.shape}, {len(indices)} slots need "
                f"{slots.sizes}."
            )
        positions = video_positions(slots, 1.0, state.scale_factors)
        start = np.repeat(np.array(indices, np.float32), shape.tokens_per_frame)
        frame_rate = np.float32(state.frame_rate)
        positions[:, 0, :, 0] = start / frame_rate
        positions[:, 0, :, 1] = (start + np.float32(1)) / frame_rate
        count = slots.token_count
        first = state.token_count
        grown = append_tokens(
            state,
            clean=np.zeros((shape.batch, count, state.latent.shape[2]), np.float32),
            mask_value=1.0,
            positions=positions,
            latent=None if self.latents is None else patchify_video(self.latents),
            keyframe=True,
        )
        return replace(grown, slots=range(first, first + count))


def keyframe_indices(request: int | Sequence[int], num_frames: int) -> list[int]:
    """Pixel frames of the requested generated keyframes: evenly spread interior points, or a list.

    Raises:
        OptionError: more keyframes than interior frames, or an index outside the clip.
    """
    if request == 0:
        return []
    if isinstance(request, int):
        if request < 0 or num_frames < request + 2:
            raise OptionError(
                f"generated_keyframes={request} is not in [0, {max(num_frames - 2, 0)}]: they lie "
                f"between the first and the last of num_frames={num_frames}."
            )
        spread = np.linspace(0.0, num_frames - 1, request + 2).astype(np.float32)
        return [int(i) for i in np.rint(spread[1:-1])]
    indices = sorted(set(request))
    if indices and not 0 <= indices[0] <= indices[-1] < num_frames:
        raise OptionError(f"Keyframe indices must lie within 0..{num_frames - 1}, found {indices}.")
    return indices


def subsample_indices(num_frames: int, temporal_scale: int) -> list[int]:
    """Frames of a reference kept at `temporal_scale`: the first, then every S-th of the others."""
    if temporal_scale == 1:
        return list(range(num_frames))
    return [0, *range(1, num_frames, temporal_scale)]


def mask_latent(mask: F32, shape: VideoLatentShape) -> F32:
    """Average a pixel mask down to latent tokens (spec/conditioning.md §4.3).

    Args:
        mask: `[B, 1, n, H, W]` float32 in [0, 1].
        shape: latent grid to match.

    Returns:
        `[B, T]` float32: the first frame alone, the rest averaged in equal groups. A mask of one
        frame holds all the time; upstream fails on it.

    Raises:
        ShapeError: the frames after the first do not divide into the latent frames.
    """
    batch, _, frames = mask.shape[:3]
    flat = mask.reshape(-1, *mask.shape[3:])
    cells = _area_resize(flat, shape.height, shape.width)
    cells = cells.reshape(batch, frames, shape.height, shape.width)
    if frames == 1 or shape.num_frames == 1:
        return np.repeat(cells[:, :1], shape.num_frames, axis=1).reshape(batch, -1)
    check_mask_frames(frames, shape.num_frames)
    later = cells[:, 1:].reshape(batch, shape.num_frames - 1, -1, shape.height, shape.width)
    joined = np.concatenate([cells[:, :1], later.mean(axis=2)], axis=1)
    return joined.reshape(batch, -1)


def check_mask_frames(frames: int, latent_frames: int) -> None:
    """Refuse a mask whose frames after the first do not divide into those of a reference.

    Raises:
        ShapeError: they do not, or there are fewer of them.
    """
    if frames == 1 or latent_frames == 1:
        return
    group, rest = divmod(frames - 1, latent_frames - 1)
    if rest or group == 0:
        raise ShapeError(
            f"an attention mask of {frames} frames does not divide into the {latent_frames} "
            "latent frames of its reference; use one as long as the reference, or an image."
        )


def _area_resize(images: F32, height: int, width: int) -> F32:
    """Mean over the (possibly overlapping) source box of each output cell; `[N, H, W]`."""
    for axis, size in ((1, height), (2, width)):
        length = images.shape[axis]
        bounds = [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
        boxes = [images.take(range(a, b), axis).mean(axis, keepdims=True) for a, b in bounds]
        images = np.concatenate(boxes, axis=axis)
    return images.astype(np.float32)
