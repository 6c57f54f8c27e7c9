"""Decode video latents tile by tile; finished frames leave while later tiles are to be decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ltx2rt.engine import F32, Engine
from ltx2rt.errors import ShapeError
from ltx2rt.latents.shapes import VIDEO_SCALE_FACTORS, VideoScaleFactors
from ltx2rt.latents.tiling import AxisTile, TilingConfig
from ltx2rt.parallel import each

Progress = Callable[[int, int], None]
#: tiles along frames, rows and columns
Axes = tuple[tuple[AxisTile, ...], tuple[AxisTile, ...], tuple[AxisTile, ...]]


class VideoDecoder:
    """A convolutional video decoder.

    Args:
        engine: `video_latent` `[B, C, F', H', W']`, normalised -> `video` `[B, 3, F, H, W]`, about
            [-1, 1].
        scale_factors: pixels per latent cell.
        min_latent_cells: smallest height and width of a latent that the network can decode; 2 where
            it pads by reflection.
    """

    def __init__(
        self,
        engine: Engine,
        scale_factors: VideoScaleFactors = VIDEO_SCALE_FACTORS,
        min_latent_cells: int = 1,
    ) -> None:
        self.engine = engine
        self.scale_factors = scale_factors
        self.min_latent_cells = min_latent_cells

    @classmethod
    def from_options(cls, engine: Engine, options: Mapping[str, Any]) -> VideoDecoder:
        """Make one from the options of the component, as the manifest records them."""
        factors = VideoScaleFactors(**options["scale_factors"])
        return cls(engine, factors, int(options["min_latent_cells"]))

    def decode(
        self, latent: F32, tiling: TilingConfig | None = None, progress: Progress | None = None
    ) -> Iterator[F32]:
        """Decode one clip.

        Args:
            latent: `[1, C, F', H', W']` float32, normalised.
            tiling: how to split; None decodes in one piece (pipelines use `TilingConfig.auto()`).
            progress: called with (tiles done, tiles in all) after every tile; may raise to cancel.

        Yields:
            `[f, H, W, 3]` float32 in [0, 1], consecutive frames of the clip.

        Raises:
            ShapeError: the latent is not one clip, too small, or the tiling does not fit it.
        """
        if latent.ndim != 5 or latent.shape[0] != 1:
            raise ShapeError(
                f"The video decoder takes one clip [1, C, F, H, W], not {list(latent.shape)}."
            )
        for video in self.decode_raw(latent, tiling, progress):
            yield unit_frames(video)

    def decode_raw(
        self, latent: F32, tiling: TilingConfig | None = None, progress: Progress | None = None
    ) -> Iterator[F32]:
        """As `decode`, for a batch: yields `[B, 3, f, H, W]` float32 as the network gives them."""
        if latent.ndim != 5:
            raise ShapeError(f"A video latent is [B, C, F, H, W], not {list(latent.shape)}.")
        axes = self.tiles(latent, tiling)

        def run(group: AxisTile, row: AxisTile, column: AxisTile) -> F32:
            return self._run(latent[:, :, group.source, row.source, column.source])

        return blend_tiles(axes, run, progress)

    def tiles(self, latent: F32, tiling: TilingConfig | None = None) -> Axes:
        """Tiles of a latent `[B, C, F', H', W']` along frames, rows and columns.

        Raises:
            ShapeError: the tiling does not fit it, or a tile is too small.
        """
        axes = (tiling or TilingConfig.none()).tiles(latent.shape[2:], self.scale_factors)
        self._check_cells(axes)
        return axes

    def _check_cells(self, axes: Axes) -> None:
        for name, tiles in zip(("height", "width"), axes[1:], strict=True):
            smallest = min(t.source.stop - t.source.start for t in tiles)
            if smallest < self.min_latent_cells:
                raise ShapeError(
                    f"A tile of the latent is {smallest} cell in {name}, and this decoder pads by "
                    f"reflection, which needs {self.min_latent_cells}: use a video or tiles of at "
                    f"least {self.min_latent_cells * self.scale_factors.height} pixels."
                )

    def _run(self, tile: F32) -> F32:
        video = self.engine({"video_latent": np.ascontiguousarray(tile)})["video"]
        return video.astype(np.float32, copy=False)


def unit_frames(video: F32) -> F32:
    """Pixels `[1, 3, f, H, W]`, about [-1, 1], to frames `[f, H, W, 3]` in [0, 1]."""
    planes = np.empty(video.shape[1:], np.float32)

    def fill(index: int) -> None:
        plane = np.add(video[0, :, index], np.float32(1), out=planes[:, index])
        np.multiply(plane, np.float32(0.5), out=plane)
        np.clip(plane, 0, 1, out=plane)

    each(fill, range(video.shape[2]))
    return np.moveaxis(planes, 0, -1)


def blend_tiles(
    axes: tuple[Sequence[AxisTile], Sequence[AxisTile], Sequence[AxisTile]],
    run: Callable[[AxisTile, AxisTile, AxisTile], F32],
    progress: Progress | None = None,
) -> Iterator[F32]:
    """Run every tile and blend the results, keeping no more frames than still overlap.

    Args:
        axes: tiles along frames, rows and columns; they run in this order, columns fastest.
        run: makes the pixels `[B, 3, f, h, w]` of one tile.
        progress: called with (tiles done, tiles in all) after every tile; may raise to cancel.

    Yields:
        `[B, 3, f, H, W]` float32, consecutive frames.
    """
    groups, rows, columns = axes
    total, done = len(groups) * len(rows) * len(columns), 0
    height, width = rows[-1].target.stop, columns[-1].target.stop
    tail: F32 | None = None
    for index, group in enumerate(groups):
        start, stop = group.target.start, group.target.stop
        pending: F32 | None = None
        for row in rows:
            for column in columns:
                tile = run(group, row, column)
                if total == 1:
                    pending = tile.copy()
                else:
                    if pending is None:
                        size = (*tile.shape[:2], stop - start, height, width)
                        pending = np.zeros(size, np.float32)
                        if tail is not None:
                            pending[:, :, : tail.shape[2]] = tail
                    weights = row.weights[:, None] * column.weights
                    _accumulate(
                        pending[..., row.target, column.target], tile, group.weights, weights
                    )
                done += 1
                if progress is not None:
                    progress(done, total)
        assert pending is not None
        last = index == len(groups) - 1
        ready = stop - start if last else groups[index + 1].target.start - start
        if ready:
            yield pending[:, :, :ready]
        tail = pending[:, :, ready:].copy()


def _accumulate(into: F32, tile: F32, frame_weights: F32, pixel_weights: F32) -> None:
    """Add the weighted tile frame by frame, so that no second copy of the volume is made."""

    def add(frame: int) -> None:
        into[:, :, frame] += tile[:, :, frame] * (frame_weights[frame] * pixel_weights)

    each(add, (i for i, weight in enumerate(frame_weights) if weight))
