"""Latent upsamplers: more rows and columns, or more frames, between the stages of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ltx2rt.engine import F32, Engine
from ltx2rt.errors import InternalError, ShapeError


class LatentUpsampler:
    """A spatial (x2, x1.5) or temporal (x2) upsampler of normalised latents.

    Args:
        engine: `video_latent` `[B, C, F, H, W]` -> `upsampled_latent`.
        spatial_scale: (numerator, denominator) of height and width.
        temporal_scale: 2 makes `2F - 1` frames of `F`; 1 keeps them.
    """

    def __init__(
        self, engine: Engine, spatial_scale: tuple[int, int] = (2, 1), temporal_scale: int = 1
    ) -> None:
        self.engine = engine
        self.spatial_scale = spatial_scale
        self.temporal_scale = temporal_scale

    @classmethod
    def from_options(cls, engine: Engine, options: Mapping[str, Any]) -> LatentUpsampler:
        """Make one from the options of the component, as the manifest records them."""
        numerator, denominator = options["spatial_scale"]
        return cls(engine, (int(numerator), int(denominator)), int(options["temporal_scale"]))

    def output_cells(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent cells after upsampling; an odd side at x1.5 rounds up."""
        numerator, denominator = self.spatial_scale
        sides = [(numerator * n - 1) // denominator + 1 for n in (height, width)]
        return self.temporal_scale * (frames - 1) + 1, sides[0], sides[1]

    def __call__(self, latent: F32) -> F32:
        """Upsample `[B, C, F, H, W]` float32, normalised, to the sizes of `output_cells`.

        Raises:
            ShapeError: the latent has not five dimensions.
        """
        if latent.ndim != 5 or 0 in latent.shape:
            raise ShapeError(f"A video latent is [B, C, F, H, W], not {list(latent.shape)}.")
        result = self.engine({"video_latent": np.ascontiguousarray(latent)})["upsampled_latent"]
        expected = (*latent.shape[:2], *self.output_cells(*latent.shape[2:]))
        if result.shape != expected:
            raise InternalError(f"The upsampler gave {result.shape} instead of {expected}.")
        return result.astype(np.float32)
