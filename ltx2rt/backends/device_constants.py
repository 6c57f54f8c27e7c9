"""What calls of a device's stack share, and the graphs that have its addresses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from ltx2rt.backends.device_memory import DeviceMemory, DeviceTensor
from ltx2rt.backends.replays import Replays

#: of a tail, on the device
Outputs = Mapping[str, DeviceTensor]


class DeviceConstants:
    """(tensor, dtype) -> where it is; those of `base` follow. Passes with them are kept here: a
    graph has their addresses.
    """

    def __init__(
        self, memory: DeviceMemory, base: DeviceConstants | None, ended: Callable[[], None]
    ) -> None:
        self._memory = memory
        self._base = base
        self._ended = ended
        self._closed = False
        self.tensors: dict[tuple[str, str], DeviceTensor] = {}
        self.by_layer: dict[tuple[str, str], Sequence[DeviceTensor]] = {}
        self.replays = Replays[Outputs](memory)

    def find(self, name: str, dtype: str, layer: int) -> DeviceTensor | None:
        """A tensor as layer number `layer` takes it; None if it is none of these."""
        if (name, dtype) in self.by_layer:
            return self.by_layer[name, dtype][layer]
        found = self.tensors.get((name, dtype))
        return self._base.find(name, dtype, layer) if found is None and self._base else found

    def holds(self, names: Collection[str]) -> bool:
        """See `Constants`."""
        own = any(name in names for name, _ in (*self.tensors, *self.by_layer))
        return own or (self._base is not None and self._base.holds(names))

    def close(self) -> None:
        """Free them; closing again, or after the stack, does nothing."""
        if self._closed:
            return
        self._closed = True
        if not self._memory.closed:
            self._memory.device.activate()
            self.replays.close()
        for tensor in (*self.tensors.values(), *(rows[0] for rows in self.by_layer.values())):
            self._memory.drop(tensor.address)
        self.tensors, self.by_layer = {}, {}
        self._ended()
