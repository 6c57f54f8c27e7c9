"""Where the weights of a stack's layers are: on the device, or sent from the host at every use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ltx2rt.backends.device_memory import DeviceMemory, DeviceTensor
from ltx2rt.backends.stack import Weights
from ltx2rt.engine import Shaped


class LayerMemory:
    """Weights by the number of their layer.

    Args:
        memory: freed by its owner.
        keep: hold weights once they are loaded, on the device as far as there is room.
    """

    def __init__(self, memory: DeviceMemory, *, keep: bool) -> None:
        self._memory = memory
        self._keep = keep
        self._resident: dict[int, Mapping[str, DeviceTensor]] = {}
        self._on_host: dict[int, Weights] = {}

    def given(self, index: int, load: Callable[[], Weights]) -> Mapping[str, Shaped]:
        """The weights of a layer, on the device or (loaded, if need be) on the host."""
        if index in self._resident:
            return self._resident[index]
        if index not in self._on_host:
            weights = load()
            if not self._keep:
                return weights
            self._on_host[index] = weights
        return self._on_host[index]

    def upload(self, index: int, weights: Mapping[str, Shaped]) -> Mapping[str, Shaped]:
        """The same on the device: there to stay if they are kept and find room, else in the one
        buffer of each name, which what ran before has read by then.
        """
        arrays = {n: a for n, a in weights.items() if isinstance(a, np.ndarray)}
        if not arrays:
            return weights
        if not self._keep or not self._memory.has_room(sum(a.nbytes for a in arrays.values())):
            return {n: self._memory.upload(f"weight {n}", a) for n, a in arrays.items()}
        held = {n: self._memory.hold(array) for n, array in arrays.items()}
        self._memory.synchronize()
        del self._on_host[index]
        self._resident[index] = held
        return held

    def ran(self) -> None:
        """A layer is enqueued: where weights are not kept, wait, so that they go."""
        if not self._keep:
            self._memory.synchronize()
