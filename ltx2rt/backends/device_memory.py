"""Device memory of engines that run one after another on one stream."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltx2rt.device.cuda import Device
from ltx2rt.engine import Array


@dataclass(frozen=True, slots=True)
class DeviceTensor:
    """A tensor in device memory; `dtype` is that of the host array which would hold it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    address: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class DeviceMemory:
    """Buffers by name, blocks that are held, and weights that stay as long as their arrays live.

    Args:
        device: whose memory it is; closed when the last user that opened it is done.
        reserve: bytes that weights leave free. None: all weights must find room.
    """

    def __init__(self, device: Device, reserve: int | None = None) -> None:
        self.device = device
        self._reserve = reserve
        self._buffers: dict[str, tuple[int, int]] = {}
        self._held: set[int] = set()
        self._resident: dict[tuple[int, int], tuple[weakref.ref[Array], int]] = {}
        self._sent: list[Array] = []  # what the device may still read
        self._full = False  # a weight found no room since one went
        self._users = 0
        self.closed = False

    def opened(self) -> DeviceMemory:
        """The same memory, for one more user that will close it."""
        self._users += 1
        return self

    def buffer(self, name: str, size: int) -> int:
        """Address of the buffer of that name, at least `size` bytes; grows, never shrinks."""
        address, held = self._buffers.get(name, (0, -1))
        if held < size:
            if held >= 0:
                del self._buffers[name]
                self.device.free(address)
            address = self.device.allocate(size)
            self._buffers[name] = (address, size)
        return address

    def upload(self, name: str, array: Array) -> DeviceTensor:
        """Copy an array to the buffer of that name, in order on the stream, without waiting."""
        return self._send(array, self.buffer(name, array.nbytes))

    def hold(self, array: Array) -> DeviceTensor:
        """Copy an array to a block of its own, which stays until it is dropped."""
        address = self.device.allocate(array.nbytes)
        self._held.add(address)
        return self._send(array, address)

    def drop(self, address: int) -> None:
        """Free a block that is held, once the stream no longer uses it."""
        if address in self._held:
            self._held.remove(address)
            self.device.free(address)
            self._full = False

    def has_room(self, size: int) -> bool:
        """Whether weights of `size` bytes leave the reserve free."""
        if self._reserve is None:
            return True
        self._full = self._full or self.device.free_bytes() - size < self._reserve
        return not self._full

    def synchronize(self) -> None:
        """Wait for everything on the stream."""
        self.device.synchronize()
        self._sent.clear()

    def weight(self, name: str, array: Array) -> int:
        """Where a weight of an engine on its own is: uploaded when it is seen for the first time,
        freed when its array goes. Without room for it, in the one buffer of that name: the upload
        waits until what ran before has read that.

        Raises:
            EngineError: there is no room and nothing may be uploaded at every use.
        """
        key = (array.ctypes.data, array.nbytes)
        if key not in self._resident:
            if not self.has_room(array.nbytes):
                return self.upload(f"weight {name}", array).address
            address = self.device.allocate(array.nbytes)
            self._resident[key] = (weakref.ref(array, lambda _: self._forget(key)), address)
            self._send(array, address)
            self.synchronize()
        return self._resident[key][1]

    def close(self) -> None:
        """One user is done; after the last one everything is freed."""
        self._users -= 1
        if self.closed or self._users > 0:
            return
        self.closed = True
        self.device.activate()
        for address, _ in self._buffers.values():
            self.device.free(address)
        for address in list(self._held):
            self.drop(address)
        for key in list(self._resident):
            self._forget(key)
        self._buffers = {}
        self._sent.clear()
        self.device.close()

    def _send(self, array: Array, address: int) -> DeviceTensor:
        whole = np.ascontiguousarray(array)
        self.device.upload(address, whole)
        self._sent.append(whole)
        return DeviceTensor(array.shape, array.dtype, address)

    def _forget(self, key: tuple[int, int]) -> None:
        if (held := self._resident.pop(key, None)) is not None:
            self.device.free(held[1])
            self._full = False
