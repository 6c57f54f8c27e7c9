"""Splitting a video latent into overlapping tiles, and the weights that blend them.

Exact behaviour: spec/media_io.md §5 and spec/video_vae.md §7.

Intervals are in latent cells; the pixels of a tile and its weights follow from them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from ltx2rt.engine import F32
from ltx2rt.errors import Field, InternalError, OptionError, Problem, ShapeError
from ltx2rt.latents.shapes import VIDEO_SCALE_FACTORS, VideoScaleFactors

Weights = F32

#: The library's default and the pipelines' `auto` share these: frames and pixels.
DEFAULT_FRAMES = (80, 24)
DEFAULT_SIDE = (768, 64)
#: Smallest overlaps a tiled encode may use (spec/media_io.md §5.3).
MIN_ENCODE_OVERLAP = VideoScaleFactors(16, 64, 64)
#: Summed weights closer to one than this are not divided out.
SUM_TOLERANCE = 1e-5
AXES = ("frames", "height", "width")


class Interval(NamedTuple):
    """Cells `[start, stop)` and the lengths of the two blending ramps, in cells."""

    start: int
    stop: int
    left: int
    right: int


def split_by_size(length: int, size: int, overlap: int) -> tuple[Interval, ...]:
    """Cover `length` cells by intervals of `size` that share `overlap`; the last may be shorter.

    Raises:
        ShapeError: `overlap` is not smaller than `size`.
    """
    if length <= size:
        return (Interval(0, length, 0, 0),)
    if not 0 <= overlap < size:
        raise ShapeError(f"An overlap of {overlap} cells does not fit tiles of {size} cells.")
    step = size - overlap
    count = -(-(length - overlap) // step)
    return tuple(
        Interval(
            i * step,
            length if i == count - 1 else i * step + size,
            overlap if i else 0,
            overlap if i < count - 1 else 0,
        )
        for i in range(count)
    )


def split_by_count(length: int, count: int, overlap: int) -> tuple[Interval, ...]:
    """Cover `length` cells by `count` intervals that share `overlap`; the first take the remainder.

    Raises:
        ShapeError: fewer cells than tiles, or tiles would be no longer than their overlap.
    """
    if count > length:
        raise ShapeError(
            f"Cannot split {length} cells into {count} tiles; at most {length} are possible."
        )
    size, remainder = divmod(length + overlap * (count - 1), count)
    if count > 1 and size <= overlap:
        raise ShapeError(
            f"Splitting {length} cells into {count} tiles gives {size} cells each, not more than "
            f"the overlap of {overlap}; use fewer tiles or a smaller overlap."
        )
    intervals = []
    for i in range(count):
        start = i * (size - overlap) + min(i, remainder)
        stop = start + size + (1 if i < remainder else 0)
        intervals.append(
            Interval(start, stop, overlap if i else 0, overlap if i < count - 1 else 0)
        )
    return tuple(intervals)


def causal(intervals: Sequence[Interval]) -> tuple[Interval, ...]:
    """Temporal variant: all but the first start one cell earlier; that cell is blended away.

    The first cell of a tile decodes to one frame instead of eight, so its result is of no use.
    """
    return tuple(
        interval
        if i == 0
        else Interval(interval.start - 1, interval.stop, interval.left + 1, interval.right)
        for i, interval in enumerate(intervals)
    )


def trapezoid(length: int, left: int, right: int, *, from_zero: bool = False) -> Weights:
    """Weights `[length]`: ramps up over `left`, down over `right` entries, ones between.

    Ramps exclude 0 and 1; with `from_zero` the left one starts at exactly 0.
    """
    weights = np.ones(length, np.float32)
    ramp_up = np.linspace(0, 1, left + 1)[:-1] if from_zero else np.linspace(0, 1, left + 2)[1:-1]
    weights[:left] *= ramp_up.astype(np.float32)
    if right:
        weights[-right:] *= np.linspace(1, 0, right + 2)[1:-1].astype(np.float32)
    return weights


@dataclass(frozen=True, slots=True)
class AxisTile:
    """One tile along one axis: what is read, where its result goes, and its blending weights.

    `source` are latent cells when decoding and pixels when encoding, `target` the other;
    `weights` has one entry per entry of `target`.
    """

    source: slice
    target: slice
    weights: Weights = field(compare=False)


def decode_tile(interval: Interval, factor: int, *, temporal: bool) -> AxisTile:
    """Latent cells -> pixels or frames of a tile that is decoded as a clip of its own."""
    start, stop, left, right = interval
    pixels = _pixels(interval, factor, temporal=temporal)
    if temporal:
        left = 1 + factor * (left - 1) if left else 0
    else:
        left *= factor
    weights = trapezoid(pixels.stop - pixels.start, left, factor * right, from_zero=temporal)
    return AxisTile(slice(start, stop), pixels, weights)


def encode_tile(interval: Interval, factor: int, *, temporal: bool) -> AxisTile:
    """Pixels or frames -> latent cells of a tile that is encoded as a clip of its own."""
    start, stop, left, right = interval
    weights = trapezoid(stop - start, left, right, from_zero=temporal)
    return AxisTile(_pixels(interval, factor, temporal=temporal), slice(start, stop), weights)


def _pixels(interval: Interval, factor: int, *, temporal: bool) -> slice:
    stop = 1 + factor * (interval.stop - 1) if temporal else factor * interval.stop
    return slice(factor * interval.start, stop)


def normalized(tiles: Sequence[AxisTile]) -> tuple[AxisTile, ...]:
    """Divide weights by their sum over tiles wherever ramps do not complement each other.

    The weight of a tile is a product over axes, so the sum over tiles is the product of sums.
    """
    total = np.zeros(max(t.target.stop for t in tiles), np.float32)
    for tile in tiles:
        total[tile.target] += tile.weights
    if np.abs(total - 1).max() <= SUM_TOLERANCE:
        return tuple(tiles)
    total = np.maximum(total, np.float32(1e-8))
    return tuple(
        replace(t, weights=(t.weights / total[t.target]).astype(np.float32)) for t in tiles
    )


def refine_tiles(
    cells: Sequence[int], counts: Sequence[int], overlaps: Sequence[int]
) -> list[tuple[AxisTile, ...]]:
    """Tiles along each axis of a latent that is refined tile by tile; source and target are the
    same cells.

    Args:
        cells: of the latent: frames, height, width.
        counts: tiles along each axis; an axis with fewer cells stays in one piece.
        overlaps: cells shared by neighbours, fewer where the axis is too short for them.
    """
    axes = []
    for length, count, overlap in zip(cells, counts, overlaps, strict=True):
        if length < count:
            count = 1
        tiles = []
        for interval in split_by_count(length, count, min(overlap, length - count)):
            where = slice(interval.start, interval.stop)
            size = interval.stop - interval.start
            tiles.append(AxisTile(where, where, trapezoid(size, interval.left, interval.right)))
        axes.append(normalized(tiles))
    return axes


@dataclass(frozen=True, slots=True)
class AxisTiling:
    """How one axis is split: into tiles of `size` frames or pixels (0: untiled), or into `count`.

    `overlap` is in frames or pixels when splitting by size, in latent cells by count.
    """

    size: int = 0
    overlap: int = 0
    count: int = 0

    def problems(self, axis: str, factor: int) -> list[str]:
        """What is wrong with these numbers for an axis of `factor` pixels (or frames) per cell."""
        found = []
        if self.count < 0 or self.size < 0 or self.overlap < 0:
            found.append(f"{axis}: tile numbers must not be negative")
        elif self.count and self.size:
            found.append(
                f"{axis}: give a tile size ({self.size}) or count ({self.count}), not both"
            )
        elif self.size:
            if self.size < 2 * factor or self.size % factor:
                found.append(
                    f"{axis}: a tile size of {self.size} is not a multiple of {factor} "
                    f"and at least {2 * factor}"
                )
            if self.overlap % factor:
                found.append(f"{axis}: an overlap of {self.overlap} is not a multiple of {factor}")
            if self.overlap >= self.size:
                found.append(
                    f"{axis}: an overlap of {self.overlap} is not smaller than the tile size "
                    f"{self.size}"
                )
        return found

    def split(self, length: int, factor: int) -> tuple[Interval, ...]:
        """Intervals over `length` latent cells."""
        if self.count:
            return split_by_count(length, self.count, self.overlap)
        if not self.size:
            return (Interval(0, length, 0, 0),)
        overlap = self.overlap // factor
        return split_by_size(length, max(2, overlap + 1, self.size // factor), overlap)


@dataclass(frozen=True, slots=True, kw_only=True)
class TilingConfig:
    """How a video is split for the VAE. The default of each axis is untiled.

    With `by_aspect`, sizes of height and width are those of the long side; see `resolved`.
    """

    frames: AxisTiling = AxisTiling()
    height: AxisTiling = AxisTiling()
    width: AxisTiling = AxisTiling()
    by_aspect: bool = False

    @classmethod
    def default(cls) -> TilingConfig:
        """The library default: frames 80/24, both sides 768/64."""
        side = AxisTiling(*DEFAULT_SIDE)
        return cls(frames=AxisTiling(*DEFAULT_FRAMES), height=side, width=side)

    @classmethod
    def none(cls) -> TilingConfig:
        """Untiled."""
        return cls()

    @classmethod
    def auto(cls) -> TilingConfig:
        """The pipelines' default: frames 80/24 and a 768-pixel long side, shared by aspect."""
        side = AxisTiling(*DEFAULT_SIDE)
        return cls(frames=AxisTiling(*DEFAULT_FRAMES), height=side, width=side, by_aspect=True)

    @classmethod
    def parse(cls, text: str) -> TilingConfig:
        """`auto`, `none`, `SIDExFRAMES[:OVERLAPxOVERLAP]`: tiles of SIDE pixels in height and width
        and of FRAMES frames, 0 for an axis that is not split; or one number an axis,
        `WIDTHxHEIGHTxFRAMES[:OVERLAPxOVERLAPxOVERLAP]`. Overlaps are 64 pixels and 24 frames if
        left out.

        Raises:
            OptionError: it is none of these.
        """
        if text in ("auto", "none"):
            return cls.auto() if text == "auto" else cls.none()
        number = "([0-9]{1,5})"
        more = f"{number}x{number}(?:x{number})?"
        match = re.fullmatch(f"{more}(?::{more})?", text)
        numbers = [None if n is None else int(n) for n in match.groups()] if match else []
        sizes = [n for n in numbers[:3] if n is not None]
        overlaps = [n for n in numbers[3:] if n is not None]
        if match is None or len(overlaps) not in (0, len(sizes)):
            raise OptionError(
                Problem(
                    Field("tiling"),
                    f"={text[:40]!r}; allowed: auto, none, SIDExFRAMES, WIDTHxHEIGHTxFRAMES, or "
                    "one of these with overlaps, examples: 512x64:64x24, 768x512x80:160x160x40",
                )
            )
        if not any(sizes):
            raise OptionError(Problem(Field("tiling"), f"={text} splits nothing; say none"))
        side, frames = DEFAULT_SIDE[1], DEFAULT_FRAMES[1]
        overlaps = overlaps or ([side, frames] if len(sizes) == 2 else [side, side, frames])
        axes = [AxisTiling(n, o if n else 0) for n, o in zip(sizes, overlaps, strict=True)]
        return cls(width=axes[0], height=axes[-2], frames=axes[-1])

    def text(self) -> str:
        """What `parse` reads as this tiling, which splits by size.

        Raises:
            InternalError: it splits by count.
        """
        if self == TilingConfig.auto():
            return "auto"
        if self == TilingConfig.none():
            return "none"
        axes = [self.width, self.height, self.frames]
        if self.by_aspect or any(a.count for a in axes):
            raise InternalError(f"no text names the tiling {self}")
        axes = axes[1:] if self.width == self.height else axes
        return ":".join(
            "x".join(str(n) for n in numbers)
            for numbers in ([a.size for a in axes], [a.overlap for a in axes])
        )

    def resolved(
        self, cells: Sequence[int], scale_factors: VideoScaleFactors = VIDEO_SCALE_FACTORS
    ) -> TilingConfig:
        """Fix the sides for a latent of `cells` = (frames, height, width), if they go by aspect.

        A side's tile is its share of the long side's, rounded half to even, in whole cells.
        """
        if not self.by_aspect:
            return self
        sides = []
        for tiling, length, factor in zip(
            (self.height, self.width), cells[1:], scale_factors[1:], strict=True
        ):
            overlap = tiling.overlap // factor
            share = round(tiling.size // factor * length / max(cells[1:]))
            sides.append(AxisTiling(max(overlap + 1, 2, share) * factor, overlap * factor))
        return TilingConfig(frames=self.frames, height=sides[0], width=sides[1])

    def check(self, scale_factors: VideoScaleFactors, *, encode: bool = False) -> None:
        """Check sizes and overlaps against the VAE's factors.

        Raises:
            ShapeError: lists every problem.
        """
        problems = []
        for axis, tiling, factor, least in zip(
            AXES, self._axes, scale_factors, MIN_ENCODE_OVERLAP, strict=True
        ):
            problems += tiling.problems(axis, factor)
            # as upstream: tiles by count may share fewer cells
            if encode and tiling.size and tiling.overlap < least:
                problems.append(
                    f"{axis}: an overlap of {tiling.overlap} is below the {least} a tiled encode "
                    "needs"
                )
        if problems:
            raise ShapeError("The tiling is not valid", problems)

    @property
    def _axes(self) -> tuple[AxisTiling, AxisTiling, AxisTiling]:
        return (self.frames, self.height, self.width)

    def tiles(
        self,
        cells: Sequence[int],
        scale_factors: VideoScaleFactors = VIDEO_SCALE_FACTORS,
        *,
        encode: bool = False,
    ) -> tuple[tuple[AxisTile, ...], tuple[AxisTile, ...], tuple[AxisTile, ...]]:
        """Tiles along the axes of a latent of `cells` = (frames, height, width) cells.

        Weights of overlapping tiles sum to one.

        Raises:
            ShapeError: the tiling is not valid, or does not fit the latent.
        """
        config = self.resolved(cells, scale_factors)
        config.check(scale_factors, encode=encode)
        make: Callable[..., AxisTile] = encode_tile if encode else decode_tile
        result = []
        for axis, tiling in enumerate(config._axes):
            factor, temporal = scale_factors[axis], axis == 0
            intervals = tiling.split(cells[axis], factor)
            if temporal:
                intervals = causal(intervals)
            result.append(normalized([make(i, factor, temporal=temporal) for i in intervals]))
        return result[0], result[1], result[2]
