"""Copies between arrays and a device through two halves of pinned memory: one is filled while the
device reads the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ltx2rt.device.device import Device, Event, Pinned, Stream
from ltx2rt.engine import Array

#: of one half
HALF_BYTES = 16 << 20


class _Half:
    def __init__(self, memory: Pinned) -> None:
        self.memory = memory
        self.used = 0
        self.streams: dict[int, Stream] = {}
        self.events: list[Event] = []

    def reuse(self) -> None:
        """Start again at its beginning, once nothing reads it."""
        for event in self.events:
            if not event.is_done:
                event.sync()
        self.used, self.events = 0, []

    def leave(self) -> None:
        """Note until when it is read."""
        self.events = [stream.record() for stream in self.streams.values()]
        self.streams = {}


class Staging:
    """Both halves, taken when they are first needed."""

    def __init__(self, device: Device, half_bytes: int = HALF_BYTES) -> None:
        self._device = device
        self._size = half_bytes
        self._up: list[_Half] = []
        self._down: list[Pinned] = []

    def send(self, array: Array, address: int, stream: Stream) -> None:
        """Enqueue a copy of a contiguous array, which may change or go afterwards."""
        flat = array.reshape(-1).view(np.uint8)
        done = 0
        while done < flat.size:
            half = self._half()
            count = min(flat.size - done, self._size - half.used)
            place = half.memory.array[half.used : half.used + count]
            place[:] = flat[done : done + count]
            self._device.copy_in(address + done, place, stream)
            half.streams[int(stream.handle)] = stream
            half.used = min(-(-(half.used + count) // 64) * 64, self._size)
            done += count

    def receive(self, wanted: Sequence[tuple[Array, int]], stream: Stream) -> None:
        """Copy into contiguous arrays from addresses, and wait for it: once for each half that is
        filled.
        """
        if not self._down:
            self._down = [self._device.pinned(self._size) for _ in range(2)]
        pending: list[tuple[list[tuple[Array, Array]], Event]] = []
        for number, group in enumerate(_groups(wanted, self._size)):
            if len(pending) == 2:
                _finish(pending.pop(0))
            half, used, copies = self._down[number % 2].array, 0, []
            for target, address in group:
                place = half[used : used + target.size]
                self._device.copy_out(place, address, stream)
                copies.append((target, place))
                used += target.size
            pending.append((copies, stream.record()))
        for each in pending:
            _finish(each)

    def close(self) -> None:
        """Free both, once no stream uses them."""
        for memory in (*(half.memory for half in self._up), *self._down):
            memory.close()
        self._up, self._down = [], []

    def _half(self) -> _Half:
        """The half that is filled now, with room."""
        if not self._up:
            self._up = [_Half(self._device.pinned(self._size)) for _ in range(2)]
        if self._up[0].used == self._size:
            self._up[0].leave()
            self._up.reverse()
            self._up[0].reuse()
        return self._up[0]


def _groups(wanted: Sequence[tuple[Array, int]], size: int) -> list[list[tuple[Array, int]]]:
    """Pieces of arrays as bytes, with their addresses, as many together as one half holds."""
    groups: list[list[tuple[Array, int]]] = [[]]
    room = size
    for array, address in wanted:
        flat = array.reshape(-1).view(np.uint8)
        done = 0
        while done < flat.size:
            if room == 0:
                groups.append([])
                room = size
            count = min(flat.size - done, room)
            groups[-1].append((flat[done : done + count], address + done))
            done, room = done + count, room - count
    return [group for group in groups if group]


def _finish(pending: tuple[list[tuple[Array, Array]], Event]) -> None:
    copies, event = pending
    event.sync()
    for target, place in copies:
        target[:] = place
