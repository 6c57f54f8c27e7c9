"""The latent state of one modality while it is sampled (spec/conditioning.md §1.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ltx2rt.engine import F32, Array
from ltx2rt.errors import InternalError, ShapeError
from ltx2rt.latents.patchify import (
    audio_positions,
    patchify_audio,
    patchify_video,
    unpatchify_audio,
    unpatchify_video,
    video_positions,
)
from ltx2rt.latents.shapes import (
    AUDIO_GRID,
    VIDEO_SCALE_FACTORS,
    AudioGrid,
    AudioLatentShape,
    VideoLatentShape,
    VideoScaleFactors,
)
from ltx2rt.weights.floats import cast


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatentState:
    """Tokens of one modality with everything the sampler and the transformer need to know of them.

    The first `shape.token_count` tokens are the target; conditioning items append after them.
    Arrays are never written in place: every operation returns a new state.

    Attributes:
        latent: `[B, T, D]` noisy tokens.
        clean: `[B, T, D]` values that tokens are pulled to where `mask` is below 1.
        mask: `[B, T, 1]` float32 denoise mask: 1 generated, 0 fixed.
        positions: `[B, 3, T, 2]` (seconds, rows, columns) or `[B, 1, T, 2]` (seconds) float32.
        attention_mask: `[B, T, T]` float32 self-attention weights in [0, 1]; None means all 1.
        keyframes_mask: `[B, T, 1]` float32, 1 on single-pixel-frame tokens; None for audio.
        frozen: the modality is clean context: mask 0 and sigma 0.
        shape: latent shape of the target.
        frame_rate: pixel frames per second; 0 for audio.
        scale_factors: pixels per latent cell (video).
        slots: token range of the generated keyframe slots; None without.
        dtype: type that `latent` and `clean` are rounded to ("bfloat16" is held in float32).
    """

    latent: Array
    clean: Array
    mask: F32
    positions: F32
    attention_mask: F32 | None = None
    keyframes_mask: F32 | None = None
    frozen: bool = False
    shape: VideoLatentShape | AudioLatentShape
    frame_rate: float = 0.0
    scale_factors: VideoScaleFactors = VIDEO_SCALE_FACTORS
    slots: range | None = None
    dtype: str = "float32"

    @property
    def token_count(self) -> int:
        """All tokens, appended ones included."""
        return int(self.latent.shape[1])

    @property
    def target_count(self) -> int:
        return self.shape.token_count

    @property
    def video_shape(self) -> VideoLatentShape:
        if not isinstance(self.shape, VideoLatentShape):
            raise InternalError("a video operation was applied to an audio state")
        return self.shape


def make_video_state(
    shape: VideoLatentShape,
    frame_rate: float,
    initial: Array | None = None,
    *,
    scale_factors: VideoScaleFactors = VIDEO_SCALE_FACTORS,
    dtype: str = "float32",
) -> LatentState:
    """A fresh video state: everything is to be generated.

    Args:
        shape: target latent shape.
        frame_rate: pixel frames per second.
        initial: `[B, C, F, H, W]` latent to start from (stage 2); zeros without.
        scale_factors: pixels per latent cell.
        dtype: see `LatentState.dtype`.

    Raises:
        ShapeError: `initial` has another shape.
    """
    tokens = _initial_tokens(shape, initial, dtype)
    count = shape.token_count
    keyframes = np.zeros((shape.batch, count, 1), np.float32)
    keyframes[:, : shape.tokens_per_frame] = 1
    return LatentState(
        latent=tokens,
        clean=tokens,
        mask=np.ones((shape.batch, count, 1), np.float32),
        positions=video_positions(shape, frame_rate, scale_factors),
        keyframes_mask=keyframes,
        shape=shape,
        frame_rate=frame_rate,
        scale_factors=scale_factors,
        dtype=dtype,
    )


def make_audio_state(
    shape: AudioLatentShape,
    initial: Array | None = None,
    *,
    grid: AudioGrid = AUDIO_GRID,
    dtype: str = "float32",
) -> LatentState:
    """A fresh audio state; `initial` is `[B, C, T, M]`. Raises as `make_video_state`."""
    tokens = _initial_tokens(shape, initial, dtype)
    return LatentState(
        latent=tokens,
        clean=tokens,
        mask=np.ones((shape.batch, shape.token_count, 1), np.float32),
        positions=audio_positions(shape, grid),
        shape=shape,
        dtype=dtype,
    )


def _initial_tokens(
    shape: VideoLatentShape | AudioLatentShape, initial: Array | None, dtype: str
) -> Array:
    if initial is not None and initial.shape != shape.sizes:
        raise ShapeError(
            f"The initial latent has shape {initial.shape}, the target needs {shape.sizes}."
        )
    grid = np.zeros(shape.sizes, np.float32) if initial is None else initial
    is_video = isinstance(shape, VideoLatentShape)
    tokens = patchify_video(grid) if is_video else patchify_audio(grid)
    return cast(tokens, dtype)


def append_tokens(
    state: LatentState,
    *,
    clean: Array,
    mask_value: float,
    positions: F32,
    latent: Array | None = None,
    keyframe: bool = False,
    attention_strength: float | F32 | None = None,
) -> LatentState:
    """Append conditioning tokens after all present ones.

    Args:
        state: the state to extend.
        clean: `[B, M, D]` values of the new tokens.
        mask_value: their denoise mask.
        positions: `[B, axes, M, 2]`.
        latent: `[B, M, D]` starting tokens; zeros without.
        keyframe: mark them in the keyframes mask.
        attention_strength: weight between new and target tokens, a scalar, `[M]` or `[B, M]`; None
            adds no attention mask where none exists.

    Raises:
        ShapeError: batch, width or lengths do not fit.
    """
    batch, _, width = state.latent.shape
    count = clean.shape[1]
    axes = state.positions.shape[1]
    if clean.shape != (batch, count, width) or positions.shape != (batch, axes, count, 2):
        raise ShapeError(
            f"Conditioning tokens {clean.shape} with positions {positions.shape} do not fit a "
            f"state of {state.latent.shape} tokens and {axes} position axes."
        )
    clean = cast(clean, state.dtype)
    latent = np.zeros_like(clean) if latent is None else cast(latent, state.dtype)
    mask = np.full((batch, count, 1), mask_value, np.float32)
    keyframes_mask = state.keyframes_mask
    if keyframes_mask is not None:
        marks = np.full((batch, count, 1), float(keyframe), np.float32)
        keyframes_mask = np.concatenate([keyframes_mask, marks], axis=1)
    return replace(
        state,
        latent=np.concatenate([state.latent, latent], axis=1),
        clean=np.concatenate([state.clean, clean], axis=1),
        mask=np.concatenate([state.mask, cast(mask, state.dtype).astype(np.float32)], axis=1),
        positions=np.concatenate([state.positions, positions], axis=2),
        keyframes_mask=keyframes_mask,
        attention_mask=grow_attention_mask(state, count, attention_strength),
    )


def grow_attention_mask(state: LatentState, count: int, strength: float | F32 | None) -> F32 | None:
    """The self-attention mask after `count` more tokens (spec/conditioning.md §1.5).

    New and target tokens see each other with `strength` (1 if None), new tokens see each other
    fully, and new and earlier appended tokens do not see each other.
    """
    if strength is None and state.attention_mask is None:
        return None
    batch, old, target = state.latent.shape[0], state.token_count, state.target_count
    weights = np.asarray(1.0 if strength is None else strength, np.float32)
    if weights.ndim > 2 or (weights.ndim and weights.shape[-1] != count):
        raise ShapeError(f"Attention strengths {weights.shape} do not fit {count} new tokens.")
    weights = np.broadcast_to(cast(weights, state.dtype).astype(np.float32), (batch, count))
    grown = np.zeros((batch, old + count, old + count), np.float32)
    grown[:, :old, :old] = 1 if state.attention_mask is None else state.attention_mask
    grown[:, old:, old:] = 1
    grown[:, :target, old:] = weights[:, None, :]
    grown[:, old:, :target] = weights[:, :, None]
    return grown


def attention_bias(attention_mask: F32) -> F32:
    """Additive attention bias of weights in [0, 1]: `log(w)`, and the lowest float32 for 0."""
    info = np.finfo(np.float32)
    return np.where(
        attention_mask > 0, np.log(np.maximum(attention_mask, info.tiny)), info.min
    ).astype(np.float32)


def freeze(state: LatentState) -> LatentState:
    """Turn a (noised) state into fixed context: mask 0 everywhere, sigma 0."""
    return replace(state, mask=np.zeros_like(state.mask), frozen=True)


def drop_appended(state: LatentState) -> LatentState:
    """Cut the state back to its target tokens."""
    n = state.target_count
    attention = state.attention_mask
    keyframes = state.keyframes_mask
    return replace(
        state,
        latent=state.latent[:, :n],
        clean=state.clean[:, :n],
        mask=state.mask[:, :n],
        positions=state.positions[:, :, :n],
        attention_mask=None if attention is None else attention[:, :n, :n],
        keyframes_mask=None if keyframes is None else keyframes[:, :n],
        slots=None,
    )


def target_latent(state: LatentState) -> Array:
    """The target tokens as a latent grid, `[B, C, F, H, W]` or `[B, C, T, M]`."""
    tokens = state.latent[:, : state.target_count]
    if isinstance(state.shape, VideoLatentShape):
        return unpatchify_video(tokens, state.shape)
    return unpatchify_audio(tokens, state.shape)


def slot_latents(state: LatentState) -> Array | None:
    """The generated keyframe slots as `[B, C, K, H, W]`, one latent frame each; None without."""
    if state.slots is None:
        return None
    shape = state.video_shape
    frames = len(state.slots) // shape.tokens_per_frame
    tokens = state.latent[:, state.slots.start : state.slots.stop]
    return unpatchify_video(tokens, replace(shape, num_frames=frames))
