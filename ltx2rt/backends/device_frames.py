"""Finished frames of a decoder on a device: tiles are blended and become what leaves there, which
comes down through a ring of pinned memory while the next tiles decode.

`components.video_decoder.blend_tiles` and `media.color` are the slow, obvious twins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from itertools import product
from typing import NamedTuple, Protocol

import numpy as np

from ltx2rt.backends.device_memory import DeviceMemory, DeviceTensor, placed
from ltx2rt.backends.frame_memory import SLICE_FRAMES, Axes, sizes_of
from ltx2rt.backends.tensorrt import TrtEngine
from ltx2rt.device.arena import ALIGNMENT, Arena
from ltx2rt.device.device import Box, Event, Pinned
from ltx2rt.engine import Array
from ltx2rt.latents.tiling import AxisTile
from ltx2rt.media.color import FrameForm, frame_shape
from ltx2rt.trace import DOWNLOAD

Progress = Callable[[int, int], None]
#: frames from the first one on, rows and columns of pixels
Part = tuple[int, slice, slice]

#: pinned buffers, of `SLICE_FRAMES` frames each
RING = 3
_F32 = np.dtype(np.float32)
#: form -> what the device gives of a frame, by the byte; numbers of 10 bits are exact in float16
_GIVEN: Mapping[FrameForm, np.dtype[np.generic]] = {
    "i420": np.dtype(np.uint8),
    "rgb": np.dtype(np.uint8),
    "rgb_rounded": np.dtype(np.uint8),
    "yuv422p10": np.dtype(np.float16),
    "float": _F32,
}


class Tiles(Protocol):
    """Decodes the tiles of one clip, in their order."""

    @property
    def memory(self) -> DeviceMemory: ...

    @property
    def axes(self) -> Axes: ...

    @property
    def part(self) -> Part | None:
        """What of the decoded pixels is the clip; None: all of them."""
        ...

    @property
    def held_bytes(self) -> int:
        """Of the device, from `begin` on."""
        ...

    def begin(self, address: int) -> None:
        """Take `held_bytes` there, and enqueue what comes before the first tile."""
        ...

    def decode(self, group: AxisTile, row: AxisTile, column: AxisTile, to: int) -> None:
        """Enqueue a tile, whose pixels `[3, f, h, w]` float32, about [-1, 1], will be at `to`."""
        ...


class DeviceFrames:
    """What finishes the frames of a video decoder on its device.

    Args:
        blend: engine of the device graph of this name.
        finishers: form -> the engine that gives it, of those that the bundle has.
    """

    def __init__(self, blend: TrtEngine, finishers: Mapping[FrameForm, TrtEngine]) -> None:
        self.blend = blend
        self.finishers = finishers
        self.memory: DeviceMemory = blend.memory

    def reason_against(self, tiles: Tiles, form: FrameForm) -> str | None:
        """Why these tiles have to be blended on the host, after all; None: they need not."""
        axes = tiles.axes
        sizes = sizes_of(axes, tiles.held_bytes, form)
        if form not in self.finishers:
            return f"the bundle was built before frames could leave as {form}: build it again"
        named = {"F": 1, "H": sizes.height, "W": sizes.width}
        if not any(b.holds(named) for b in self.finishers[form].buckets):
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
        self, tiles: Tiles, form: FrameForm, progress: Progress | None = None
    ) -> Generator[tuple[Array, int]]:
        """Decode one clip, of which `reason_against` says nothing.

        Args:
            tiles: of the clip, whose decoding has not begun.
            progress: called with (tiles done, tiles in all) after every tile; may raise to cancel.

        Yields:
            consecutive frames as new arrays, and how many of the values behind them were NaN.
        """
        decoding = _Decoding(self, tiles, form)
        try:
            yield from decoding.run(progress)
        finally:
            decoding.close()


class _Slice(NamedTuple):
    """Frames that are finished on the device: where, and how many."""

    address: int
    frames: int


class _Decoding:
    """One clip on its way: memory, what is finished, and what comes down."""

    def __init__(self, owner: DeviceFrames, tiles: Tiles, form: FrameForm) -> None:
        self._blend = owner.blend
        self._finisher = owner.finishers[form]
        self._memory = owner.memory
        self._device = owner.memory.device
        self._tiles = tiles
        self._axes = axes = tiles.axes
        self._sizes = sizes = sizes_of(axes, tiles.held_bytes, form)
        self._form: FrameForm = form
        self._given = _GIVEN[form]
        frame = frame_shape(form, sizes.height, sizes.width)
        self._bytes = int(np.prod(frame)) * self._given.itemsize
        self._single = all(len(axis) == 1 for axis in axes)
        self._waiting: deque[_Slice] = deque()
        self._coming: deque[tuple[Array, int, Event]] = deque()
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

    def run(self, progress: Progress | None) -> Iterator[tuple[Array, int]]:
        """See `DeviceFrames.frames`: one tile is always enqueued beside the one that runs, and
        between tiles frames of those before are handed out.
        """
        groups, rows, columns = self._axes
        places = list(product(enumerate(rows), enumerate(columns)))
        total, done, before = len(groups) * len(places), 0, None
        with self._memory.using():
            self._tiles.begin(self._at["decoder"])
        for index, group in enumerate(groups):
            held = groups[index - 1].target.stop - group.target.start if index else 0
            with self._memory.using():
                self._clear(held, group.target.stop - group.target.start)
            for number, ((r, row), (c, column)) in enumerate(places):
                with self._memory.using():
                    self._tiles.decode(group, row, column, self._at["tile"])
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
            self._device.finish(self._device.compute, self._device.download)
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

    def _place(self, group: int, row: int, column: int) -> None:
        """Enqueue adding the decoded tile to the canvas `[F, 3, H, W]`, a channel at a time."""
        frames, rows, columns = (
            axis[i] for axis, i in zip(self._axes, (group, row, column), strict=True)
        )
        count, height, width = (t.target.stop - t.target.start for t in (frames, rows, columns))
        line, plane = width * _F32.itemsize, height * width * _F32.itemsize
        shape, compute, blend = (count, height, width), self._device.compute, self._blend
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
        """Enqueue the frames that no tile will touch any more, in their form, and move what the
        following tiles share to the front of the canvas.
        """
        start, stop = group.target.start, group.target.stop
        ready = (stop if following is None else following.target.start) - start
        sizes, size = self._sizes, self._sizes.frame_bytes
        assert not self._waiting, "the store holds frames that nobody has"
        for number, first in enumerate(range(0, ready, SLICE_FRAMES)):
            count = min(SLICE_FRAMES, ready - first)
            shape = (count, 3, sizes.height, sizes.width)
            feeds = {"pixels": DeviceTensor(shape, _F32, self._at["canvas"] + first * size)}
            if any(spec.name == "rounding" for spec in self._finisher.spec.inputs):
                feeds["rounding"] = self._rounding
            target = self._at["store"] + first * self._bytes
            places = {"frames": target, "not_numbers": self._at["counts"] + number * ALIGNMENT}
            self._finisher.bind(feeds, placed(places))
            with self._memory.timeline.span(
                self._device.compute, self._memory.track, f"frames to {self._form}"
            ):
                self._finisher.enqueue()
            self._waiting.append(_Slice(target, count))
        if ready:
            self._finished = self._device.compute.record()
            for first in range(0, stop - start - ready, ready):
                count = min(ready, stop - start - ready - first)
                to = self._at["canvas"] + first * size
                self._device.copy_within(to, to + ready * size, count * size, self._device.compute)

    def _handed_out(self, count: int) -> Iterator[tuple[Array, int]]:
        """Wait for so many slices, one after another, while those behind them come down."""
        for _ in range(count):
            with self._memory.using():
                bad = self._counted() if self._finished is not None else 0
                while len(self._coming) < RING and len(self._waiting) > len(self._coming):
                    self._coming.append(self._fetched(self._waiting[len(self._coming)]))
                place, frames, event = self._coming.popleft()
                self._waiting.popleft()
                event.sync()
            shape = (frames, *frame_shape(self._form, self._sizes.height, self._sizes.width))
            yield self._own(place.view(self._given).reshape(shape)), bad

    def _own(self, frames: Array) -> Array:
        """A copy, in the numbers of the form."""
        return frames.astype(np.uint16) if self._form == "yuv422p10" else frames.copy()

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

    def _fetched(self, part: _Slice) -> tuple[Array, int, Event]:
        """Enqueue that a slice comes down to the next buffer of the ring, which nobody reads."""
        pinned = self._ring[self._begun % RING]
        self._begun += 1
        place = pinned.array[: part.frames * self._bytes]
        download = self._device.download
        with self._memory.timeline.span(download, DOWNLOAD, f"{part.frames} frames"):
            self._device.copy_out(place, part.address, download)
        return place, part.frames, download.record()
