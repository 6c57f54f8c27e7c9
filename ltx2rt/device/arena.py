"""Memory of a device in regions that are taken once, and what is handed out of them."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from typing import Protocol

from ltx2rt.device.device import Device
from ltx2rt.errors import EngineError, InternalError

#: where tensors may begin
ALIGNMENT = 256


def aligned(size: int) -> int:
    """What a tensor of that many bytes takes."""
    return -(-max(size, 1) // ALIGNMENT) * ALIGNMENT


class Blocks(Protocol):
    """Hands out device memory."""

    def take(self, size: int, what: str) -> int: ...

    def give(self, address: int) -> None: ...

    def room(self) -> int:
        """Bytes that are free."""
        ...

    def gap(self) -> int:
        """Bytes of the largest block that could be taken."""
        ...


class Arena:
    """A region of device memory, handed out first fit; the driver is not called.

    Args:
        start, size: the region; `name` is what errors call it.
    """

    def __init__(self, start: int, size: int, name: str) -> None:
        self.name = name
        self.size = size
        self._free = [(start, size)] if size else []
        self._taken: dict[int, int] = {}

    def take(self, size: int, what: str) -> int:
        """Address of `size` bytes.

        Raises:
            EngineError: the region has no such gap: more was asked for than was planned.
        """
        need = aligned(size)
        for number, (start, length) in enumerate(self._free):
            if length >= need:
                rest = [(start + need, length - need)] if length > need else []
                self._free[number : number + 1] = rest
                self._taken[start] = need
                return start
        raise EngineError(
            f"{what} takes {size / 2**20:.1f} MiB, and of the {self.size / 2**20:.1f} MiB that "
            f"were planned for {self.name} {self.room() / 2**20:.1f} MiB are free: ask for a "
            "smaller clip, or with fewer guidance passes and conditioning items."
        )

    def give(self, address: int) -> None:
        """Take a block back, once what is enqueued later is all that will use it."""
        if address not in self._taken:
            raise InternalError(f"{address:#x} is no block of {self.name}")
        insort(self._free, (address, self._taken.pop(address)))
        merged: list[tuple[int, int]] = []
        for start, length in self._free:
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((start, length))
        self._free = merged

    @property
    def in_use(self) -> bool:
        """Whether a block is taken."""
        return bool(self._taken)

    def room(self) -> int:
        """See `Blocks`."""
        return sum(length for _, length in self._free)

    def gap(self) -> int:
        """See `Blocks`."""
        return max((length for _, length in self._free), default=0)


class OpenBlocks:
    """Blocks straight from the driver, without a plan: engines on their own."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def take(self, size: int, what: str) -> int:
        """See `Blocks`."""
        del what
        return self._device.allocate(size)

    def give(self, address: int) -> None:
        """See `Blocks`; waits for what still uses it."""
        self._device.free(address)

    def room(self) -> int:
        """See `Blocks`."""
        return self._device.free_bytes()

    def gap(self) -> int:
        """See `Blocks`; the driver finds pages for it wherever they are."""
        return self._device.free_bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Regions:
    """What is taken of a device, once, in bytes.

    Attributes:
        scratch: activations of the engine that needs most.
        tensors: inputs, outputs and constants of the stack or engine that has most.
        engines: weights of engines that are no layers of a stack.
        layers: weights of layers.
        reserve: of `layers`, what layers that stay leave free: rings for those without room.
    """

    scratch: int
    tensors: int
    engines: int
    layers: int
    reserve: int = 0

    @property
    def total(self) -> int:
        return sum(aligned(n) for n in (self.scratch, self.tensors, self.engines, self.layers))
