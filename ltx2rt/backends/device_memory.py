"""Device memory of engines that run one after another on one stream."""

from __future__ import annotations

import weakref

import numpy as np

from ltx2rt.cuda import Device
from ltx2rt.engine import Array


class DeviceMemory:
    """Buffers by name, and weights that stay as long as their arrays live.

    Args:
        device: whose memory it is; closed with it.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._buffers: dict[str, tuple[int, int]] = {}
        self._resident: dict[tuple[int, int], tuple[weakref.ref[Array], int]] = {}
        self._closed = False

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

    def address_of(self, array: Array) -> int:
        """Where a weight is: uploaded when it is seen for the first time, freed when its array goes
        (layers with another LoRA are new arrays).
        """
        key = (array.ctypes.data, array.nbytes)
        if key not in self._resident:
            whole = np.ascontiguousarray(array)
            address = self.device.allocate(whole.nbytes)
            self._resident[key] = (weakref.ref(array, lambda _: self._forget(key)), address)
            self.device.upload(address, whole)
            self.device.synchronize()
        return self._resident[key][1]

    def close(self) -> None:
        """Free everything; closing again does nothing."""
        if self._closed:
            return
        self._closed = True
        self.device.activate()
        for address, _ in self._buffers.values():
            self.device.free(address)
        for key in list(self._resident):
            self._forget(key)
        self._buffers = {}
        self.device.close()

    def _forget(self, key: tuple[int, int]) -> None:
        if (held := self._resident.pop(key, None)) is not None:
            self.device.free(held[1])
