"""Decode video latents with a diffusion decoder: features of the clip, then pixels by tiles.

Padding, ghost frames, noise, steps, tiles and blending are here; the networks are three engines
(spec/diffusion_decoder.md §5 to §7).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ltx2rt.components.video_decoder import Progress, blend_tiles
from ltx2rt.engine import F32, Engine
from ltx2rt.errors import BundleError, ShapeError, UnsupportedError
from ltx2rt.latents.shapes import VideoScaleFactors
from ltx2rt.latents.tiling import (
    AXES,
    AxisTile,
    AxisTiling,
    Interval,
    TilingConfig,
    normalized,
    trapezoid,
)

Draw = Callable[[Sequence[int]], F32]
Cells = tuple[int, int, int]

#: patches of the largest tile that `auto` makes; a fixed number, so that a seed gives the same clip
#: on every machine
TILE_PATCHES = 2**20

#: arrays of one patch's width that are alive at once while pixels are denoised
LIVE_ARRAYS = 14

#: steps in frames and pixels in which `auto` tries tile sizes
AUTO_STEPS = (8, 32, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderOptions:
    """Facts about the networks; the options of component `diffusion_features`.

    Attributes:
        scale_factors: pixels per latent cell.
        latent_channels, patch_size, pixel_channels: of the latent, of patches, of the pixel stage.
        border_patches: columns that the pixel stage adds on both sides of the width.
        steps, prediction: of the diffusion; `x0` or `v`.
        ghost_frames: latent frames appended before decoding.
        min_latent_cells: smaller latents are padded.
        feature_stride: frames and patches per feature cell.
        min_feature_cells, halo_feature_cells: smallest tile and smallest overlap.
    """

    scale_factors: VideoScaleFactors
    latent_channels: int
    patch_size: int
    pixel_channels: int
    border_patches: int
    steps: int
    prediction: str
    ghost_frames: int
    min_latent_cells: tuple[int, ...]
    feature_stride: tuple[int, ...]
    min_feature_cells: tuple[int, ...]
    halo_feature_cells: tuple[int, ...]

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> DecoderOptions:
        """Read what a bundle says.

        Raises:
            BundleError: facts are missing: another version built the bundle.
        """
        missing = [f.name for f in fields(cls) if f.name not in options]
        if missing:
            raise BundleError(
                f"the diffusion decoder of this bundle does not say its {', '.join(missing)}: "
                "another version of ltx2rt built it; build the bundle again."
            )
        factors = VideoScaleFactors(**options["scale_factors"])
        return cls(**{**options, "scale_factors": factors})

    @property
    def feature_factors(self) -> VideoScaleFactors:
        """Frames and pixels per feature cell."""
        time, rows, columns = self.feature_stride
        return VideoScaleFactors(time, rows * self.patch_size, columns * self.patch_size)


class DiffusionVideoDecoder:
    """A diffusion video decoder.

    Args:
        features, context, pixels: engines of the components `diffusion_features`,
            `diffusion_context` and `diffusion_pixels`.
        options: of `diffusion_features`.
    """

    def __init__(
        self, features: Engine, context: Engine, pixels: Engine, options: Mapping[str, Any]
    ) -> None:
        self._features = features
        self._context = context
        self._pixels = pixels
        self.options = DecoderOptions.from_options(options)

    def decode(
        self,
        latent: F32,
        draw: Draw,
        tiling: TilingConfig | None = None,
        progress: Progress | None = None,
    ) -> Iterator[F32]:
        """Decode one clip.

        Args:
            latent: `[1, C, F', H', W']` float32, normalised.
            draw: gives standard normal noise of a shape; the pipeline's generator, after the last
                stage.
            tiling: how to split; None decodes in one piece, `auto_tiling` bounds memory.
            progress: called with (tiles done, tiles in all) after every tile; may raise to cancel.

        Yields:
            `[f, H, W, 3]` float32 in [0, 1], consecutive frames of the clip.

        Raises:
            ShapeError: the latent is not one clip, or the tiling does not fit it.
            UnsupportedError: a tile needs more memory than the machine has.
        """
        if latent.ndim != 5 or latent.shape[0] != 1:
            raise ShapeError(
                f"The video decoder takes one clip [1, C, F, H, W], not {list(latent.shape)}."
            )
        padded, (top, left) = self._padded(latent)
        cells = self.feature_cells(padded.shape[2:])
        axes = self.tiles(tiling or TilingConfig.none(), cells)
        self._check_memory(axes)
        scale = self.options.scale_factors
        frames, rows, columns = (
            (latent.shape[2] - 1) * scale.time + 1,
            slice(top * scale.height, (top + latent.shape[3]) * scale.height),
            slice(left * scale.width, (left + latent.shape[4]) * scale.width),
        )
        for video in self._stream(padded, cells, axes, draw, progress):
            chunk = np.moveaxis(video[0, :, :frames, rows, columns], 0, -1)
            frames -= len(chunk)
            if len(chunk):
                yield np.clip((chunk + np.float32(1)) * np.float32(0.5), 0, 1)

    def feature_cells(self, latent_cells: Sequence[int]) -> Cells:
        """Feature cells of a latent, ghost frames left out: the grid that tiles are cut from."""
        facts = self.options
        (time, rows, columns), stride = facts.scale_factors, facts.feature_factors
        frames = (latent_cells[0] - 1) * time
        return (
            frames // stride.time + 1,
            latent_cells[1] * rows // stride.height,
            latent_cells[2] * columns // stride.width,
        )

    def auto_tiling(self, latent_cells: Sequence[int]) -> TilingConfig:
        """The tiles of at most `TILE_PATCHES` patches that repeat the least work."""
        factors = self.options.feature_factors
        cells = self.feature_cells(
            [max(a, b) for a, b in zip(latent_cells, self.options.min_latent_cells, strict=True)]
        )
        per_axis = [self._candidates(axis, cells[axis]) for axis in range(3)]
        budget = TILE_PATCHES // (factors.time * (factors.height // self.options.patch_size) ** 2)
        best: tuple[int, tuple[AxisTiling, ...]] | None = None
        for f_size, f_work, f_tiling in per_axis[0]:
            for h_size, h_work, h_tiling in per_axis[1]:
                for w_size, w_work, w_tiling in per_axis[2]:
                    work = f_work * h_work * w_work
                    if f_size * h_size * w_size <= budget and (best is None or work < best[0]):
                        best = (work, (f_tiling, h_tiling, w_tiling))
        smallest = tuple(options[-1][2] for options in per_axis)
        frames, height, width = best[1] if best else smallest
        return TilingConfig(frames=frames, height=height, width=width)

    def _candidates(self, axis: int, length: int) -> list[tuple[int, int, AxisTiling]]:
        """(longest tile, sum of tiles, tiling) of an axis: whole, then ever smaller tiles."""
        factor, halo = self.options.feature_factors[axis], self.options.halo_feature_cells[axis]
        step = max(AUTO_STEPS[axis] // factor, 1)
        least = max(2 * halo, self.options.min_feature_cells[axis], 2)
        found = [(length, length, AxisTiling())]
        for size in range((length - 1) // step * step, least - 1, -step):
            tiling = AxisTiling(size * factor, halo * factor)
            tiles = self._intervals(tiling, axis, length)
            longest = max(t.stop - t.start for t in tiles)
            total = sum(t.stop - t.start for t in tiles)
            if longest < found[-1][0]:
                found.append((longest, total, tiling))
        return found

    def _padded(self, latent: F32) -> tuple[F32, tuple[int, int]]:
        """At least the smallest size: the last frame repeated, edges on both sides (§5.1)."""
        need = [
            max(0, least - size)
            for least, size in zip(self.options.min_latent_cells, latent.shape[2:], strict=True)
        ]
        top, left = need[1] // 2, need[2] // 2
        sides = ((0, need[0]), (top, need[1] - top), (left, need[2] - left))
        return np.pad(latent, ((0, 0), (0, 0), *sides), mode="edge"), (top, left)

    def _intervals(self, tiling: AxisTiling, axis: int, length: int) -> tuple[Interval, ...]:
        """Tiles of an axis in feature cells; a last one that is too short grows to the left."""
        tiles = list(tiling.split(length, self.options.feature_factors[axis]))
        least = self.options.min_feature_cells[axis]
        if len(tiles) > 1 and tiles[-1].stop - tiles[-1].start < least:
            before, last = tiles[-2:]
            start = last.stop - least
            shared = before.stop - start
            tiles[-2:] = [before._replace(right=shared), last._replace(start=start, left=shared)]
        return tuple(tiles)

    def tiles(
        self, tiling: TilingConfig, cells: Cells
    ) -> tuple[tuple[AxisTile, ...], tuple[AxisTile, ...], tuple[AxisTile, ...]]:
        """Tiles of a grid of `feature_cells` along its axes.

        Raises:
            ShapeError: the tiling is not valid, or its tiles are too small for the networks.
        """
        factors = self.options.feature_factors
        resolved = tiling.resolved(cells, factors)
        resolved.check(factors)
        axes, problems = [], []
        for axis, split in enumerate((resolved.frames, resolved.height, resolved.width)):
            factor, halo = factors[axis], self.options.halo_feature_cells[axis]
            tiles = self._intervals(split, axis, cells[axis])
            overlap = min((t.left for t in tiles[1:]), default=halo)
            if overlap < halo:
                problems.append(
                    f"{AXES[axis]}: an overlap of {overlap * factor} is below the {halo * factor} "
                    "this decoder needs"
                )
            shortest = min(t.stop - t.start for t in tiles)
            if shortest < self.options.min_feature_cells[axis]:
                problems.append(
                    f"{AXES[axis]}: a tile of {shortest * factor} is below the "
                    f"{self.options.min_feature_cells[axis] * factor} this decoder needs"
                )
            axes.append(normalized([_pixel_tile(t, factor, temporal=axis == 0) for t in tiles]))
        if problems:
            raise ShapeError("The tiling is not valid", problems)
        return axes[0], axes[1], axes[2]

    def _check_memory(self, axes: Sequence[Sequence[AxisTile]]) -> None:
        facts = self.options
        frames, rows, columns = (max(t.target.stop - t.target.start for t in a) for a in axes)
        width = columns // facts.patch_size + 2 * facts.border_patches
        patches = frames * (rows // facts.patch_size) * width
        needed = LIVE_ARRAYS * 4 * facts.pixel_channels * patches
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > memory:
            raise UnsupportedError(
                f"decoding {frames} frames of {columns}x{rows} in one piece takes about "
                f"{needed / 2**30:.0f} GiB of memory and this machine has {memory / 2**30:.0f} GiB "
                "(use tiling='auto', or a smaller or shorter clip)."
            )

    def _stream(
        self,
        padded: F32,
        cells: Cells,
        axes: tuple[Sequence[AxisTile], Sequence[AxisTile], Sequence[AxisTile]],
        draw: Draw,
        progress: Progress | None,
    ) -> Iterator[F32]:
        facts = self.options
        ghosts = np.repeat(padded[:, :, -1:], facts.ghost_frames, axis=2)
        whole = np.ascontiguousarray(np.concatenate([padded, ghosts], axis=2), np.float32)
        features = self._features({"video_latent": whole})["features"]
        canvas: F32 | None = None
        if facts.steps > 1 or facts.prediction == "v":
            size = (axes[i][-1].target.stop for i in range(3))
            canvas = draw((1, 3, *size))

        def run(group: AxisTile, row: AxisTile, column: AxisTile) -> F32:
            at_end = group.source.stop == cells[0]
            frames = slice(group.source.start, None if at_end else group.source.stop)
            tile = np.ascontiguousarray(features[:, frames, row.source, column.source])
            context = self._context({"features": tile})["context"]
            first = facts.feature_stride[0] - 1 if group.source.start == 0 else 0
            count = group.target.stop - group.target.start
            context = np.ascontiguousarray(context[:, first : first + count])
            if canvas is None:
                sizes = [t.target.stop - t.target.start for t in (group, row, column)]
                noise = draw((1, 3, *sizes))
            else:
                noise = canvas[:, :, group.target, row.target, column.target]
            return self._denoise(noise, context)

        yield from blend_tiles(axes, run, progress)

    def _denoise(self, noise: F32, context: F32) -> F32:
        """Noise `[B, 3, F, H, W]` to pixels, about [-1, 1] (§6)."""
        facts = self.options
        patches = patchify(noise, facts.patch_size)
        times = np.linspace(1, 1 / facts.steps, facts.steps, dtype=np.float32)
        for time, after in zip(times, [*times[1:], np.float32(0)], strict=True):
            found = self._pixels(
                {
                    "noisy_patches": patches,
                    "context": context,
                    "timestep": np.full(len(patches), time, np.float32),
                }
            )["predicted_patches"]
            if facts.prediction == "x0" and after == 0:
                patches = found
            else:
                velocity = (patches - found) / time if facts.prediction == "x0" else found
                patches = patches - (time - after) * velocity
        return unpatchify(patches, facts.patch_size)


def patchify(video: F32, size: int) -> F32:
    """Pixels `[B, C, F, H, W]` -> `[B, F, H/s, W/s, C*s*s]`, channels c*s^2 + column*s + row."""
    batch, channels, frames, height, width = video.shape
    cells = video.reshape(batch, channels, frames, height // size, size, width // size, size)
    packed = cells.transpose(0, 2, 3, 5, 1, 6, 4)
    return np.ascontiguousarray(packed.reshape(*packed.shape[:4], -1))


def unpatchify(patches: F32, size: int) -> F32:
    """Exact inverse of `patchify`."""
    batch, frames, rows, columns, channels = patches.shape
    cells = patches.reshape(batch, frames, rows, columns, channels // size**2, size, size)
    return np.ascontiguousarray(
        cells.transpose(0, 4, 1, 2, 6, 3, 5).reshape(batch, -1, frames, rows * size, columns * size)
    )


def _pixel_tile(interval: Interval, factor: int, *, temporal: bool) -> AxisTile:
    """Feature cells -> pixels or frames. In time the clip's first cell gives one frame (§7)."""
    start, stop, left, right = interval
    shift = factor - 1 if temporal else 0
    target = slice(max(factor * start - shift, 0), factor * stop - shift)
    weights = trapezoid(target.stop - target.start, factor * left, factor * right)
    return AxisTile(slice(start, stop), target, weights)
