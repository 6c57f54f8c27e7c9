"""What decodes the tiles of a clip to pixels on a device: a convolutional decoder, or a diffusion
decoder of one step.

`components.video_decoder` and `components.diffusion_decoder` are the twins on the host.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ltx2rt.backends.device_frames import Part
from ltx2rt.backends.device_memory import DeviceMemory, DeviceTensor, placed
from ltx2rt.backends.frame_memory import F32_BYTES, Axes
from ltx2rt.backends.tensorrt import TrtEngine
from ltx2rt.components.decoder_tiles import Cells, DecoderOptions
from ltx2rt.components.diffusion_decoder import Draw, Layout, patchify
from ltx2rt.device.arena import ALIGNMENT, Arena, aligned
from ltx2rt.device.device import Box
from ltx2rt.engine import F32, Array
from ltx2rt.latents.tiling import AxisTile

_F32 = np.dtype(np.float32)


class ConvolutionTiles:
    """Tiles of a convolutional decoder.

    Args:
        decoder: `video_latent` -> `video`, as `VideoDecoder` has it.
        latent: `[1, C, F', H', W']` float32, normalised.
        axes: tiles along frames, rows and columns.
    """

    def __init__(self, decoder: TrtEngine, latent: F32, axes: Axes) -> None:
        self.memory = decoder.memory
        self.axes = axes
        self.part: Part | None = None
        self._decoder = decoder
        self._latent = latent
        self._address = 0

    @property
    def held_bytes(self) -> int:
        """Of the latent of the largest tile."""
        channels: int = self._latent.shape[1]
        return channels * math.prod(_longest(self.axes)) * F32_BYTES

    def begin(self, address: int) -> None:
        """See `device_frames.Tiles`."""
        self._address = address

    def decode(self, group: AxisTile, row: AxisTile, column: AxisTile, to: int) -> None:
        """See `device_frames.Tiles`."""
        tile = self._latent[:, :, group.source, row.source, column.source]
        feeds = {"video_latent": _sent(self.memory, tile, self._address)}
        _run(self._decoder, feeds, {"video": to}, "a tile")


def diffusion_blocks(
    facts: DecoderOptions, latent_bytes: int, cells: Cells, tile: Cells
) -> dict[str, int]:
    """Name -> bytes of what a diffusion decoder holds while it decodes a clip.

    Args:
        latent_bytes: of the latent, padded, with ghost frames.
        cells: of the whole features, ghost frames included.
        tile: cells of the largest tile of them, ghost frames included.
    """
    patches = math.prod(n * s for n, s in zip(tile, facts.feature_stride, strict=True))
    width = 3 * facts.patch_size**2
    return {
        "latent": latent_bytes,
        "features": math.prod(cells) * facts.feature_channels * F32_BYTES,
        "tile": math.prod(tile) * facts.feature_channels * F32_BYTES,
        "context": patches * facts.pixel_channels * F32_BYTES,
        "noisy": patches * width * F32_BYTES,
        "predicted": patches * width * F32_BYTES,
        "timestep": ALIGNMENT,
    }


class DiffusionTiles:
    """Tiles of a diffusion decoder that takes one step to its estimate (spec/diffusion_decoder.md
    §5 to §7). Features of the whole clip stay on the device; only noise goes up.

    Args:
        engines: of the three components.
        unpatch: engine of the device graph that puts patches together.
        facts: of the decoder.
        layout: of the clip.
        draw: gives standard normal noise of a shape, a tile after another.
    """

    def __init__(
        self,
        engines: tuple[TrtEngine, TrtEngine, TrtEngine],
        unpatch: TrtEngine,
        facts: DecoderOptions,
        layout: Layout,
        draw: Draw,
    ) -> None:
        self._features, self._context, self._pixels = engines
        self._unpatch = unpatch
        self.memory = self._features.memory
        self.axes = axes = layout.axes
        self.part: Part | None = (layout.frames, layout.rows, layout.columns)
        self._facts = facts
        self._latent, self._cells = layout.latent, layout.cells
        self._draw = draw
        cells = layout.cells
        ghosts = facts.ghost_frames * facts.scale_factors.time // facts.feature_stride[0]
        self._whole = cells[0] + ghosts, cells[1], cells[2]
        longest = _longest(axes)
        tile = longest[0] + ghosts, longest[1], longest[2]
        self._blocks = diffusion_blocks(facts, layout.latent.nbytes, self._whole, tile)
        self._at: Mapping[str, int] = {}

    @property
    def held_bytes(self) -> int:
        """See `device_frames.Tiles`."""
        return sum(map(aligned, self._blocks.values()))

    def begin(self, address: int) -> None:
        """See `device_frames.Tiles`: the features of the clip."""
        arena = Arena(address, self.held_bytes, "a diffusion decoder")
        self._at = {name: arena.take(size, name) for name, size in self._blocks.items()}
        _sent(self.memory, np.ones(1, np.float32), self._at["timestep"])
        feeds = {"video_latent": _sent(self.memory, self._latent, self._at["latent"])}
        _run(self._features, feeds, {"features": self._at["features"]}, "features")

    def decode(self, group: AxisTile, row: AxisTile, column: AxisTile, to: int) -> None:
        """See `device_frames.Tiles`."""
        features = self._cut(group, row, column)
        found = _run(
            self._context, {"features": features}, {"context": self._at["context"]}, "context"
        )
        first = self._facts.feature_stride[0] - 1 if group.source.start == 0 else 0
        sizes = [t.target.stop - t.target.start for t in (group, row, column)]
        context = self._from(found["context"], first, sizes[0])
        noise = patchify(self._draw((1, 3, *sizes)), self._facts.patch_size)
        feeds = {
            "noisy_patches": _sent(self.memory, noise, self._at["noisy"]),
            "context": context,
            "timestep": DeviceTensor((1,), _F32, self._at["timestep"]),
        }
        places = {"predicted_patches": self._at["predicted"]}
        predicted = _run(self._pixels, feeds, places, "a tile")
        patches = {"patches": predicted["predicted_patches"]}
        _run(self._unpatch, patches, {"pixels": to}, "patches to pixels")

    def _cut(self, group: AxisTile, row: AxisTile, column: AxisTile) -> DeviceTensor:
        """The features of a tile, with the ghosts after the last frame."""
        stop = self._whole[0] if group.source.stop == self._cells[0] else group.source.stop
        width = self._facts.feature_channels
        starts = group.source.start, row.source.start, column.source.start
        counts = (
            stop - group.source.start,
            row.source.stop - row.source.start,
            column.source.stop - column.source.start,
        )
        if counts == self._whole:
            return DeviceTensor((1, *counts, width), _F32, self._at["features"])
        cell = width * F32_BYTES
        line, own = self._whole[2] * cell, counts[2] * cell
        offset = ((starts[0] * self._whole[1] + starts[1]) * self._whole[2] + starts[2]) * cell
        source = Box(self._at["features"] + offset, line, self._whole[1] * line)
        target = Box(self._at["tile"], own, counts[1] * own)
        device = self.memory.device
        device.copy_box(target, source, own, counts[1], counts[0], device.compute)
        return DeviceTensor((1, *counts, width), _F32, self._at["tile"])

    def _from(self, context: DeviceTensor, first: int, count: int) -> DeviceTensor:
        """Frames of a context, moved to its beginning, where a tensor may begin."""
        shape = (1, count, *context.shape[2:])
        frame, device = math.prod(context.shape[2:]) * F32_BYTES, self.memory.device
        for start in range(0, count if first else 0, max(first, 1)):
            moved, to = min(first, count - start) * frame, context.address + start * frame
            device.copy_within(to, to + first * frame, moved, device.compute)
        return DeviceTensor(shape, context.dtype, context.address)


def _longest(axes: Axes) -> Cells:
    frames, rows, columns = (max(t.source.stop - t.source.start for t in axis) for axis in axes)
    return frames, rows, columns


def _sent(memory: DeviceMemory, array: Array, address: int) -> DeviceTensor:
    memory.staging.send(np.ascontiguousarray(array), address, memory.device.compute)
    return DeviceTensor(array.shape, array.dtype, address)


def _run(
    engine: TrtEngine, feeds: Mapping[str, DeviceTensor], places: Mapping[str, int], what: str
) -> dict[str, DeviceTensor]:
    """Enqueue an engine with its own weights."""
    outputs = engine.bind(feeds, placed(places))
    engine.bind_weights({})
    memory = engine.memory
    with memory.timeline.span(memory.device.compute, memory.track, what):
        engine.enqueue()
    return outputs
