"""Stream capture and graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.simulator.calls import Calls, CudaCallError, double
from tests.simulator.driver import SimulatedDriver
from tests.simulator.fixtures import Simulate

pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")

GLOBAL, THREAD_LOCAL, RELAXED = range(3)


def mode(c: Calls, number: int) -> Any:
    return c.api.CUstreamCaptureMode(number)


def captured(c: Calls, stream: int, enqueue: Callable[[], object]) -> Any:
    """An executable graph of what `enqueue` does."""
    c.cuStreamBeginCapture(stream, mode(c, THREAD_LOCAL))
    enqueue()
    return c.cuGraphInstantiate(c.cuStreamEndCapture(stream), 0)


def test_a_graph_runs_when_it_is_launched_every_time(gpu: SimulatedDriver) -> None:
    c = Calls()
    stream, x, y, out = c.stream(), c.floats(0), c.floats(0), c.pinned(0)
    source = c.pinned(3)

    def enqueue() -> None:
        c.up(x, source, stream)
        double(gpu, stream, x, y, 1)
        c.down(out, y, stream)

    before = len(gpu.operations())
    graph = captured(c, stream, enqueue)
    assert len(gpu.operations()) == before
    for value in (3, 4, 5):
        source[0] = value
        counters = gpu.counters()
        c.cuGraphLaunch(graph, stream)
        c.cuStreamSynchronize(stream)
        assert out[0] == 2 * value
        done = gpu.counters() - counters
        assert (done.graph_launches, done.graph_operations, done.launches) == (1, 3, 1)
        assert (done.htod_bytes, done.dtoh_bytes, done.synchronizations) == (4, 4, 1)
    assert [o.from_graph for o in gpu.operations()].count(True) == 9


def test_a_replay_uses_the_addresses_of_the_capture(gpu: SimulatedDriver) -> None:
    c = Calls()
    stream, y = c.stream(), c.floats(0)
    held = {"x": c.floats(1)}
    graph = captured(c, stream, lambda: double(gpu, stream, held["x"], y, 1))
    held["x"] = c.floats(10)
    c.cuGraphLaunch(graph, stream)
    c.cuStreamSynchronize(stream)
    assert c.read(y, 1) == [2]  # not 20


def test_a_replay_over_freed_memory_is_an_illegal_address(gpu: SimulatedDriver) -> None:
    c = Calls()
    stream, x, y = c.stream(), c.floats(1), c.floats(0)
    graph = captured(c, stream, lambda: double(gpu, stream, x, y, 1))
    c.cuMemFree(x)
    c.cuGraphLaunch(graph, stream)
    assert c.api.cuStreamSynchronize(stream)[0].name == "CUDA_ERROR_ILLEGAL_ADDRESS"
    assert "freed" in gpu.take_problems()[0]


def forbidden(c: Calls, x: int, stream: int) -> dict[str, Callable[[], Any]]:
    return {
        "allocation": lambda: c.cuMemAlloc(8),
        "free": lambda: c.cuMemFree(x),
        "pinned allocation": lambda: c.cuMemHostAlloc(8, 0),
        "pool": lambda: c.cuMemAllocAsync(8, stream),
        "stream": lambda: c.cuStreamSynchronize(stream),
        "context": lambda: c.cuCtxSynchronize(),
        "copy that waits": lambda: c.read(x, 1),
    }


NAMES = ("allocation", "free", "pinned allocation", "pool", "stream", "context", "copy that waits")


@pytest.mark.parametrize("number", [GLOBAL, THREAD_LOCAL])
@pytest.mark.parametrize("name", NAMES)
def test_allocating_freeing_and_waiting_break_a_capture(
    gpu: SimulatedDriver, name: str, number: int
) -> None:
    c = Calls()
    stream, x = c.stream(), c.floats(1)
    c.cuStreamBeginCapture(stream, mode(c, number))
    with pytest.raises(CudaCallError, match="CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
        forbidden(c, x, stream)[name]()
    with pytest.raises(CudaCallError, match="CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
        c.up(x, np.zeros(1, np.float32), stream)
    with pytest.raises(CudaCallError, match="CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
        c.cuStreamEndCapture(stream)
    assert gpu.take_problems()
    assert c.read(x, 1) == [1]


@pytest.mark.parametrize("name", ["allocation", "free"])
def test_the_relaxed_mode_allows_what_is_still_a_problem(gpu: SimulatedDriver, name: str) -> None:
    c = Calls()
    stream, x = c.stream(), c.floats(1)
    c.cuStreamBeginCapture(stream, mode(c, RELAXED))
    forbidden(c, x, stream)[name]()
    c.cuStreamEndCapture(stream)
    assert "while a stream is being captured" in gpu.take_problems()[0]


def fork_and_join(c: Calls, gpu: SimulatedDriver, *, join: bool) -> tuple[Any, int]:
    """Two branches, of which the first stream takes the second's result."""
    stream, side = c.stream(), c.stream()
    x, y, z = c.floats(1), c.floats(0), c.floats(0)
    forked, joined = c.event(), c.event()

    def enqueue() -> None:
        c.cuEventRecord(forked, stream)
        c.cuStreamWaitEvent(side, forked, 0)
        double(gpu, side, x, y, 1)
        c.cuEventRecord(joined, side)
        if join:
            c.cuStreamWaitEvent(stream, joined, 0)
        double(gpu, stream, y, z, 1)

    graph = captured(c, stream, enqueue)
    c.cuGraphLaunch(graph, stream)
    c.cuStreamSynchronize(stream)
    return graph, z


