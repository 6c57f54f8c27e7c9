"""What a clip looks like while it is sampled: the clean estimate of a step through a linear map
from latents to colours, which is fitted to the model's own encoder.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ltx2rt.components.video_encoder import VideoEncoder
from ltx2rt.engine import F32, U8, Array
from ltx2rt.errors import UnsupportedError
from ltx2rt.partial import Partial
from ltx2rt.plain_data import parse_json

#: coloured cells that the map is fitted to, and the side in cells of the pictures that hold them,
#: where the encoder takes such pictures
SAMPLES, SIDE = 396, 6
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


def read_colours(path: Path) -> LatentColours | None:
    """A map that was kept; None if there is none, or it is damaged: then it is fitted anew."""
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
        weights, bias = (np.array(data[name], np.float32) for name in ("weights", "bias"))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    fits = weights.ndim == 2 and weights.shape[1:] == bias.shape == (3,)
    return LatentColours(weights=weights, bias=bias) if fits else None


def write_colours(path: Path, colours: LatentColours) -> None:
    """Keep a map; a folder that cannot be written to is no reason to stop."""
    data = {"weights": colours.weights.tolist(), "bias": colours.bias.tolist()}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with Partial(path) as part:
            part.file.write(json.dumps(data).encode())


def fit_colours(
    encoder: VideoEncoder, takes: Callable[[int, int, int], bool] = lambda *_: True
) -> LatentColours:
    """Fit the map by ridge regression on pictures whose cells have random colours: 396 samples or a
    few more, the same every time.

    Args:
        takes: whether the encoder takes a clip of these frames, rows and columns of pixels.

    Raises:
        UnsupportedError: it takes no square of whole cells.
    """
    random = np.random.default_rng(0)
    _, rows, columns = encoder.scale_factors
    side, lengths = _clips(encoder, takes)
    cells: list[F32] = []
    colours: list[F32] = []
    while sum(map(len, cells)) < SAMPLES:
        frames = lengths[min(len(cells), len(lengths) - 1)]
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


def _clips(
    encoder: VideoEncoder, takes: Callable[[int, int, int], bool]
) -> tuple[int, tuple[int, ...]]:
    """Cells of a side, the largest square up to `SIDE`; frames of the first clip and of the others.
    Only the first one has two latent frames, which costs an encoder as much as nine pictures.
    """
    time, rows, columns = encoder.scale_factors
    for side in range(SIDE, 0, -1):
        lengths = (time + 1, 1)
        if found := tuple(n for n in lengths if takes(n, side * rows, side * columns)):
            return side, found
    raise UnsupportedError(
        f"a preview needs the video encoder at a square of up to {SIDE * columns}x{SIDE * rows} "
        "pixels, which this bundle was not built for; leave the preview out, or build again with "
        "such a clip in --shapes."
    )
