"""The simulated driver from Python: set it up, count, look at what ran, launch callbacks."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.simulator.library import load_library

MAX_DEVICES = 4
LABEL = 64

#: in which order work runs, within what streams and events allow. `adversarial`: as late as
#: possible, and of two operations that race, the later one first; `newest_first` also runs what
#: nobody waits for; `in_order` is the order of the calls.
SCHEDULES = ("adversarial", "in_order", "random", "newest_first")

KINDS = ("copy", "fill", "call", "event", "join", "allocate", "release")
DIRECTIONS = ("htod", "dtoh", "dtod", "peer", "host")


class _Setup(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_int32) for n in ("device_count", "driver_version", "schedule")),
        *((n, ctypes.c_int32) for n in ("has_contents", "free_waits", "unused")),
        ("seed", ctypes.c_uint64),
        ("capacity", ctypes.c_uint64 * MAX_DEVICES),
        ("major", ctypes.c_int32 * MAX_DEVICES),
        ("minor", ctypes.c_int32 * MAX_DEVICES),
    ]


class _Line(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_uint64) for n in ("id", "order", "stream", "bytes", "to", "source")),
        *((n, ctypes.c_int32) for n in ("kind", "direction", "device")),
        *((n, ctypes.c_int32) for n in ("from_graph", "pageable", "state")),
        ("label", ctypes.c_char * LABEL),
    ]


class _Range(ctypes.Structure):
    _fields_ = [
        ("start", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("written", ctypes.c_int32),
        ("unused", ctypes.c_int32),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True, slots=True)
class Counters:
    """What one device was asked to do. Copies in graphs count at every launch.

    `hidden_synchronizations`: waits that nobody asked for: copies of pageable memory (down always,
    up from 64 KiB on), and frees while work is pending.
    """

    htod_calls: int = 0
    htod_bytes: int = 0
    dtoh_calls: int = 0
    dtoh_bytes: int = 0
    dtod_calls: int = 0
    dtod_bytes: int = 0
    peer_calls: int = 0
    peer_bytes: int = 0
    pageable_calls: int = 0
    pageable_bytes: int = 0
    fills: int = 0
    allocations: int = 0
    frees: int = 0
    host_allocations: int = 0
    host_frees: int = 0
    synchronizations: int = 0
    hidden_synchronizations: int = 0
    launches: int = 0
    host_functions: int = 0
    graph_launches: int = 0
    graph_operations: int = 0
    event_records: int = 0
    event_waits: int = 0
    live_bytes: int = 0
    peak_bytes: int = 0

    def __sub__(self, before: Counters) -> Counters:
        """What happened since `before`; live and peak bytes are those of now."""
        now = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Counters(
            **{
                n: v if n in ("live_bytes", "peak_bytes") else v - getattr(before, n)
                for n, v in now.items()
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One piece of work on a stream.

    Attributes:
        id: in the order of the calls.
        order: the how manieth to run, from 1; 0: it did not run yet.
        kind: of `KINDS`; `direction`: of `DIRECTIONS`, for copies.
        stream: the stream's id; `int(stream.handle)` unless it is a default stream.
    """

    id: int
    order: int
    stream: int
    device: int
    kind: str
    direction: str
    bytes: int
    to: int
    source: int
    label: str
    from_graph: bool
    pageable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is simulated.

    Attributes:
        memory_bytes: of every device.
        capability: of every device.
        schedule: of `SCHEDULES`; `seed` is for `random`.
        contents: false: memory has no contents, copies and launches are only counted, so that real
            sizes can be run.
        free_waits: `cuMemFree` waits for the work that uses the memory, as the driver does; false:
            freeing too early is an illegal address.
    """

    devices: int = 1
    memory_bytes: int = 1 << 30
    capability: tuple[int, int] = (8, 9)
    driver_version: int = 13010
    schedule: str = "adversarial"
    seed: int = 0
    contents: bool = True
    free_waits: bool = True


@dataclass
class SimulatedDriver:
    """The driver of this process while a simulation runs; make it with `simulated`."""

    setup: Setup
    library: ctypes.CDLL
    _calls: dict[int, Callable[[], None]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    failures: list[BaseException] = field(default_factory=list)
    _loss: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        self._callback = _CALLBACK(self._run)

    def counters(self, device: int = 0) -> Counters:
        values = (ctypes.c_uint64 * len(dataclasses.fields(Counters)))()
        self.library.simulator_counters(device, values)
        return Counters(*values)

    def reset_counters(self) -> None:
        """All to zero; live bytes stay and are the new peak."""
        self.library.simulator_reset_counters()

    @property
    def driver_calls(self) -> int:
        """Calls of the driver since the start or the last reset."""
        return int(self.library.simulator_calls())

    def operations(self) -> list[Operation]:
        """Everything that was enqueued, in the order of the calls."""
        return [self._operation(i) for i in range(self.library.simulator_op_count())]

    def executed(self) -> list[Operation]:
        """Everything that ran, in the order in which it did."""
        return sorted((o for o in self.operations() if o.order), key=lambda o: o.order)

    def comes_before(self, first: Operation, second: Operation) -> bool:
        """Whether streams and events make `first` end before `second` starts."""
        return bool(self.library.simulator_ordered(first.id, second.id))

    def may_overlap(self, a: Operation, b: Operation) -> bool:
        """Whether nothing orders two operations, so that a device may run them at once."""
        return not self.comes_before(a, b) and not self.comes_before(b, a)

    def problems(self) -> list[str]:
        """Mistakes so far: races, use of freed memory, waiting while capturing, ..."""
        count = self.library.simulator_problem_count()
        return [self.library.simulator_problem(i).decode() for i in range(count)]

    def take_problems(self) -> list[str]:
        """The problems, which a test expected: it no longer fails of them."""
        found = self.problems()
        self.library.simulator_clear_problems()
        return found

    def report(self, problem: str) -> None:
        """Add a problem."""
        self.library.simulator_report(problem.encode())

    def launch(
        self,
        stream: int,
        call: Callable[[], None],
        label: str,
        reads: Sequence[tuple[int, int]] = (),
        writes: Sequence[tuple[int, int]] = (),
    ) -> int:
        """Enqueue a Python function as a kernel, or capture it.

        Args:
            call: runs at a synchronisation, on the thread that synchronises; may run many times if
                it was captured. It must not call CUDA.
            reads, writes: (address, bytes) of the memory that it touches; what overlaps with work
                that is not ordered is a problem.

        Returns:
            the driver's error code.
        """
        number = next(self._numbers)  # of threads that launch at once, each has its own
        self._calls[number] = call
        ranges = (_Range * (len(reads) + len(writes)))(
            *(_Range(a, n, 0) for a, n in reads), *(_Range(a, n, 1) for a, n in writes)
        )
        return int(
            self.library.simulator_launch(
                stream, self._callback, number, label.encode()[: LABEL - 1], ranges, len(ranges)
            )
        )

    def lose(self, error: int, after: int = 0) -> None:
        """Lose the GPU when a kernel runs, as an error that stays: `after` others from now on.

        Args:
            error: number of a `CUresult`; 1 is taken for a mistake of a test.
        """
        self._loss = error, after

    def view(self, address: int, size: int, device: int = -1) -> np.ndarray[Any, Any]:
        """Device memory as it is now, as bytes that may be written; for callbacks and for looks.

        Raises:
            ValueError: it is not allocated, or of another device.
        """
        pointer = self.library.simulator_pointer(address, size, device)
        if not pointer:
            raise ValueError(f"{size} bytes at {address:#x} are not memory of device {device}")
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))

    def extent(self, address: int) -> int:
        """Bytes from an address to the end of its allocation; 0: it is not allocated."""
        return int(self.library.simulator_extent(address))

    def stream_device(self, stream: int) -> int:
        return int(self.library.simulator_stream_device(stream))

    def is_capturing(self, stream: int) -> bool:
        return bool(self.library.simulator_stream_captures(stream))

    def _run(self, number: int) -> int:
        if self._loss is not None:
            error, left = self._loss
            self._loss = (error, left - 1) if left else None
            if not left:
                return error
        try:
            self._calls[number]()
        except BaseException as error:
            self.failures.append(error)
            self.report("".join(traceback.format_exception_only(error)).strip()[:400])
            return 1
        return 0

    def _operation(self, index: int) -> Operation:
        line = _Line()
        self.library.simulator_op(index, ctypes.byref(line))
        is_copy = KINDS[line.kind] == "copy"
        return Operation(
            id=line.id,
            order=line.order,
            stream=line.stream,
            device=line.device,
            kind=KINDS[line.kind],
            direction=DIRECTIONS[line.direction] if is_copy else "",
            bytes=line.bytes,
            to=line.to,
            source=line.source,
            label=line.label.decode(),
            from_graph=bool(line.from_graph),
            pageable=bool(line.pageable),
        )


_running: list[SimulatedDriver] = []


def running() -> SimulatedDriver:
    """The simulation that runs."""
    return _running[-1]


@contextmanager
def simulated(setup: Setup | None = None) -> Iterator[SimulatedDriver]:
    """Run a simulation: until it ends this process has GPUs; then it has none again.

    Raises:
        SimulatorUnavailableError: see `load_library`.
    """
    setup = setup or Setup()
    assert not _running, "a simulation runs already: build bundles before it starts"
    library = _declare(load_library())
    given = _Setup(
        device_count=setup.devices,
        driver_version=setup.driver_version,
        schedule=SCHEDULES.index(setup.schedule),
        has_contents=setup.contents,
        free_waits=setup.free_waits,
        seed=setup.seed,
        capacity=(ctypes.c_uint64 * MAX_DEVICES)(*[setup.memory_bytes] * MAX_DEVICES),
        major=(ctypes.c_int32 * MAX_DEVICES)(*[setup.capability[0]] * MAX_DEVICES),
        minor=(ctypes.c_int32 * MAX_DEVICES)(*[setup.capability[1]] * MAX_DEVICES),
    )
    driver = SimulatedDriver(setup, library)
    _forget_devices()
    library.simulator_start(ctypes.byref(given))
    _running.append(driver)
    try:
        yield driver
    finally:
        _running.remove(driver)
        library.simulator_stop()


def _forget_devices() -> None:
    """cuda.core keeps the devices that a thread saw, with what it asked about them."""
    if (module := sys.modules.get("cuda.core._device")) is not None:
        vars(module._tls).pop("devices", None)


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    u64, pointer, integer = ctypes.c_uint64, ctypes.c_void_p, ctypes.c_int
    results: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "simulator_start": (None, (pointer,)),
        "simulator_stop": (None, ()),
        "simulator_counters": (None, (integer, pointer)),
        "simulator_calls": (u64, ()),
        "simulator_reset_counters": (None, ()),
        "simulator_problem_count": (ctypes.c_size_t, ()),
        "simulator_problem": (ctypes.c_char_p, (ctypes.c_size_t,)),
        "simulator_clear_problems": (None, ()),
        "simulator_report": (None, (ctypes.c_char_p,)),
        "simulator_op_count": (ctypes.c_size_t, ()),
        "simulator_op": (integer, (ctypes.c_size_t, pointer)),
        "simulator_ordered": (integer, (u64, u64)),
        "simulator_pointer": (pointer, (u64, u64, integer)),
        "simulator_extent": (u64, (u64,)),
        "simulator_stream_device": (integer, (pointer,)),
        "simulator_stream_captures": (integer, (pointer,)),
        "simulator_launch": (
            integer,
            (pointer, _CALLBACK, pointer, ctypes.c_char_p, pointer, ctypes.c_size_t),
        ),
    }
    for name, (result, arguments) in results.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
