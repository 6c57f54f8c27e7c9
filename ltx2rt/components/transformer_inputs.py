"""What the transformer takes: streams, perturbations, and masks turned into additive biases."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ltx2rt.engine import Array
from ltx2rt.errors import OptionError, ShapeError

AttentionKind = Literal["video_self", "audio_self", "audio_to_video", "video_to_audio"]
KINDS: tuple[AttentionKind, ...] = (
    "video_self",
    "audio_self",
    "audio_to_video",
    "video_to_audio",
)

#: the additive bias of a masked position by dtype name: the most negative finite value, but for
#: float16, where a score below it would make infinities (exp of -1e4 is zero all the same)
LOWEST = {
    "float32": -3.4028234663852886e38,
    "bfloat16": -3.3895313892515355e38,
    "float16": -1e4,
}
TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalityInput:
    """One stream's half of a forward pass; `B` and `S` agree between the two streams.

    Attributes:
        latent: `[B, T, C]` float32 noisy tokens.
        sigma: `[B]` noise level in 0..1.
        timesteps: `[B, T, 1]` or `[B, T]`, noise level of each token (denoise mask times sigma).
        positions: `[B, n, T, 2]` start and end bounds; n = 3 for video, 1 for audio.
        context: `[B, S, Cc]` from the text encoder.
        context_mask: `[B, S]`: integers (1 = keep, 0 = drop) or additive floats.
        attention_mask: `[B, T, T]` or broadcastable, self-attention strength in 0..1.
        keyframes_mask: `[B, T, 1]`, above 0 on keyframe tokens; read by LTX-2.5 only.
        enabled: False leaves the stream's tokens as they are; the other stream still reads them.
    """

    latent: Array
    sigma: Array
    timesteps: Array
    positions: Array
    context: Array
    context_mask: Array | None = None
    attention_mask: Array | None = None
    keyframes_mask: Array | None = None
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class AttentionSkip:
    """One kind of attention switched off, in some blocks, for some samples; None means all."""

    kind: AttentionKind
    blocks: frozenset[int] | None = None
    samples: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class Perturbations:
    """Attentions that a pass skips. Self-attention then passes its values through."""

    skips: tuple[AttentionSkip, ...] = ()

    def and_skip(
        self,
        kind: AttentionKind,
        blocks: Iterable[int] | None = None,
        samples: Iterable[int] | None = None,
    ) -> Perturbations:
        """These perturbations and one more.

        Raises:
            OptionError: unknown kind.
        """
        if kind not in KINDS:
            raise OptionError(f"kind={kind!r} is no attention; allowed: {', '.join(KINDS)}.")
        more = AttentionSkip(
            kind,
            None if blocks is None else frozenset(blocks),
            None if samples is None else frozenset(samples),
        )
        return Perturbations((*self.skips, more))

    def switches(self, kind: AttentionKind, block: int, batch: int) -> Array:
        """`[batch]` float32 factors of one attention in one block: 1 normal, 0 skipped."""
        switches = np.ones(batch, np.float32)
        for skip in self.skips:
            if skip.kind == kind and (skip.blocks is None or block in skip.blocks):
                switches[slice(None) if skip.samples is None else sorted(skip.samples)] = 0
        return switches


def attention_bias(mask: Array | None, batch: int, tokens: int, dtype: str = "float32") -> Array:
    """Self-attention strengths to an additive bias: `log(max(m, tiny))`, lowest where `m <= 0`.

    Args:
        mask: `[B, T, T]` or broadcastable, 0..1; None for no mask.
        batch, tokens: B and T.
        dtype: of the engine; see `LOWEST`.

    Returns:
        float32 `[B, 1, 1, T]` (no mask, or one row for all) or `[B, 1, T, T]`.

    Raises:
        ShapeError: the mask does not broadcast to `[B, T, T]`.
    """
    if mask is None:
        return np.zeros((batch, 1, 1, tokens), np.float32)
    rows = mask.shape[1] if mask.ndim == 3 else 0
    if mask.ndim != 3 or rows not in (1, tokens) or mask.shape[2] != tokens:
        raise ShapeError(
            f"attention_mask has shape {list(mask.shape)}; expected [{batch}, {tokens}, {tokens}]."
        )
    if mask.shape[0] not in (1, batch):
        raise ShapeError(f"attention_mask has batch {mask.shape[0]}; expected {batch}.")
    strength = np.asarray(mask, np.float32)
    log = np.log(np.maximum(strength, TINY))
    bias = np.where(strength > 0, log, np.float32(LOWEST[dtype]))[:, None]
    return np.broadcast_to(bias.astype(np.float32, copy=False), (batch, 1, rows, tokens))


def context_bias(mask: Array | None, batch: int, length: int, dtype: str = "float32") -> Array:
    """Text mask to an additive bias `[B, 1, 1, S]` float32; see `ModalityInput.context_mask`.

    Raises:
        ShapeError: the mask is not `[B, S]`.
    """
    if mask is None:
        return np.zeros((batch, 1, 1, length), np.float32)
    if mask.shape != (batch, length):
        raise ShapeError(
            f"context_mask has shape {list(mask.shape)}; expected [{batch}, {length}]."
        )
    if mask.dtype.kind != "f":
        mask = np.where(mask > 0, np.float32(0), np.float32(LOWEST[dtype]))
    return np.asarray(mask, np.float32)[:, None, None]
