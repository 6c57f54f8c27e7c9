"""Encode clips and images into normalised video latents, in one piece or tile by tile."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from ltx2rt.engine import F32, Engine
from ltx2rt.errors import ShapeError
from ltx2rt.latents.shapes import VIDEO_SCALE_FACTORS, VideoScaleFactors, nearest_multiples
from ltx2rt.latents.tiling import TilingConfig

logger = logging.getLogger(__name__)


class VideoEncoder:
    """A video encoder.

    Args:
        engine: `video` `[B, 3, F, H, W]` in [-1, 1] -> `video_latent` `[B, C, F', H', W']`,
            normalised.
        scale_factors: pixels per latent cell.
    """

    def __init__(
        self, engine: Engine, scale_factors: VideoScaleFactors = VIDEO_SCALE_FACTORS
    ) -> None:
        self.engine = engine
        self.scale_factors = scale_factors

    @classmethod
    def from_options(cls, engine: Engine, options: Mapping[str, Any]) -> VideoEncoder:
        """Make one from the options of the component, as the manifest records them."""
        return cls(engine, VideoScaleFactors(**options["scale_factors"]))

    def encode(self, video: F32, tiling: TilingConfig | None = None) -> F32:
        """Encode clips.

        Args:
            video: `[B, 3, F, H, W]` float32 in [-1, 1]; frames beyond `8k+1` are dropped from the
                end, with a warning.
            tiling: how to split the clip; None encodes it in one piece.

        Returns:
            `[B, C, F', H', W']` float32, normalised.

        Raises:
            ShapeError: height or width is not a multiple of the factor, or the tiling does not fit.
        """
        self._check(video)
        factors = self.scale_factors
        frames = video.shape[2]
        kept = (frames - 1) // factors.time * factors.time + 1
        if kept != frames:
            logger.warning(
                "the video encoder takes %dk+1 frames: the last %d of %d are dropped",
                factors.time,
                frames - kept,
                frames,
            )
            video = video[:, :, :kept]
        if tiling is None:
            return self._run(video).copy()
        cells = (
            (kept - 1) // factors.time + 1,
            video.shape[3] // factors.height,
            video.shape[4] // factors.width,
        )
        times, rows, columns = tiling.tiles(cells, factors, encode=True)
        latent: F32 | None = None
        for time in times:
            for row in rows:
                for column in columns:
                    tile = self._run(video[:, :, time.source, row.source, column.source])
                    if latent is None:
                        latent = np.zeros((*tile.shape[:2], *cells), np.float32)
                    weights = time.weights[:, None, None] * row.weights[:, None] * column.weights
                    latent[:, :, time.target, row.target, column.target] += tile * weights
        assert latent is not None
        return latent

    def _check(self, video: F32) -> None:
        if video.ndim != 5 or video.shape[1] != 3 or 0 in video.shape:
            raise ShapeError(f"The video encoder takes [B, 3, F, H, W], not {list(video.shape)}.")
        problems = []
        sides = zip(("height", "width"), video.shape[3:], self.scale_factors[1:], strict=True)
        for name, size, factor in sides:
            if size % factor:
                valid = ", ".join(str(v) for v in nearest_multiples(size, factor))
                problems.append(
                    f"{name}={size} is not a multiple of {factor}. Nearest valid: {valid}"
                )
        if problems:
            raise ShapeError("The video cannot be encoded", problems)

    def _run(self, tile: F32) -> F32:
        latent = self.engine({"video": np.ascontiguousarray(tile)})["video_latent"]
        return latent.astype(np.float32, copy=False)
