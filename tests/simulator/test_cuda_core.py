"""cuda.core over the simulated driver: devices, streams, buffers, pinned memory, graph builders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.simulator.calls import double
from tests.simulator.driver import SimulatedDriver
from tests.simulator.fixtures import Simulate

core = pytest.importorskip("cuda.core", reason="cuda-core is not installed")


def host_view(buffer: Any) -> Any:
    return np.from_dlpack(buffer).view(np.float32)


def opened(number: int = 0) -> Any:
    device = core.Device(number)
    device.set_current()
    return device


def non_blocking(device: Any) -> Any:
    return device.create_stream(options=core.StreamOptions(nonblocking=True))


@pytest.mark.parametrize(("devices", "capability"), [(1, (8, 9)), (4, (12, 0)), (2, (9, 0))])
def test_devices_are_as_set_up(
    simulate: Simulate, devices: int, capability: tuple[int, int]
) -> None:
    """Three simulations in one process: cuda.core must not remember the last one's."""
    simulate(devices=devices, capability=capability, driver_version=13010)
    device = opened()
    assert len(core.Device.get_all_devices()) == devices
    assert tuple(device.compute_capability) == capability
    assert device.name == "Simulated GPU 0"


def test_there_is_no_device_without_a_simulation(simulate: Simulate) -> None:
    from ltx2rt.device.cuda import CudaDevice, driver_cuda, local_gpu
    from ltx2rt.errors import UnsupportedError

    assert driver_cuda() is None
    for ask in (local_gpu, CudaDevice):
        with pytest.raises(UnsupportedError, match="needs an NVIDIA GPU and its driver"):
            ask("a test")
    simulate(capability=(9, 0))
    assert driver_cuda() == (13, 1)
    assert local_gpu("a test").target == "sm90"


def test_buffers_copy_through_pinned_memory(gpu: SimulatedDriver) -> None:
    device = opened()
    stream, pinned = non_blocking(device), core.LegacyPinnedMemoryResource()
    there = device.memory_resource.allocate(16, stream=stream)
    up, down = pinned.allocate(16), pinned.allocate(16)
    host_view(up)[:] = [1, 2, 3, 4]
    there.copy_from(up, stream=stream)
    there.copy_to(down, stream=stream)
    assert np.isnan(host_view(down)).all()
    stream.sync()
    assert host_view(down).tolist() == [1, 2, 3, 4]
    assert gpu.counters().pageable_calls == gpu.counters().hidden_synchronizations == 0
    there.fill(0, stream=stream)
    there.copy_to(down, stream=stream)
    stream.sync()
    assert not host_view(down).any()
    assert there.device_id == 0
    assert there.is_device_accessible
    assert not there.is_host_accessible
    there.close()
    stream.sync()
    assert gpu.counters().live_bytes == 0


def test_pinned_pools_give_pinned_memory(gpu: SimulatedDriver) -> None:
    device = opened()
    stream = non_blocking(device)
    host = core.PinnedMemoryResource().allocate(8, stream=stream)
    stream.sync()
    host_view(host)[:] = 5
    there = device.memory_resource.allocate(8, stream=stream)
    there.copy_from(host, stream=stream)
    stream.sync()
    assert gpu.counters().pageable_calls == 0
    assert gpu.view(int(there.handle), 8).view(np.float32).tolist() == [5, 5]


@pytest.mark.parametrize("wait", [True, False])
def test_streams_wait_for_events(gpu: SimulatedDriver, wait: bool) -> None:
    device = opened()
    upload, compute = non_blocking(device), non_blocking(device)
    pinned = core.LegacyPinnedMemoryResource().allocate(4)
    host_view(pinned)[:] = 4
    x, y = (device.memory_resource.allocate(4, stream=compute) for _ in range(2))
    compute.sync()
    x.copy_from(pinned, stream=upload)
    if wait:
        compute.wait(upload.record())
    double(gpu, int(compute.handle), int(x.handle), int(y.handle), 1)
    compute.sync()
    found = gpu.view(int(y.handle), 4).view(np.float32)[0]
    assert (found == 8) == wait
    assert (gpu.take_problems() == []) == wait
    upload.sync()


def test_graph_builders_capture_and_replay(gpu: SimulatedDriver) -> None:
    device = opened()
    stream = non_blocking(device)
    pinned = core.LegacyPinnedMemoryResource()
    up, down = pinned.allocate(4), pinned.allocate(4)
    x, y = (device.memory_resource.allocate(4, stream=stream) for _ in range(2))
    said: list[float] = []
    builder = stream.create_graph_builder()
    builder.begin_building("thread_local")
    x.copy_from(up, stream=builder)
    left, right = builder.split(2)
    double(gpu, int(left.stream.handle), int(x.handle), int(y.handle), 1)
    right.callback(lambda: said.append(1.0))
    builder = core.graph.GraphBuilder.join(left, right)
    y.copy_to(down, stream=builder)
    graph = builder.end_building().complete()
    assert said == []
    for value in (3, 5):
        host_view(up)[:] = value
        graph.launch(stream)
        stream.sync()
        assert host_view(down)[0] == 2 * value
    assert said == [1, 1]
    assert gpu.counters().graph_launches == 2


def test_allocating_while_building_a_graph_is_found(gpu: SimulatedDriver) -> None:
    """cuda.core builds in the relaxed mode unless told otherwise."""
    device = opened()
    stream, other = non_blocking(device), non_blocking(device)
    builder = stream.create_graph_builder()
    builder.begin_building()
    core.LegacyPinnedMemoryResource().allocate(4)
    assert "cuMemHostAlloc while a stream is being captured" in gpu.take_problems()[0]
    builder.end_building()
    other.sync()


def test_buffers_of_two_devices(simulate: Simulate) -> None:
    gpu = simulate(devices=2)
    buffers = []
    for number in (1, 0):
        device = opened(number)
        stream = non_blocking(device)
        buffers.append(device.memory_resource.allocate(8, stream=stream))
        buffers[-1].fill(number + 1, stream=stream)
        stream.sync()
    buffers[1].copy_from(buffers[0], stream=stream)
    stream.sync()
    assert gpu.view(int(buffers[1].handle), 8).tolist() == [2] * 8
    assert gpu.counters(0).peer_bytes == 8


def test_compiled_kernels_are_refused(gpu: SimulatedDriver) -> None:
    opened()
    with pytest.raises(Exception, match="NOT_SUPPORTED"):
        core.ObjectCode.from_ptx(b".version 8.0\n.target sm_80\n").get_kernel("k")
    assert "compiled kernels are not simulated" in gpu.take_problems()[0]
