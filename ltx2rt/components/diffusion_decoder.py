"""Decode video latents with a diffusion decoder: features of the clip, then pixels by tiles.

Padding, ghost frames, noise, steps, tiles and blending are here; the networks are three engines
(spec/diffusion_decoder.md §5 to §7).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ltx2rt.components.decoder_tiles import (
    HOST_ITEM,
    Axes,
    Cells,
    DecoderOptions,
    decode_bytes,
    decoder_tiles,
    feature_cells,
)
from ltx2rt.components.video_decoder import Progress, blend_tiles, unit_frames
from ltx2rt.engine import F32, Engine
from ltx2rt.errors import ShapeError, UnsupportedError
from ltx2rt.latents.tiling import AxisTile, TilingConfig
from ltx2rt.machine import machine_bytes

Draw = Callable[[Sequence[int]], F32]


class Layout(NamedTuple):
    """How a latent is decoded.

    Attributes:
        latent: padded to the smallest size, with ghost frames.
        cells: of the features, without ghost frames; tiles are cut from them.
        axes: these tiles.
        frames, rows, columns: the part of the decoded pixels that is the clip.
    """

    latent: F32
    cells: Cells
    axes: Axes
    frames: int
    rows: slice
    columns: slice


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
        self.engines = features, context, pixels
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
            tiling: how to split; None decodes in one piece, `decoder_tiles.auto_tiling` bounds
                memory.
            progress: called with (tiles done, tiles in all) after every tile; may raise to cancel.

        Yields:
            `[f, H, W, 3]` float32 in [0, 1], consecutive frames of the clip.

        Raises:
            ShapeError: the latent is not one clip, or the tiling does not fit it.
            UnsupportedError: a tile needs more memory than the machine has.
        """
        layout = self.layout(latent, tiling)
        self._check_memory(layout.cells, layout.axes)
        frames = layout.frames
        for video in self._stream(layout, draw, progress):
            chunk = video[:, :, :frames, layout.rows, layout.columns]
            frames -= chunk.shape[2]
            if chunk.shape[2]:
                yield unit_frames(chunk)

    def layout(self, latent: F32, tiling: TilingConfig | None = None) -> Layout:
        """Padding, ghost frames (§5) and tiles of one clip.

        Raises:
            ShapeError: the latent is not one clip, or the tiling does not fit it.
        """
        if latent.ndim != 5 or latent.shape[0] != 1:
            raise ShapeError(
                f"The video decoder takes one clip [1, C, F, H, W], not {list(latent.shape)}."
            )
        padded, (top, left) = self._padded(latent)
        cells = feature_cells(self.options, padded.shape[2:])
        scale = self.options.scale_factors
        ghosts = np.repeat(padded[:, :, -1:], self.options.ghost_frames, axis=2)
        return Layout(
            latent=np.ascontiguousarray(np.concatenate([padded, ghosts], axis=2), np.float32),
            cells=cells,
            axes=decoder_tiles(self.options, tiling or TilingConfig.none(), cells),
            frames=(latent.shape[2] - 1) * scale.time + 1,
            rows=slice(top * scale.height, (top + latent.shape[3]) * scale.height),
            columns=slice(left * scale.width, (left + latent.shape[4]) * scale.width),
        )

    @property
    def takes_one_step(self) -> bool:
        """Whether the network's answer to noise is the picture: no step follows."""
        return self.options.steps == 1 and self.options.prediction == "x0"

    def _padded(self, latent: F32) -> tuple[F32, tuple[int, int]]:
        """At least the smallest size: the last frame repeated, edges on both sides (§5.1)."""
        need = [
            max(0, least - size)
            for least, size in zip(self.options.min_latent_cells, latent.shape[2:], strict=True)
        ]
        top, left = need[1] // 2, need[2] // 2
        sides = ((0, need[0]), (top, need[1] - top), (left, need[2] - left))
        return np.pad(latent, ((0, 0), (0, 0), *sides), mode="edge"), (top, left)

    def _check_memory(self, cells: Cells, axes: Axes) -> None:
        facts = self.options
        if facts.tile_bytes:
            return  # a device: its engines were built for their tiles
        tile = tuple(max(t.source.stop - t.source.start for t in a) for a in axes)
        needed, memory = decode_bytes(facts, cells, tile, HOST_ITEM), machine_bytes()
        if needed > memory:
            size = [n * f for n, f in zip(tile, facts.feature_factors, strict=True)]
            raise UnsupportedError(
                f"decoding tiles of {size[0]} frames of {size[2]}x{size[1]} takes about "
                f"{needed / 2**30:.0f} GiB of memory and this machine has {memory / 2**30:.0f} GiB "
                "(use tiling='auto', or a smaller or shorter clip)."
            )

    def _stream(self, layout: Layout, draw: Draw, progress: Progress | None) -> Iterator[F32]:
        facts, cells, axes = self.options, layout.cells, layout.axes
        features = self._features({"video_latent": layout.latent})["features"]
        canvas: F32 | None = None
        if not self.takes_one_step:
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
