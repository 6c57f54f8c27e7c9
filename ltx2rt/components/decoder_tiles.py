"""Tiles of a diffusion decoder: which are possible, and which are chosen for a memory.

Cells are those of the features: `feature_stride` frames and patches each
(spec/diffusion_decoder.md §7).
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from itertools import product
from typing import Any, NamedTuple

from ltx2rt.errors import BundleError, ShapeError
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
from ltx2rt.machine import machine_bytes

Cells = tuple[int, int, int]
Axes = tuple[tuple[AxisTile, ...], tuple[AxisTile, ...], tuple[AxisTile, ...]]

#: arrays of one patch's width that are alive at once while pixels are denoised
LIVE_ARRAYS = 14

#: of a memory, what weights (1.6 GiB in float32 as published) and everything else take
RESERVED_BYTES = 3 << 30

#: what automatic tiles may take of a GPU, where the build names no other number: one tile of
#: 768x512x121
DEVICE_BYTES = 24 << 30

#: bytes of a number where a decoder runs: on a CPU, in the engines of a GPU
HOST_ITEM, DEVICE_ITEM = 4, 2

#: steps in frames and pixels in which automatic tiles grow
AUTO_STEPS = (8, 32, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderOptions:
    """Facts about the networks; the options of component `diffusion_features`.

    Attributes:
        scale_factors: pixels per latent cell.
        latent_channels, patch_size, pixel_channels: of the latent, of patches, of the pixel stage.
        border_patches: columns that the pixel stage adds on both sides of the width.
        feature_channels: width of a feature cell.
        steps, prediction: of the diffusion; `x0` or `v`.
        ghost_frames: latent frames appended before decoding.
        min_latent_cells: smaller latents are padded.
        feature_stride: frames and patches per feature cell.
        min_feature_cells, halo_feature_cells: smallest tile and smallest overlap.
        tile_bytes: device memory that automatic tiles may take, in the engines' 16 bits; 0: this
            machine's memory, in float32.
    """

    scale_factors: VideoScaleFactors
    latent_channels: int
    patch_size: int
    pixel_channels: int
    border_patches: int
    feature_channels: int
    steps: int
    prediction: str
    ghost_frames: int
    min_latent_cells: tuple[int, ...]
    feature_stride: tuple[int, ...]
    min_feature_cells: tuple[int, ...]
    halo_feature_cells: tuple[int, ...]
    tile_bytes: int = 0

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> DecoderOptions:
        """Read what a bundle says.

        Raises:
            BundleError: facts are missing: another version built the bundle.
        """
        needed = [f.name for f in fields(cls) if f.default is MISSING]
        missing = [name for name in needed if name not in options]
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


def feature_cells(facts: DecoderOptions, latent_cells: Sequence[int]) -> Cells:
    """Feature cells of a latent, ghost frames left out: the grid that tiles are cut from. A latent
    below the smallest size is padded.
    """
    (time, rows, columns), stride = facts.scale_factors, facts.feature_factors
    frames, height, width = map(max, latent_cells, facts.min_latent_cells)
    return (
        (frames - 1) * time // stride.time + 1,
        height * rows // stride.height,
        width * columns // stride.width,
    )


def split_axis(
    facts: DecoderOptions, tiling: AxisTiling, axis: int, length: int
) -> tuple[Interval, ...]:
    """Tiles of an axis in feature cells; a last one that is too short grows to the left."""
    tiles = list(tiling.split(length, facts.feature_factors[axis]))
    least = facts.min_feature_cells[axis]
    if len(tiles) > 1 and tiles[-1].stop - tiles[-1].start < least <= length:
        before, last = tiles[-2:]
        start = last.stop - least
        shared = before.stop - start
        tiles[-2:] = [before._replace(right=shared), last._replace(start=start, left=shared)]
    return tuple(tiles)


def decoder_tiles(facts: DecoderOptions, tiling: TilingConfig, cells: Cells) -> Axes:
    """Tiles of a grid of `feature_cells` along its axes.

    Raises:
        ShapeError: the tiling is not valid, or its tiles are too small for the networks.
    """
    factors = facts.feature_factors
    resolved = tiling.resolved(cells, factors)
    resolved.check(factors)
    axes, problems = [], []
    for axis, split in enumerate((resolved.frames, resolved.height, resolved.width)):
        factor, halo = factors[axis], facts.halo_feature_cells[axis]
        tiles = split_axis(facts, split, axis, cells[axis])
        shortest = min(t.stop - t.start for t in tiles)
        if shortest < facts.min_feature_cells[axis]:
            problems.append(
                f"{AXES[axis]}: a tile of {shortest * factor} is below the "
                f"{facts.min_feature_cells[axis] * factor} this decoder needs"
            )
            continue
        overlap = min((t.left for t in tiles[1:]), default=halo)
        if overlap < halo:
            problems.append(
                f"{AXES[axis]}: an overlap of {overlap * factor} is below the {halo * factor} "
                "this decoder needs"
            )
        axes.append(normalized([_pixel_tile(t, factor, temporal=axis == 0) for t in tiles]))
    if problems:
        raise ShapeError("The tiling is not valid", problems)
    return axes[0], axes[1], axes[2]


def _pixel_tile(interval: Interval, factor: int, *, temporal: bool) -> AxisTile:
    """Feature cells -> pixels or frames. In time the clip's first cell gives one frame (§7)."""
    start, stop, left, right = interval
    shift = factor - 1 if temporal else 0
    target = slice(max(factor * start - shift, 0), factor * stop - shift)
    weights = trapezoid(target.stop - target.start, factor * left, factor * right)
    return AxisTile(slice(start, stop), target, weights)


