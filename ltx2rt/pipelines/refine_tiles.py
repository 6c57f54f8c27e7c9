"""Stage 2 in overlapping tiles, for pictures that are larger than what a model or a card can do at
once: every tile has positions of its own, as in training, and noise of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from ltx2rt.components.diffusion_stage import ModalityRequest
from ltx2rt.components.text_encoder import TextContext
from ltx2rt.engine import Array
from ltx2rt.errors import InternalError
from ltx2rt.latents.conditioning import (
    ConditioningItem,
    Keyframe,
    ReferenceVideo,
    ReplaceLatent,
)
from ltx2rt.latents.shapes import AudioLatentShape
from ltx2rt.latents.tiling import AxisTile, refine_tiles
from ltx2rt.lora.files import Lora
from ltx2rt.sampling.noise import TorchGenerator
from ltx2rt.sampling.samplers import Sampler

if TYPE_CHECKING:
    from ltx2rt.pipelines.generation import Run

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


def refine_in_tiles(
    run: Run,
    upsampled: Array,
    axes: Sequence[Sequence[AxisTile]],
    sigmas: Sequence[float],
    context: TextContext,
    loras: Sequence[Lora],
    items: Callable[[Tile], Sequence[ConditioningItem]],
    audio: ModalityRequest[AudioLatentShape] | None,
    sampler: Sampler = "euler",
) -> Array:
    """Refine a latent `[1, C, F, H, W]` tile by tile and blend; kept as `stage_2.video`.

    Args:
        axes: tiles along time, height and width.
        sigmas: noise levels.
        items: conditioning of a tile.
        audio: what every tile hears, frozen; None: nothing.
    """
    result = np.zeros_like(upsampled)
    for index, tile in enumerate(product(*axes)):
        box = latent_box(*(axis.source for axis in tile))
        refined = run.stage(
            f"stage_2_tile_{index + 1}",
            sigmas,
            context,
            loras,
            video=run.video_part(upsampled[box], noise_scale=sigmas[0], items=items(tile)),
            audio=audio,
            overrides=run.stage_2_overrides,
            sampler=sampler,
            generator=TorchGenerator(run.config.seed + index),
        )
        assert refined.video is not None
        time, row, column = (axis.weights for axis in tile)
        result[box] += refined.video * (time[:, None, None] * row[:, None] * column)
    run.latents["stage_2.video"] = result
    return result


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
    raise InternalError(f"{type(item).__name__} cannot be cut to a tile")


def latent_box(time: slice, rows: slice, columns: slice) -> tuple[slice, ...]:
    """The index of a part of a latent `[B, C, F, H, W]`."""
    return (slice(None), slice(None), time, rows, columns)
