"""Device memory of everything that runs on one device, one after another: buffers by name, blocks
that are held, weights of engines, and where the weights of layers go.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ltx2rt.backends.runtime_cache import RuntimeCache
from ltx2rt.device.arena import Arena, Blocks, OpenBlocks, Regions, aligned
from ltx2rt.device.device import Device
from ltx2rt.device.staging import Staging
from ltx2rt.device.tensor import DeviceTensor
from ltx2rt.device.timeline import Timeline
from ltx2rt.engine import Array
from ltx2rt.errors import InternalError
from ltx2rt.trace import COMPUTE

__all__ = ["DeviceMemory", "DeviceTensor", "placed"]


def placed(places: Mapping[str, int]) -> Callable[[str, int], int]:
    """Where outputs of these names go, for `bind`."""
    return lambda name, _: places[name]


class DeviceMemory:
    """Everything is handed out of the regions that are taken here: no call of the driver allocates
    or frees afterwards.

    Args:
        device: whose memory it is; closed when the last user that opened it is done.
        regions: what is taken of it. None: blocks come from the driver, for engines on their own.
        reserve: without regions, bytes that layers leave free; None: all must find room.
        track: what a trace calls its compute stream.
    """

    def __init__(
        self,
        device: Device,
        regions: Regions | None = None,
        *,
        reserve: int | None = None,
        track: str = COMPUTE,
    ) -> None:
        self.device = device
        self.track = track
        self.lock = threading.RLock()  # frames decode on a thread of their own
        self.staging = Staging(device)
        self.kernels: dict[Path, RuntimeCache] = {}  # compiled ones, of engines that share them
        self.timeline = Timeline(device)
        self.moves = 0  # how often a buffer went: what holds its address is out of date
        self._reserve = reserve
        self.in_rings = 0  # bytes that parts take turns in: what is reserved for that, and taken
        self._whole = 0
        self._arenas: list[Arena] = []
        self._scratch = (0, -1)
        self._buffers: dict[str, tuple[int, int]] = {}
        self._held: set[int] = set()
        self._resident: dict[tuple[int, int], tuple[weakref.ref[Array], int]] = {}
        self._users = 0
        self.closed = False
        self.tensors: Blocks
        self.engines: Blocks
        self.layers: Blocks
        if regions is None:
            self.tensors = self.engines = self.layers = OpenBlocks(device)
        else:
            self._divide(regions)

    @contextmanager
    def using(self) -> Iterator[None]:
        """The device, for what is enqueued meanwhile; no other thread enqueues."""
        with self.lock:
            self.device.activate()
            yield

    def divide(self, regions: Regions) -> None:
        """Divide what is taken anew, for another stage: as much, and nothing of the last is left.

        Raises:
            InternalError: something is.
        """
        with self.using():
            self.synchronize()
            self.drop_buffers()
            if any(arena.in_use for arena in self._arenas):
                raise InternalError("memory is divided anew while something lies in it")
            self.moves += 1
            self._divide(regions)

    def _divide(self, regions: Regions) -> None:
        start = self._whole = self._whole or self.device.allocate(regions.total)
        self._reserve = regions.reserve
        self._scratch = (start, regions.scratch)
        start += aligned(regions.scratch)
        arenas = []
        for size, name in (
            (regions.tensors, "inputs, outputs and constants"),
            (regions.engines, "weights of engines"),
            (regions.layers, "weights of layers"),
        ):
            arenas.append(Arena(start, aligned(size), name))
            start += aligned(size)
        self.tensors, self.engines, self.layers = self._arenas = arenas

    @property
    def is_planned(self) -> bool:
        return bool(self._whole)

    @property
    def is_idle(self) -> bool:
        """Whether only the user that took it has it open."""
        return self._users <= 1

    def opened(self) -> DeviceMemory:
        """The same memory, for one more user that will close it."""
        self._users += 1
        return self

    def scratch(self, size: int) -> int:
        """Address of what an engine's activations need; engines take turns with it."""
        address, held = self._scratch
        if held < size:
            if self.is_planned:
                self._fail_scratch(size)
            if held >= 0:
                self.device.compute.sync()
                self.device.free(address)
                self.moves += 1
            self._scratch = address, _ = self.device.allocate(size), size
        return address

    def _fail_scratch(self, size: int) -> None:
        Arena(0, self._scratch[1], "activations").take(size, "an engine")

    def buffer(self, name: str, size: int) -> int:
        """Address of the buffer of that name, at least `size` bytes; grows, never shrinks."""
        address, held = self._buffers.get(name, (0, -1))
        if held < size:
            if held >= 0:
                self._drop_buffer(name)
            address = self.tensors.take(size, name)
            self._buffers[name] = (address, size)
        return address

    def drop_buffers(self) -> None:
        """Every buffer may go: the work of its user is done."""
        for name in list(self._buffers):
            self._drop_buffer(name)

    def _drop_buffer(self, name: str) -> None:
        self.tensors.give(self._buffers.pop(name)[0])
        self.moves += 1

    def upload(self, name: str, array: Array) -> DeviceTensor:
        """Copy an array to the buffer of that name, in order on the compute stream."""
        return self._send(array, self.buffer(name, array.nbytes))

    def hold(self, array: Array) -> DeviceTensor:
        """Copy an array to a block of its own, which stays until it is dropped."""
        address = self.tensors.take(array.nbytes, "a constant")
        self._held.add(address)
        return self._send(array, address)

    def drop(self, address: int) -> None:
        """Free a block that is held."""
        if address in self._held:
            self._held.remove(address)
            self.tensors.give(address)

    def has_room(self, size: int, beside: int = 0) -> bool:
        """Whether the weights of a layer may stay, or must take turns in the ring.

        Args:
            beside: bytes that have to stay free in any case.
        """
        if self._reserve is None:
            return True
        reserve = self._reserve - (self.in_rings if self.is_planned else 0)
        return self.layers.room() - aligned(size) >= max(reserve, beside)

    def synchronize(self) -> None:
        """Wait for everything on the device."""
        self.device.upload.sync()
        self.device.compute.sync()

    def finish(self) -> None:
        """As `synchronize`, before something is freed; a GPU that is lost uses nothing."""
        self.device.finish(self.device.upload, self.device.compute)

    def weight(self, name: str, array: Array) -> int:
        """Where a weight of an engine on its own is: uploaded when it is seen for the first time,
        freed when its array goes.

        Raises:
            EngineError: there is no room.
        """
        key = (array.ctypes.data, array.nbytes)
        if key not in self._resident:
            address = self.engines.take(array.nbytes, f"weight {name}")
            self._resident[key] = (weakref.ref(array, lambda _: self._forget(key)), address)
            self._send(array, address)
        return self._resident[key][1]

    def close(self) -> None:
        """One user is done; after the last one everything is freed."""
        self._users -= 1
        if self.closed or self._users > 0:
            return
        self.closed = True
        self.device.activate()
        self.finish()
        self.drop_buffers()
        for address in list(self._held):
            self.drop(address)
        for key in list(self._resident):
            self._forget(key)
        self.staging.close()
        if self.is_planned:
            self.device.free(self._whole)
        elif self._scratch[1] >= 0:
            self.device.free(self._scratch[0])
        self.device.close()

    def _send(self, array: Array, address: int) -> DeviceTensor:
        self.staging.send(np.ascontiguousarray(array), address, self.device.compute)
        return DeviceTensor(array.shape, array.dtype, address)

    def _forget(self, key: tuple[int, int]) -> None:
        if (held := self._resident.pop(key, None)) is not None:
            self.engines.give(held[1])