def least_waste(facts: DecoderOptions, cells: Cells, fits: Callable[[Cells], bool]) -> TilingConfig:
    """Of the tilings whose tile fits, the one whose tiles overlap in the smallest share; then the
    one with the largest tiles, then with the fewest (spec/media_io.md §5.4). Where none fits, the
    smallest tiles.

    Args:
        facts: of the decoder.
        cells: the grid, see `feature_cells`.
        fits: whether a tile of so many cells along each axis has room; so has then a smaller one.
    """
    times, rows, columns = (_candidates(facts, axis, cells[axis]) for axis in range(3))
    best: tuple[tuple[float, int, int], tuple[AxisTiling, ...]] | None = None
    for time, row in product(times, rows):
        # the widest that fits overlaps least
        index = bisect(columns, False, key=lambda c: fits((time.size, row.size, c.size)))
        if index == len(columns):
            continue
        choice = (time, row, columns[index])
        waste = 1 - math.prod(1 - c.overlap for c in choice)
        rank = (waste, -math.prod(c.size for c in choice), math.prod(c.tiles for c in choice))
        if best is None or rank < best[0]:
            best = rank, tuple(c.tiling for c in choice)
    smallest = tuple(options[-1].tiling for options in (times, rows, columns))
    frames, height, width = best[1] if best else smallest
    return TilingConfig(frames=frames, height=height, width=width)


class _Candidate(NamedTuple):
    """A way to split an axis: cells of the longest tile, share of it that overlaps, tiles."""

    size: int
    overlap: float
    tiles: int
    tiling: AxisTiling


def _candidates(facts: DecoderOptions, axis: int, length: int) -> list[_Candidate]:
    """The whole axis, then ever smaller tiles."""
    factor, halo = facts.feature_factors[axis], facts.halo_feature_cells[axis]
    step = max(AUTO_STEPS[axis] // factor, 1)
    least = max(2 * halo, facts.min_feature_cells[axis], 2)
    found = [_Candidate(length, 0.0, 1, AxisTiling())]
    for size in range((length - 1) // step * step, least - 1, -step):
        tiling = AxisTiling(size * factor, halo * factor)
        count = len(split_axis(facts, tiling, axis, length))
        found.append(_Candidate(size, halo / size, count, tiling))
    return found


def decode_bytes(facts: DecoderOptions, cells: Cells, tile: Cells, item: int) -> int:
    """Memory that decoding takes besides weights, in bytes.

    Args:
        facts: of the decoder.
        cells: the grid, see `feature_cells`.
        tile: cells of the largest tile.
        item: bytes of a number.
    """
    frames, rows, columns = (n * s for n, s in zip(tile, facts.feature_stride, strict=True))
    patches = frames * rows * (columns + 2 * facts.border_patches)
    ghosts = facts.ghost_frames * facts.scale_factors.time // facts.feature_stride[0]
    features = (cells[0] + ghosts) * cells[1] * cells[2] * facts.feature_channels
    factors = facts.feature_factors
    # what is blended, and what of it the next group of frames overlaps
    blended = 2 * 3 * HOST_ITEM * frames * cells[1] * factors.height * cells[2] * factors.width
    return item * (LIVE_ARRAYS * facts.pixel_channels * patches + features) + blended


def auto_tiling(
    facts: DecoderOptions,
    latent_cells: Sequence[int],
    memory_bytes: int = 0,
    fits: Callable[[Cells], bool] = lambda tile: True,
) -> TilingConfig:
    """The tiles of least waste for a memory: a function of its arguments alone.

    Args:
        facts: of the decoder.
        latent_cells: frames, rows and columns of the latent.
        memory_bytes: of the machine; 0 asks it. Not used where `facts.tile_bytes` names what a
            device has.
        fits: whether a tile of so many cells along each axis is possible besides; so is then a
            smaller one.
    """
    cells = feature_cells(facts, latent_cells)
    if facts.tile_bytes:
        room, item = facts.tile_bytes, DEVICE_ITEM
    else:
        room, item = (memory_bytes or machine_bytes()) - RESERVED_BYTES, HOST_ITEM
    return least_waste(
        facts, cells, lambda tile: decode_bytes(facts, cells, tile, item) <= room and fits(tile)
    )
