"""Where the weights of a stack's layers are: on the device, or in a ring of a few layers there,
into which the next one goes up while one runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from ltx2rt.backends.device_memory import DeviceMemory, DeviceTensor
from ltx2rt.backends.stack import Weights
from ltx2rt.device.arena import aligned
from ltx2rt.device.device import Event, Pinned
from ltx2rt.trace import UPLOAD, WEIGHTS, span

Load = Callable[[], Weights]

#: layers without room take turns in so many places: one runs while the next one goes up
RING = 2


@dataclass(slots=True)
class _Slot:
    """One place of the ring: which part it holds, and when the last one that it held has run."""

    address: int
    size: int
    holds: int | None = None
    ran: Event | None = None


@dataclass(slots=True)
class _Place:
    """Where the weights of a part are.

    `slot` is None where they stay; `host` are their bytes, packed, for going up again; `sent` is
    passed when they are there, None once the compute stream waits for it.
    """

    tensors: Mapping[str, DeviceTensor]
    slot: _Slot | None
    host: Pinned | None = None
    sent: Event | None = field(default=None)


class LayerMemory:
    """Weights of the parts of a stack, in the order in which they run.

    Args:
        memory: freed by its owner.
        loads: weights of every part.
        keep: hold weights once they are loaded, on the device as far as there is room, the others
            in pinned host memory. Otherwise every use loads them anew.
        places: bytes of each place in the ring, where that is known.
        left_free: bytes that are left to the ring, where the plan of the memory does not do so.
    """

    def __init__(
        self,
        memory: DeviceMemory,
        loads: Sequence[Load],
        *,
        keep: bool,
        places: Sequence[int] = (0,) * RING,
        left_free: int = 0,
    ) -> None:
        self._ring = places
        self._left_free = left_free
        self._memory = memory
        self._loads = loads
        self._keep = keep
        self._places: dict[int, _Place] = {}
        self._slots: list[_Slot] = []
        self._turn = 0

    @property
    def settled(self) -> bool:
        """Whether every part's weights are on the device to stay."""
        return len(self._places) == len(self._loads) and all(
            place.slot is None and place.sent is None for place in self._places.values()
        )

    def use(self, part: int) -> Mapping[str, DeviceTensor]:
        """The weights of a part on the device; what is enqueued next runs when they are there."""
        self._send(part)
        place = self._places[part]
        if place.sent is not None:
            self._memory.device.compute.wait(place.sent)
            if place.slot is None:
                place.sent = None
        return place.tensors

    def ran(self, part: int) -> None:
        """A part is enqueued: its slot is free after it, and the next part may go up meanwhile."""
        place = self._places[part]
        if place.slot is not None:
            place.slot.ran = self._memory.device.compute.record()
            if not self._keep:
                del self._places[part]
        if part + 1 < len(self._loads):
            self._send(part + 1)
        elif self._keep:
            self._send(0)

    def close(self) -> None:
        """Give all of it back; nothing runs any more."""
        for place in self._places.values():
            if place.host is not None:
                place.host.close()
            if place.slot is None and place.tensors:
                self._memory.layers.give(next(iter(place.tensors.values())).address)
        for slot in self._slots:
            self._memory.layers.give(slot.address)
            self._memory.in_rings -= aligned(slot.size)
        self._places, self._slots = {}, []

    def _send(self, part: int) -> None:
        """See to it that the weights of a part are on their way, or there."""
        place = self._places.get(part)
        is_gone = place is not None and place.slot is not None and place.slot.holds != part
        if place is None or (is_gone and place.host is None):
            self._load(part)
        elif is_gone and place.slot is not None and place.host is not None:
            self._before(place.slot, part)
            upload = self._memory.device.upload
            start = next(iter(place.tensors.values())).address
            with self._span(part):
                self._memory.device.copy_in(start, place.host.array, upload)
            place.sent = upload.record()

    def _load(self, part: int) -> None:
        with span(WEIGHTS, f"layer {part}"):
            arrays = {n: np.ascontiguousarray(a) for n, a in self._loads[part]().items()}
        size = sum(aligned(a.nbytes) for a in arrays.values())
        slot = None
        if not arrays:
            self._places[part] = _Place({}, None)
            return
        upload = self._memory.device.upload
        if self._keep and self._memory.has_room(size, self._left_free):
            address = self._memory.layers.take(size, f"layer {part}")
        else:
            slot = self._slot(part, size)
            self._before(slot, part)
            address = slot.address
        tensors = _laid_out(arrays, address)
        host = None
        if slot is not None and self._keep:
            host = self._memory.device.pinned(size)
            for name, array in arrays.items():
                start = tensors[name].address - address
                host.array[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
            with self._span(part):
                self._memory.device.copy_in(address, host.array, upload)
        else:
            with self._span(part):
                for name, array in arrays.items():
                    self._memory.staging.send(array, tensors[name].address, upload)
        self._places[part] = _Place(tensors, slot, host, upload.record())

    def _span(self, part: int) -> AbstractContextManager[None]:
        """What goes up meanwhile, in a trace."""
        return self._memory.timeline.span(self._memory.device.upload, UPLOAD, f"layer {part}")

    def _before(self, slot: _Slot, part: int) -> None:
        """What goes up next into a slot waits until what was there has run."""
        if slot.ran is not None:
            self._memory.device.upload.wait(slot.ran)
        slot.holds = part

    def _slot(self, part: int, size: int) -> _Slot:
        """The slot whose turn it is, at least that large. Where nothing is kept, every part always
        comes into the same one, the first (text: embeddings) and the last (projections), which are
        the largest, both into slot 0.
        """
        if not self._slots:
            for planned in self._ring:
                space = planned or size
                address = self._memory.layers.take(space, "a slot of the ring")
                self._slots.append(_Slot(address, space))
                self._memory.in_rings += aligned(space)
        turn = self._turn if self._keep else slot_of(part, len(self._loads))
        slot = self._slots[turn % RING]
        self._turn += 1
        if slot.size < size:  # without a plan; nothing else says how large layers are
            self._memory.synchronize()
            self._memory.layers.give(slot.address)
            slot.address = self._memory.layers.take(size, "a slot of the ring")
            self._memory.in_rings += aligned(size) - aligned(slot.size)
            slot.size = size
            for place in self._places.values():
                if place.slot is slot:
                    place.tensors = _moved(place.tensors, slot.address)
        return slot


def slot_of(part: int, parts: int) -> int:
    """The slot of a part where nothing is kept: neighbours have different ones but for the first
    part, so that the last one shares its slot.
    """
    return 0 if part == 0 else (parts - 1 - part) % RING


def _laid_out(arrays: Mapping[str, np.ndarray], address: int) -> dict[str, DeviceTensor]:
    """One after another from an address on."""
    tensors = {}
    for name, array in arrays.items():
        tensors[name] = DeviceTensor(array.shape, array.dtype, address)
        address += aligned(array.nbytes)
    return tensors


def _moved(tensors: Mapping[str, DeviceTensor], start: int) -> dict[str, DeviceTensor]:
    first = next(iter(tensors.values())).address
    return {
        n: DeviceTensor(t.shape, t.dtype, t.address - first + start) for n, t in tensors.items()
    }
