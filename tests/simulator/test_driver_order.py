"""Work runs late, and in the worst order that streams and events allow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.simulator.calls import Calls, double
from tests.simulator.driver import SCHEDULES, SimulatedDriver
from tests.simulator.fixtures import Simulate

pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")


def test_copies_run_at_a_synchronisation(gpu: SimulatedDriver) -> None:
    c = Calls()
    stream, address = c.stream(), int(c.cuMemAlloc(8))
    source, target = np.array([1, 2], np.float32), np.array([5, 5], np.float32)
    c.up(address, source, stream)
    c.down(target, address, stream)
    source[:] = 7  # pageable memory was staged
    assert [o.order for o in gpu.operations()] == [0, 0]
    assert np.isnan(target).all()  # not the old values, which might be right by chance
    c.cuStreamSynchronize(stream)
    assert target.tolist() == [1, 2]
    assert [o.order for o in gpu.operations()] == [1, 2]


def test_pinned_memory_is_read_when_the_copy_runs(gpu: SimulatedDriver) -> None:
    c = Calls()
    stream, address, source = c.stream(), int(c.cuMemAlloc(8)), c.pinned(1, 2)
    c.up(address, source, stream)
    source[:] = 7  # too early: nothing says that the copy has run
    c.cuStreamSynchronize(stream)
    assert c.read(address, 2) == [7, 7]


def producer_and_consumer(c: Calls, gpu: SimulatedDriver, *, wait: bool) -> list[float]:
    """An upload on one stream, a kernel that reads it on another."""
    upload, compute = c.stream(), c.stream()
    x, y = c.floats(0, 0), c.floats(0, 0)
    c.up(x, c.pinned(1, 2), upload)
    if wait:
        event = c.event()
        c.cuEventRecord(event, upload)
        c.cuStreamWaitEvent(compute, event, 0)
    double(gpu, compute, x, y, 2)
    c.cuStreamSynchronize(compute)
    found = c.read(y, 2)
    c.cuStreamSynchronize(upload)
    return found


def overwritten_buffer(c: Calls, gpu: SimulatedDriver, *, wait: bool) -> list[float]:
    """The next upload goes into memory that a kernel still reads."""
    upload, compute = c.stream(), c.stream()
    x, y = c.floats(1, 2), c.floats(0, 0)
    double(gpu, compute, x, y, 2)
    if wait:
        event = c.event()
        c.cuEventRecord(event, compute)
        c.cuStreamWaitEvent(upload, event, 0)
    c.up(x, c.pinned(50, 60), upload)
    c.cuStreamSynchronize(compute)
    found = c.read(y, 2)
    c.cuStreamSynchronize(upload)
    return found


def overwritten_by_a_later_upload(c: Calls, gpu: SimulatedDriver, *, wait: bool) -> list[float]:
    """The same behind an upload that is harmless, and older than the kernel."""
    upload, compute = c.stream(), c.stream()
    x, y, z = c.floats(1, 2), c.floats(0, 0), c.floats(0, 0)
    c.up(z, c.pinned(7, 7), upload)
    double(gpu, compute, x, y, 2)
    if wait:
        event = c.event()
        c.cuEventRecord(event, compute)
        c.cuStreamWaitEvent(upload, event, 0)
    c.up(x, c.pinned(50, 60), upload)
    c.cuStreamSynchronize(compute)
    found = c.read(y, 2)
    c.cuStreamSynchronize(upload)
    return found


PROGRAMS = (producer_and_consumer, overwritten_buffer, overwritten_by_a_later_upload)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_ordered_programs_are_right_in_every_schedule(
    program: Callable[..., list[float]], schedule: str, simulate: Simulate
) -> None:
    gpu = simulate(schedule=schedule, seed=3)
    assert program(Calls(), gpu, wait=True) == [2, 4]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_dropped_event_wait_gives_wrong_numbers_and_a_problem(
    program: Callable[..., list[float]], gpu: SimulatedDriver
) -> None:
    assert program(Calls(), gpu, wait=False) != [2, 4]
    (problem,) = gpu.take_problems()
    assert problem.startswith("race: ")
    assert "double" in problem
    assert "upload" in problem


def test_a_race_is_found_even_where_the_order_happens_to_be_right(simulate: Simulate) -> None:
    gpu = simulate(schedule="in_order")
    assert producer_and_consumer(Calls(), gpu, wait=False) == [2, 4]
    assert len(gpu.take_problems()) == 1


def test_random_schedules_differ_by_seed_and_repeat(simulate: Simulate) -> None:
    gpu = simulate(schedule="random", seed=5)
    c = Calls()
    streams = [c.stream() for _ in range(4)]
    target = [c.floats(0) for _ in streams]
    source = c.pinned(1)
    orders = set()
    for _ in range(10):
        before = len(gpu.operations())
        for stream, address in zip(streams, target, strict=True):
            c.up(address, source, stream)
        c.cuCtxSynchronize()
        orders.add(tuple(np.argsort([o.order for o in gpu.operations()[before:]])))
    assert len(orders) > 3


def test_host_synchronisation_orders_streams(gpu: SimulatedDriver) -> None:
    c = Calls()
    upload, compute, x, y = c.stream(), c.stream(), c.floats(0), c.floats(0)
    c.up(x, c.pinned(4), upload)
    c.cuStreamSynchronize(upload)  # instead of an event
    double(gpu, compute, x, y, 1)
    c.cuStreamSynchronize(compute)
    assert c.read(y, 1) == [8]


def test_the_default_stream_waits_for_blocking_streams_only(gpu: SimulatedDriver) -> None:
    c = Calls()
    x = c.floats(0)
    c.up(x, c.pinned(1), int(c.cuStreamCreate(0)))
    assert c.read(x, 1) == [1]
    c.up(x, c.pinned(2), c.stream())
    assert c.read(x, 1) == [1]  # not 2: nothing waits for that stream
    assert "race" in gpu.take_problems()[0]


def test_blocking_streams_wait_for_the_default_stream(gpu: SimulatedDriver) -> None:
    c = Calls()
    x, y = c.floats(0), c.floats(0)
    blocking = int(c.cuStreamCreate(0))
    c.up(x, c.pinned(4), 0)
    double(gpu, blocking, x, y, 1)
    c.cuStreamSynchronize(blocking)
    assert gpu.view(y, 4).view(np.float32)[0] == 8


def ring(c: Calls, gpu: SimulatedDriver, slots: int) -> list[Any]:
    """Upload a layer and compute with it, six times, through a ring of buffers."""
    upload, compute = c.stream(), c.stream()
    layers = [c.pinned(float(n)) for n in range(6)]
    ring = [c.floats(0) for _ in range(slots)]
    total = c.floats(0)
    ready, free = ([c.event() for _ in ring] for _ in range(2))

    def add(address: int) -> Callable[[], None]:
        def run() -> None:
            gpu.view(total, 4).view(np.float32)[0] += gpu.view(address, 4).view(np.float32)[0]

        return run

    before = len(gpu.operations())
    for n, layer in enumerate(layers):
        slot = n % slots
        if n >= slots:
            c.cuStreamWaitEvent(upload, free[slot], 0)
        c.up(ring[slot], layer, upload)
        c.cuEventRecord(ready[slot], upload)
        c.cuStreamWaitEvent(compute, ready[slot], 0)
        gpu.launch(compute, add(ring[slot]), "layer", [(ring[slot], 4)], [(total, 4)])
        c.cuEventRecord(free[slot], compute)
    c.cuStreamSynchronize(compute)
    assert c.read(total, 1) == [15]
    return gpu.operations()[before:]


@pytest.mark.parametrize(("slots", "overlaps"), [(1, False), (2, True), (3, True)])
def test_the_log_proves_which_uploads_may_overlap_which_layers(
    gpu: SimulatedDriver, slots: int, overlaps: bool
) -> None:
    work = ring(Calls(), gpu, slots)
    uploads = [o for o in work if o.direction == "htod"]
    layers = [o for o in work if o.label == "layer"]
    assert len(uploads) == len(layers) == 6
    for n in range(5):
        assert gpu.comes_before(uploads[n], layers[n])
        assert gpu.may_overlap(uploads[n + 1], layers[n]) == overlaps
        assert not gpu.may_overlap(layers[n], layers[n + 1])


def test_events_tell_progress_and_time(gpu: SimulatedDriver) -> None:
    c = Calls()
    stream, start, end, x = c.stream(), c.event(), c.event(), c.floats(0)
    c.cuEventRecord(start, stream)
    c.up(x, c.pinned(1), stream)
    c.cuEventRecord(end, stream)
    not_ready = c.api.CUresult.CUDA_ERROR_NOT_READY
    assert c.api.cuEventQuery(end) == (not_ready,)
    polls = 1
    while c.api.cuEventQuery(end) == (not_ready,):
        polls += 1
    assert polls <= 4
    assert c.cuEventElapsedTime(start, end) == pytest.approx(2e-3)
    assert c.api.cuStreamQuery(stream) == (c.api.CUresult.CUDA_SUCCESS,)


def test_a_failing_kernel_loses_the_context(gpu: SimulatedDriver) -> None:
    c = Calls()
    stream = c.stream()

    def broken() -> None:
        raise ValueError("no such tensor")

    gpu.launch(stream, broken, "engine")
    assert c.api.cuStreamSynchronize(stream)[0].name == "CUDA_ERROR_LAUNCH_FAILED"
    assert c.api.cuMemAlloc(8)[0].name == "CUDA_ERROR_LAUNCH_FAILED"  # it stays so
    assert "no such tensor" in gpu.take_problems()[0]


def test_streams_that_end_are_still_waited_for(gpu: SimulatedDriver) -> None:
    c = Calls()
    stream, x, target = c.stream(), c.floats(3), c.pinned(0)
    c.down(target, x, stream)
    c.cuStreamDestroy(stream)
    assert target[0] == 0
    c.cuCtxSynchronize()
    assert target[0] == 3
    assert not math.isnan(target[0])
