"""Tiles of stage 2, for pictures that are larger than what a model or a card can do at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ltx2rt.errors import InternalError
from ltx2rt.latents.conditioning import (
    ConditioningItem,
    Keyframe,
    ReferenceVideo,
    Remade,
    ReplaceLatent,
)
from ltx2rt.latents.tiling import AxisTile, refine_tiles

#: cells that neighbours share, fewer in small tiles
OVERLAP = 6

Tile = Sequence[AxisTile]


def spatial_tiles(cells: Sequence[int], most: Sequence[int]) -> list[tuple[AxisTile, ...]]:
    """The fewest tiles along time (one), height and width, none larger than so many cells.

    Args:
        cells: of the latent: frames, height, width.
        most: height and width of a tile, in cells.
    """
    counts, overlaps = [1], [0]
    for length, size in zip(cells[1:], most, strict=True):
        overlap = min(OVERLAP, size // 2)
        count = 1 if length <= size else -(-(length - overlap) // (size - overlap))
        counts.append(count)
        overlaps.append(overlap)
    return refine_tiles(cells, counts, overlaps)


def cut_to_tile(item: ConditioningItem, tile: Tile) -> ConditioningItem:
    """The part of an item that lies in a tile, which is as long as the clip."""
    _, rows, columns = (axis.source for axis in tile)
    match item:
        case ReplaceLatent() | Keyframe():
            return replace(item, latent=item.latent[..., rows, columns])
        case ReferenceVideo():
            sides = [
                slice(s.start // item.downscale, s.stop // item.downscale) for s in (rows, columns)
            ]
            return replace(item, latent=item.latent[..., sides[0], sides[1]])
        case Remade():
            cells = item.cells
            return replace(item, cells=None if cells is None else cells[..., rows, columns])
    raise InternalError(f"{type(item).__name__} cannot be cut to a tile")


def latent_box(time: slice, rows: slice, columns: slice) -> tuple[slice, ...]:
    """The index of a part of a latent `[B, C, F, H, W]`."""
    return (slice(None), slice(None), time, rows, columns)
