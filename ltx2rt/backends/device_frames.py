"""Finished frames of a decoder on a device: tiles are blended and become bytes there, which come
down through a ring of pinned memory while the next tiles decode.

`components.video_decoder.blend_tiles` and `media.color` are the slow, obvious twins.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from ltx2rt.backends.device_memory import DeviceMemory, DeviceTensor, placed
from ltx2rt.backends.tensorrt import TrtEngine
from ltx2rt.device.arena import ALIGNMENT, Arena, aligned
from ltx2rt.device.device import Box, Event, Pinned
from ltx2rt.engine import F32, U8, Array
from ltx2rt.latents.tiling import AxisTile
from ltx2rt.media.color import ByteForm
from ltx2rt.trace import COMPUTE, DOWNLOAD

Axes = tuple[Sequence[AxisTile], Sequence[AxisTile], Sequence[AxisTile]]
Progress = Callable[[int, int], None]

#: frames that are finished and come down together
SLICE_FRAMES = 8
#: pinned buffers, of that many frames each
RING = 3
_F32 = np.dtype(np.float32)


class FrameSizes(NamedTuple):
    """What the memory of a decoding depends on: most frames, rows and columns of a tile, the most
    frames of tiles that begin together, the picture's rows and columns, and bytes of a tile's
    latent.
    """

    tile: tuple[int, int, int]
    frames: int
    height: int
    width: int
    latent_bytes: int

    @property
    def frame_bytes(self) -> int:
        """Of a frame as float32."""
        return 3 * self.height * self.width * _F32.itemsize

    @property
    def blocks(self) -> dict[str, int]:
        """Name -> bytes of what is held while a clip is decoded."""
        tile = math.prod(self.tile) * _F32.itemsize
        slices = -(-self.frames // SLICE_FRAMES)
        return {
            "canvas": self.frames * self.frame_bytes,
            "store": self.frames * self.frame_bytes // _F32.itemsize,
            "tile": 3 * tile,
            "piece": tile,
            "blended": tile,
            "latent": self.latent_bytes,
            "counts": slices * ALIGNMENT,
            "rounding": ALIGNMENT,
        }

    def bytes(self, axis_tiles: int) -> int:
        """All of them, with the weights of so many tiles along the three axes."""
        longest = max(self.frames, self.height, self.width) * _F32.itemsize
        return sum(map(aligned, self.blocks.values())) + axis_tiles * aligned(longest)


class DeviceFrames:
    """A convolutional video decoder whose frames are finished on its device.

    Args:
        decoder: `video_latent` -> `video`, as `VideoDecoder` has it.
        blend, rgb, i420: engines of the device graphs of these names.
    """

    def __init__(
        self, decoder: TrtEngine, blend: TrtEngine, rgb: TrtEngine, i420: TrtEngine
    ) -> None:
        self.decoder = decoder
        self.blend = blend
        self.finishers: Mapping[str, TrtEngine] = {"i420": i420, "rgb": rgb, "rgb_rounded": rgb}
        self.memory: DeviceMemory = decoder.memory

    def reason_against(self, latent: F32, axes: Axes) -> str | None:
        """Why these tiles have to be blended on the host, after all; None: they need not."""
        sizes = sizes_of(latent, axes)
        named = {"F": 1, "H": sizes.height, "W": sizes.width}
        if not any(b.holds(named) for b in self.finishers["i420"].buckets):
            return f"frames of {sizes.width}x{sizes.height} were not built for the device"
        planes = {len(r.weights) * len(c.weights) for r in axes[1] for c in axes[2]}
        if any(n * _F32.itemsize % ALIGNMENT for n in (*planes, sizes.height * sizes.width)):
            return "the channels of a tile do not begin where a tensor on the device may"
        needed, room = sizes.bytes(sum(map(len, axes))), self.memory.tensors.gap()
        if needed > room:
            return (
                f"the frames of tiles take {needed / 2**30:.2f} GiB of the device and "
                f"{room / 2**30:.2f} GiB are planned"
            )
        return None

    def frames(
        self, latent: F32, axes: Axes, form: ByteForm, progress: Progress | None = None
    ) -> Generator[tuple[U8, int]]:
        """Decode one clip, of which `reason_against` says nothing.

        Args:
            latent: `[1, C, F', H', W']` float32, normalised.
            axes: tiles along frames, rows and columns.
            progress: called with (tiles done, tiles in all) after every tile; may raise to cancel.

        Yields:
            consecutive frames as new arrays, and how many of the values behind them were NaN.
        """
        decoding = _Decoding(self, latent, axes, form)
        try:
            yield from decoding.run(progress)
        finally:
            decoding.close()


def sizes_of(latent: F32, axes: Axes) -> FrameSizes:
    """Sizes of a clip that is decoded in these tiles."""
    cells = [max(t.source.stop - t.source.start for t in axis) for axis in axes]
    tile = [max(t.target.stop - t.target.start for t in axis) for axis in axes]
    return FrameSizes(
        tile=(tile[0], tile[1], tile[2]),
        frames=tile[0],
        height=axes[1][-1].target.stop,
        width=axes[2][-1].target.stop,
        latent_bytes=latent.shape[1] * math.prod(cells) * _F32.itemsize,
    )


class _Slice(NamedTuple):
    """Frames that are finished on the device: where, and how many."""

    address: int
    frames: int


class _Decoding:
    """One clip on its way: memory, what is finished, and what comes down."""

    def __init__(self, owner: DeviceFrames, latent: F32, axes: Axes, form: ByteForm) -> None:
        self._engines = owner
        self._finisher = owner.finishers[form]
        self._memory = owner.memory
        self._device = owner.memory.device
        self._latent = latent
        self._axes = axes
        self._sizes = sizes = sizes_of(latent, axes)
        self._is_rgb = form != "i420"
        pixels = sizes.height * sizes.width
        self._bytes = 3 * pixels if self._is_rgb else 3 * pixels // 2
        self._single = all(len(axis) == 1 for axis in axes)
        self._waiting: deque[_Slice] = deque()
        self._coming: deque[tuple[U8, int, Event]] = deque()
        self._finished: Event | None = None
        self._not_numbers: Pinned | None = None
        self._ring: list[Pinned] = []
        self._begun = 0
        size = sizes.bytes(sum(map(len, axes)))
        with self._memory.using():
            self._block = self._memory.tensors.take(size, "frames")
            arena = Arena(self._block, size, "frames")
            self._at = {name: arena.take(n, name) for name, n in sizes.blocks.items()}
            half = np.full(1, 0.5 if form == "rgb_rounded" else 0, np.float32)
            self._rounding = self._sent(half, self._at["rounding"])
            self._weights = [
                [self._sent(t.weights, arena.take(t.weights.nbytes, "weights")) for t in axis]
                for axis in axes
            ]
            self._ring = [self._device.pinned(SLICE_FRAMES * self._bytes) for _ in range(RING)]
            self._not_numbers = self._device.pinned(sizes.blocks["counts"])

    def run(self, progress: Progress | None) -> Iterator[tuple[U8, int]]:
        """See `DeviceFrames.frames`: one tile is always enqueued beside the one that runs, and
        between tiles frames of those before are handed out.
        """
        groups, rows, columns = self._axes
        places = list(product(enumerate(rows), enumerate(columns)))
        total, done, before = len(groups) * len(places), 0, None
        for index, group in enumerate(groups):
            held = groups[index - 1].target.stop - group.target.start if index else 0
            with self._memory.using():
                self._clear(held, group.target.stop - group.target.start)
            for number, ((r, row), (c, column)) in enumerate(places):
                with self._memory.using():
                    self._decode(group, row, column)
                    self._place(index, r, c)
                    enqueued = self._device.compute.record()
                yield from self._handed_out(-(-len(self._waiting) // (len(places) - number)))
                if before is not None:
                    self._passed(before)
                    done += 1
                    if progress is not None:
                        progress(done, total)
                before = enqueued
            last = index == len(groups) - 1
            with self._memory.using():
                self._finish(group, None if last else groups[index + 1])
        assert before is not None
        self._passed(before)
        if progress is not None:
            progress(total, total)
        yield from self._handed_out(len(self._waiting))

    def close(self) -> None:
        """Wait for what is on its way, and free everything."""
        with self._memory.using():
            self._device.compute.sync()
            self._device.download.sync()
            self._memory.timeline.collect()
            for pinned in (*self._ring, *([self._not_numbers] if self._not_numbers else [])):
                pinned.close()
            self._memory.tensors.give(self._block)

    def _passed(self, event: Event) -> None:
        with self._memory.using():
            event.sync()
            self._memory.timeline.collect()

    def _sent(self, array: Array, address: int) -> DeviceTensor:
        self._memory.staging.send(np.ascontiguousarray(array), address, self._device.compute)
        return DeviceTensor(array.shape, array.dtype, address)

    def _clear(self, held: int, frames: int) -> None:
        """Frames begin as those that the tiles before share with them, the others at zero."""
        size = self._sizes.frame_bytes
        if not self._single and frames > held:
            start = self._at["canvas"] + held * size
            self._device.clear(start, (frames - held) * size, self._device.compute)

    def _decode(self, group: AxisTile, row: AxisTile, column: AxisTile) -> None:
        """Enqueue the decoder on one tile."""
        tile = self._latent[:, :, group.source, row.source, column.source]
        latent, decoder = self._sent(tile, self._at["latent"]), self._engines.decoder
        decoder.bind({"video_latent": latent}, lambda name, size: self._at["tile"])
        decoder.bind_weights({})
        with self._memory.timeline.span(self._device.compute, COMPUTE, "a tile"):
            decoder.enqueue()

    def _place(self, group: int, row: int, column: int) -> None:
        """Enqueue adding the decoded tile to the canvas `[F, 3, H, W]`, a channel at a time."""
        frames, rows, columns = (
            axis[i] for axis, i in zip(self._axes, (group, row, column), strict=True)
        )
        count, height, width = (t.target.stop - t.target.start for t in (frames, rows, columns))
        line, plane = width * _F32.itemsize, height * width * _F32.itemsize
        shape, compute, blend = (count, height, width), self._device.compute, self._engines.blend
        whole = self._sizes.width * _F32.itemsize
        corner = rows.target.start * whole + columns.target.start * _F32.itemsize
        for channel in range(3):
            at = self._at["canvas"] + channel * self._sizes.frame_bytes // 3 + corner
            region = Box(at, whole, self._sizes.frame_bytes)
            address = self._at["tile"] + channel * count * plane
            if self._single:
                own = Box(address, line, plane)
                self._device.copy_box(region, own, line, height, count, compute)
                continue
            piece, blended = (Box(self._at[n], line, plane) for n in ("piece", "blended"))
            self._device.copy_box(piece, region, line, height, count, compute)
            feeds = {
                "sum": DeviceTensor(shape, _F32, piece.address),
                "tile": DeviceTensor(shape, _F32, address),
                "frame_weights": self._weights[0][group],
                "row_weights": self._weights[1][row],
                "column_weights": self._weights[2][column],
            }
            blend.bind(feeds, lambda name, size: self._at["blended"])
            blend.enqueue()
            self._device.copy_box(region, blended, line, height, count, compute)

    def _finish(self, group: AxisTile, following: AxisTile | None) -> None:
        """Enqueue the frames that no tile will touch any more as bytes, and move what the following
        tiles share to the front of the canvas.
        """
        start, stop = group.target.start, group.target.stop
        ready = (stop if following is None else following.target.start) - start
        sizes, size = self._sizes, self._sizes.frame_bytes
        assert not self._waiting, "the store holds frames that nobody has"
        for number, first in enumerate(range(0, ready, SLICE_FRAMES)):
            count = min(SLICE_FRAMES, ready - first)
            shape = (count, 3, sizes.height, sizes.width)
            feeds = {"pixels": DeviceTensor(shape, _F32, self._at["canvas"] + first * size)}
            if self._is_rgb:
                feeds["rounding"] = self._rounding
            target = self._at["store"] + first * self._bytes
            places = {"frames": target, "not_numbers": self._at["counts"] + number * ALIGNMENT}
            self._finisher.bind(feeds, placed(places))
            with self._memory.timeline.span(self._device.compute, COMPUTE, "frames to bytes"):
                self._finisher.enqueue()
            self._waiting.append(_Slice(target, count))
        if ready:
            self._finished = self._device.compute.record()
            for first in range(0, stop - start - ready, ready):
                count = min(ready, stop - start - ready - first)
                to = self._at["canvas"] + first * size
                self._device.copy_within(to, to + ready * size, count * size, self._device.compute)

    def _handed_out(self, count: int) -> Iterator[tuple[U8, int]]:
        """Wait for so many slices, one after another, while those behind them come down."""
        for _ in range(count):
            with self._memory.using():
                bad = self._counted() if self._finished is not None else 0
                while len(self._coming) < RING and len(self._waiting) > len(self._coming):
                    self._coming.append(self._fetched(self._waiting[len(self._coming)]))
                place, frames, event = self._coming.popleft()
                self._waiting.popleft()
                event.sync()
            height, width = self._sizes.height, self._sizes.width
            shape = (frames, height, width, 3) if self._is_rgb else (frames, height * 3 // 2, width)
            yield place.reshape(shape).copy(), bad

    def _counted(self) -> int:
        """NaN among the frames of one group, once they are finished."""
        assert self._finished is not None
        assert self._not_numbers is not None
        download, size = self._device.download, len(self._waiting) * ALIGNMENT
        download.wait(self._finished)
        self._finished = None
        place = self._not_numbers.array[:size]
        self._device.copy_out(place, self._at["counts"], download)
        download.record().sync()
        return int(place.view(np.int32)[:: ALIGNMENT // 4].sum())

    def _fetched(self, part: _Slice) -> tuple[U8, int, Event]:
        """Enqueue that a slice comes down to the next buffer of the ring, which nobody reads."""
        pinned = self._ring[self._begun % RING]
        self._begun += 1
        place = pinned.array[: part.frames * self._bytes]
        download = self._device.download
        with self._memory.timeline.span(download, DOWNLOAD, f"{part.frames} frames"):
            self._device.copy_out(place, part.address, download)
        return place, part.frames, download.record()
