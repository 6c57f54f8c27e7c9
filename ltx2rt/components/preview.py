"""What a clip looks like while it is sampled: the clean estimate of a step through a linear map
from latents to colours, which is fitted to the model's own encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ltx2rt.components.video_encoder import VideoEncoder
from ltx2rt.engine import F32, U8, Array
from ltx2rt.errors import UnsupportedError

#: coloured cells that the map is fitted to, and the side in cells of the clips that hold them,
#: where the encoder takes such clips
SAMPLES, SIDE = 768, 8
#: weight of the penalty on large coefficients, against samples of unit variance
RIDGE = 0.03


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatentColours:
    """A linear map from latent cells to colours.

    Attributes:
        weights: `[C, 3]`.
        bias: `[3]`.
    """

    weights: F32
    bias: F32

    def __call__(self, latent: Array) -> U8:
        """Colours of a latent `[1, C, F, H, W]`: `[F, H, W, 3]` uint8, a pixel a cell."""
        cells = np.moveaxis(latent[0], 0, -1) @ self.weights + self.bias
        levels: U8 = (np.clip(cells, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
        return levels


def fit_colours(
    encoder: VideoEncoder, takes: Callable[[int, int, int], bool] = lambda *_: True
) -> LatentColours:
    """Fit the map by ridge regression on still clips whose cells have random colours: 768 samples,
    the same every time.

    Args:
        takes: whether the encoder takes a clip of these frames, rows and columns of pixels.

    Raises:
        UnsupportedError: it takes no clip of whole cells.
    """
    random = np.random.default_rng(0)
    _, rows, columns = encoder.scale_factors
    frames, side = _clip_size(encoder, takes)
    cells: list[F32] = []
    colours: list[F32] = []
    while sum(map(len, cells)) < SAMPLES:
        picture = random.random((side, side, 3), np.float32)
        pixels = picture.repeat(rows, 0).repeat(columns, 1) * 2 - 1
        clip = np.broadcast_to(
            np.moveaxis(pixels, -1, 0)[None, :, None], (1, 3, frames, *pixels.shape[:2])
        )
        latent = encoder.encode(np.ascontiguousarray(clip, np.float32))
        cells.append(np.moveaxis(latent[0], 0, -1).reshape(-1, latent.shape[1]))
        colours.append(np.tile(picture.reshape(-1, 3), (latent.shape[2], 1)))
    known, wanted = np.concatenate(cells).astype(np.float64), np.concatenate(colours)
    mean, target = known.mean(0), wanted.mean(0)
    spread = known.std(0) + 1e-6
    scaled = (known - mean) / spread
    penalty = RIDGE * len(scaled) * np.eye(scaled.shape[1])
    found = np.linalg.solve(scaled.T @ scaled + penalty, scaled.T @ (wanted - target))
    weights = (found / spread[:, None]).astype(np.float32)
    return LatentColours(weights=weights, bias=(target - mean @ weights).astype(np.float32))


def _clip_size(encoder: VideoEncoder, takes: Callable[[int, int, int], bool]) -> tuple[int, int]:
    """Frames, and cells of a side: two latent frames rather than one, then the largest square."""
    time, rows, columns = encoder.scale_factors
    for frames in (time + 1, 1):
        for side in range(SIDE, 0, -1):
            if takes(frames, side * rows, side * columns):
                return frames, side
    raise UnsupportedError(
        "a preview needs the video encoder at a square of up to "
        f"{SIDE * columns}x{SIDE * rows} pixels, which this bundle was not built for; leave the "
        "preview out, or build again with such a clip in --shapes."
    )
