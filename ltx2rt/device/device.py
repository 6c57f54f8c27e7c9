"""What backends need of a GPU; `cuda.CudaDevice` is the real one, tests give others."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from ltx2rt.device.gpus import Gpu
from ltx2rt.engine import Array


class Event(Protocol):
    """A point in a stream."""

    @property
    def is_done(self) -> bool: ...

    def sync(self) -> None:
        """Wait on the host until the stream has passed it."""
        ...


class Mark(Protocol):
    """A point in a stream whose time is taken."""

    @property
    def is_done(self) -> bool: ...

    def since(self, earlier: Mark) -> float:
        """Seconds from another point, both passed."""
        ...


class Stream(Protocol):
    """Work in order; nothing orders two streams but events."""

    @property
    def handle(self) -> int: ...

    def record(self) -> Event:
        """Mark what is enqueued so far."""
        ...

    def mark(self) -> Mark:
        """Take the time when the stream gets here."""
        ...

    def wait(self, event: Event) -> None:
        """What is enqueued from here on runs after an event; the host does not wait."""
        ...

    def sync(self) -> None:
        """Wait on the host for everything that is enqueued."""
        ...


class Pinned(Protocol):
    """Host memory that a device copies from and to by itself."""

    @property
    def array(self) -> Array:
        """Its bytes, uint8."""
        ...

    @property
    def is_pinned(self) -> bool:
        """False where the system refused: pageable memory, which copies wait for."""
        ...

    def close(self) -> None: ...


class Box(NamedTuple):
    """Where rows lie that have gaps between them: the first one's address, and bytes from a row to
    the next, from a slice of rows to the next (whole rows of them).
    """

    address: int
    row_pitch: int
    slice_pitch: int


class Graph(Protocol):
    """Captured work: launched as one, with the addresses of its capture."""

    def launch(self) -> None:
        """Enqueue on the compute stream."""
        ...

    def close(self) -> None: ...


class Device(Protocol):
    """One GPU. A context is current in the threads that called `activate`.

    `compute` runs engines; meanwhile `upload` carries weights, `download` finished frames.
    """

    @property
    def gpu(self) -> Gpu: ...

    @property
    def compute(self) -> Stream: ...

    @property
    def upload(self) -> Stream: ...

    @property
    def download(self) -> Stream: ...

    @property
    def is_lost(self) -> bool:
        """Whether a call said that this process cannot use it any more: all others fail, but for
        those that free something, which then do nothing.
        """
        ...

    def raise_if_lost(self) -> None:
        """Ask whether it is lost, after a library failed that does not say why.

        Raises:
            DeviceLostError: it is.
        """
        ...

    def activate(self) -> None: ...

    def lane(self) -> Device:
        """The same GPU with streams of its own: what runs there is in no order with the rest."""
        ...

    def allocate(self, size: int) -> int: ...

    def free(self, address: int) -> None: ...

    def free_bytes(self) -> int: ...

    def pinned(self, size: int) -> Pinned: ...

    def copy_in(self, address: int, array: Array, stream: Stream) -> None:
        """Enqueue a copy of contiguous host memory, which must not change before it ran."""
        ...

    def copy_out(self, array: Array, address: int, stream: Stream) -> None:
        """Enqueue a copy into contiguous host memory."""
        ...

    def copy_within(self, to: int, source: int, size: int, stream: Stream) -> None:
        """Enqueue a copy on the device, of what does not overlap."""
        ...

    def copy_box(
        self, to: Box, source: Box, row_bytes: int, rows: int, slices: int, stream: Stream
    ) -> None:
        """Enqueue a copy on the device of `slices` times `rows` rows."""
        ...

    def clear(self, address: int, size: int, stream: Stream) -> None:
        """Enqueue writing zeros."""
        ...

    def capture(self, enqueue: Callable[[], object]) -> Graph:
        """What `enqueue` puts on the compute stream, as a graph; nothing runs."""
        ...

    def finish(self, *streams: Stream) -> None:
        """Wait for streams before what they use is freed; a GPU that is lost uses nothing."""
        ...

    def close(self) -> None: ...