@pytest.mark.parametrize("schedule", ["adversarial", "random", "newest_first"])
def test_branches_of_a_graph_are_ordered_by_its_events(simulate: Simulate, schedule: str) -> None:
    gpu = simulate(schedule=schedule)
    c = Calls()
    _, z = fork_and_join(c, gpu, join=True)
    assert c.read(z, 1) == [4]


def test_a_branch_that_is_not_joined_fails(gpu: SimulatedDriver) -> None:
    with pytest.raises(CudaCallError, match="CUDA_ERROR_STREAM_CAPTURE_UNJOINED"):
        fork_and_join(Calls(), gpu, join=False)
    assert "not joined" in gpu.take_problems()[0]


def test_branches_without_order_may_overlap_and_race(gpu: SimulatedDriver) -> None:
    c = Calls()
    stream, side, x = c.stream(), c.stream(), c.floats(1)
    targets = [c.floats(0), c.floats(0)]

    def enqueue(first: int, second: int) -> None:
        forked, joined = c.event(), c.event()
        c.cuEventRecord(forked, stream)
        c.cuStreamWaitEvent(side, forked, 0)
        double(gpu, side, x, first, 1)
        double(gpu, stream, x, second, 1)
        c.cuEventRecord(joined, side)
        c.cuStreamWaitEvent(stream, joined, 0)

    for pair, races in (((targets[0], targets[1]), 0), ((targets[0], targets[0]), 1)):
        graph = captured(c, stream, lambda pair=pair: enqueue(*pair))
        c.cuGraphLaunch(graph, stream)
        a, b = [o for o in gpu.operations() if o.label == "double"][-2:]
        assert gpu.may_overlap(a, b)
        assert len(gpu.take_problems()) == races
        c.cuStreamSynchronize(stream)


def test_an_event_from_outside_is_refused(gpu: SimulatedDriver) -> None:
    c = Calls()
    stream, other, event = c.stream(), c.stream(), c.event()
    c.cuEventRecord(event, other)
    c.cuStreamBeginCapture(stream, mode(c, GLOBAL))
    with pytest.raises(CudaCallError, match="CUDA_ERROR_STREAM_CAPTURE_ISOLATION"):
        c.cuStreamWaitEvent(stream, event, 0)
    with pytest.raises(CudaCallError, match="INVALIDATED"):
        c.cuStreamEndCapture(stream)
    assert gpu.take_problems()


def test_launches_of_one_graph_follow_each_other(simulate: Simulate) -> None:
    """On streams that nothing orders: two nodes, which would lose counts if they interleaved."""
    gpu = simulate(schedule="random", seed=2)
    c = Calls()
    streams, total, before = [c.stream() for _ in range(4)], c.floats(0), c.floats(0)

    def enqueue() -> None:
        def add() -> None:
            gpu.view(total, 4).view(np.float32)[0] = gpu.view(before, 4).view(np.float32)[0] + 1

        c.cuMemcpyDtoDAsync(before, total, 4, streams[0])
        gpu.launch(streams[0], add, "add", [(before, 4)], [(total, 4)])

    graph = captured(c, streams[0], enqueue)
    for stream in (*streams, *streams):
        c.cuGraphLaunch(graph, stream)
    c.cuCtxSynchronize()
    assert c.read(total, 1) == [8]


def test_work_around_a_graph_keeps_its_order(gpu: SimulatedDriver) -> None:
    c = Calls()
    stream, x, y, out = c.stream(), c.floats(0), c.floats(0), c.pinned(0)
    graph = captured(c, stream, lambda: double(gpu, stream, x, y, 1))
    c.up(x, c.pinned(21), stream)
    c.cuGraphLaunch(graph, stream)
    c.down(out, y, stream)
    c.cuStreamSynchronize(stream)
    assert out[0] == 42
