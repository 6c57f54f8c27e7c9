"""A conditioning item of the official code that no pipeline uses, for its golden."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ltx2rt.engine import Array
from ltx2rt.latents.patchify import patchify_video
from ltx2rt.latents.state import LatentState
from ltx2rt.weights.floats import cast


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatentMask:
    """Pull the cells where `mask` `[B, F, H, W]` is 1 toward `latent`."""

    latent: Array
    mask: Array
    strength: float = 1.0

    def apply(self, state: LatentState) -> LatentState:
        shape = state.video_shape
        n = shape.token_count
        weight = self.mask.reshape(shape.batch, n, 1).astype(np.float32)
        keep = np.float32(1) - weight
        clean, mask = state.clean.copy(), state.mask.copy()
        blended = clean[:, :n] * keep + patchify_video(self.latent) * weight
        clean[:, :n] = cast(blended, state.dtype)
        mask[:, :n] = mask[:, :n] * keep + np.float32(1.0 - self.strength) * weight
        return replace(state, clean=clean, mask=mask)
