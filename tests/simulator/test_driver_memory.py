"""Capacity, poison, pinned memory, pools, several devices."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable

import numpy as np
import pytest

from tests.simulator.calls import Calls, CudaCallError, double
from tests.simulator.driver import SimulatedDriver, simulated
from tests.simulator.fixtures import Simulate

pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")

KIB = 1 << 10


def test_memory_runs_out_at_its_capacity(simulate: Simulate) -> None:
    gpu = simulate(memory_bytes=100 * KIB)
    c = Calls()
    first = c.cuMemAlloc(60 * KIB)
    assert c.cuMemGetInfo() == (40 * KIB, 100 * KIB)
    with pytest.raises(CudaCallError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        c.cuMemAlloc(40 * KIB + 1)
    second = c.cuMemAlloc(40 * KIB)
    c.cuMemFree(first)
    assert c.cuMemGetInfo() == (60 * KIB, 100 * KIB)
    c.cuMemFree(second)
    counters = gpu.counters()
    assert (counters.allocations, counters.frees) == (2, 2)
    assert (counters.live_bytes, counters.peak_bytes) == (0, 100 * KIB)


def test_new_memory_is_nan_in_every_float(gpu: SimulatedDriver) -> None:
    c = Calls()
    pointer = int(c.cuMemHostAlloc(16, 0))
    pinned = np.ctypeslib.as_array((ctypes.c_uint8 * 16).from_address(pointer))
    for raw in (gpu.view(int(c.cuMemAlloc(16)), 16), pinned):
        assert np.isnan(raw.view(np.float32)).all()
        assert np.isnan(raw.view(np.float16)).all()
        assert np.isnan((raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)).all()


@pytest.mark.parametrize("beyond", [0, 4])
def test_freed_and_foreign_addresses_are_refused_at_once(gpu: SimulatedDriver, beyond: int) -> None:
    c = Calls()
    stream, x, host = c.stream(), c.floats(1, 2), c.pinned(0, 0)
    if not beyond:
        c.cuMemFree(x)
    with pytest.raises(CudaCallError, match="CUDA_ERROR_INVALID_VALUE"):
        c.down(host, x + beyond, stream)
    with pytest.raises(CudaCallError, match="CUDA_ERROR_INVALID_VALUE"):
        c.cuMemcpyHtoDAsync(host.ctypes.data, host.ctypes.data, 4, stream)  # no device memory
    if not beyond:
        with pytest.raises(CudaCallError, match="CUDA_ERROR_INVALID_VALUE"):
            c.cuMemFree(x)
        assert "no live allocation" in gpu.take_problems()[0]


def test_a_free_waits_for_the_work_that_uses_the_memory(gpu: SimulatedDriver) -> None:
    c = Calls()
    stream, x, host = c.stream(), c.floats(3), c.pinned(0)
    before = gpu.counters()
    c.down(host, x, stream)
    c.cuMemFree(x)
    assert host[0] == 3
    assert (gpu.counters() - before).hidden_synchronizations == 1


def test_memory_freed_too_early_is_an_illegal_address(simulate: Simulate) -> None:
    gpu = simulate(free_waits=False)
    c = Calls()
    stream, x, host = c.stream(), c.floats(3), c.pinned(0)
    c.down(host, x, stream)
    c.cuMemFree(x)
    assert c.api.cuStreamSynchronize(stream)[0].name == "CUDA_ERROR_ILLEGAL_ADDRESS"
    assert c.api.cuStreamSynchronize(stream)[0].name == "CUDA_ERROR_ILLEGAL_ADDRESS"  # sticky
    assert host[0] == 0
    assert "memory that was freed" in gpu.take_problems()[0]


def test_a_staging_buffer_freed_too_early_is_an_illegal_address(simulate: Simulate) -> None:
    gpu = simulate(free_waits=False)
    c = Calls()
    stream, x, host = c.stream(), c.floats(0), c.pinned(3)
    c.up(x, host, stream)
    c.cuMemFreeHost(host.ctypes.data)
    assert np.isnan(host).all()  # a view that lives on reads poison
    assert c.api.cuStreamSynchronize(stream)[0].name == "CUDA_ERROR_ILLEGAL_ADDRESS"
    assert "host memory that was freed" in gpu.take_problems()[0]


def test_an_array_that_is_gone_before_its_download_is_an_illegal_address(
    gpu: SimulatedDriver,
) -> None:
    c = Calls()
    size = 1 << 20
    stream, x = c.stream(), c.cuMemAlloc(size)
    mapped = mmap.mmap(-1, size)
    host = np.frombuffer(mapped, np.float32)
    c.down(host, x, stream)
    del host
    mapped.close()
    assert c.api.cuStreamSynchronize(stream)[0].name == "CUDA_ERROR_ILLEGAL_ADDRESS"
    assert "host memory that is gone" in gpu.take_problems()[0]


def test_a_kernel_past_the_end_of_memory_is_an_illegal_address(gpu: SimulatedDriver) -> None:
    c = Calls()
    stream, x, y = c.stream(), c.floats(1, 2), c.floats(0)  # one value too short
    double(gpu, stream, x, y, 2)
    assert c.api.cuStreamSynchronize(stream)[0].name == "CUDA_ERROR_ILLEGAL_ADDRESS"
    assert "past the end" in gpu.take_problems()[0]


@pytest.mark.parametrize(
    ("size", "pinned", "hidden"),
    [(64 * KIB, False, 0), (64 * KIB + 4, False, 1), (64 * KIB + 4, True, 0)],
)
def test_large_pageable_uploads_are_hidden_synchronisations(
    gpu: SimulatedDriver, size: int, pinned: bool, hidden: int
) -> None:
    c = Calls()
    stream, x = c.stream(), c.cuMemAlloc(size)
    array = np.zeros(size // 4, np.float32)
    if pinned:
        c.cuMemHostRegister(array.ctypes.data, size, 0)
    c.up(x, array, stream)
    counters = gpu.counters()
    assert counters.hidden_synchronizations == hidden
    assert (counters.htod_calls, counters.htod_bytes) == (1, size)
    assert counters.pageable_bytes == (0 if pinned else size)
    assert counters.synchronizations == 0
    c.cuStreamSynchronize(stream)
    assert gpu.counters().synchronizations == 1
    if pinned:
        c.cuMemHostUnregister(array.ctypes.data)


def test_pageable_downloads_always_are(gpu: SimulatedDriver) -> None:
    c = Calls()
    c.down(np.zeros(1, np.float32), c.floats(1), stream := c.stream())
    assert gpu.counters().hidden_synchronizations == 1
    c.cuStreamSynchronize(stream)


def test_fills_and_strided_copies(gpu: SimulatedDriver) -> None:
    c = Calls()
    stream, x = c.stream(), c.floats(*range(6))
    c.cuMemsetD32Async(x + 4, 0x40000000, 2, stream)  # 2.0
    copy = c.api.CUDA_MEMCPY2D()
    copy.srcMemoryType = copy.dstMemoryType = c.api.CUmemorytype.CU_MEMORYTYPE_DEVICE
    copy.srcDevice, copy.srcPitch = x + 12, 8
    copy.dstDevice, copy.dstPitch = x, 4
    copy.WidthInBytes, copy.Height = 4, 2  # elements 3 and 5 to 0 and 1
    c.cuMemcpy2DAsync(copy, stream)
    c.cuStreamSynchronize(stream)
    assert c.read(x, 6) == [3, 5, 2, 3, 4, 5]


def test_boxes_are_copied_slice_by_slice(gpu: SimulatedDriver) -> None:
    """Two slices of two rows of one element, out of slices of three rows of two."""
    c = Calls()
    stream, x, y = c.stream(), c.floats(*range(12)), c.floats(*(0,) * 4)
    copy = c.api.CUDA_MEMCPY3D()
    copy.srcMemoryType = copy.dstMemoryType = c.api.CUmemorytype.CU_MEMORYTYPE_DEVICE
    copy.srcDevice, copy.srcPitch, copy.srcHeight, copy.srcXInBytes, copy.srcY = x, 8, 3, 4, 1
    copy.dstDevice, copy.dstPitch, copy.dstHeight = y, 4, 2
    copy.WidthInBytes, copy.Height, copy.Depth = 4, 2, 2
    c.cuMemcpy3DAsync(copy, stream)
    c.cuStreamSynchronize(stream)
    assert c.read(y, 4) == [3, 5, 9, 11]
    copy.srcY = 2  # beyond the slice
    with pytest.raises(CudaCallError, match="CUDA_ERROR_INVALID_VALUE"):
        c.cuMemcpy3DAsync(copy, stream)


def test_pools_allocate_and_free_in_stream_order(simulate: Simulate) -> None:
    gpu = simulate(memory_bytes=64 * KIB)
    c = Calls()
    stream, host = c.stream(), c.pinned(5, 6)
    for _ in range(8):  # 48 KiB twice at once would not fit
        x = int(c.cuMemAllocAsync(48 * KIB, stream))
        c.up(x, host, stream)
        c.cuMemFreeAsync(x, stream)
    assert gpu.counters().peak_bytes == 48 * KIB
    c.cuStreamSynchronize(stream)
    assert gpu.counters().live_bytes == 0


def test_another_stream_must_wait_for_a_pool(gpu: SimulatedDriver) -> None:
    c = Calls()
    stream, other = c.stream(), c.stream()
    x = int(c.cuMemAllocAsync(8, stream))
    c.up(x, c.pinned(1, 2), other)
    assert "allocation" in gpu.take_problems()[0]
    c.cuCtxSynchronize()


def test_devices_have_their_own_memory_and_copy_to_each_other(simulate: Simulate) -> None:
    gpu = simulate(devices=2)
    first, second = Calls(0), Calls(1)  # the second one's context is current now
    there = second.floats(0, 0)
    first.cuCtxSetCurrent(first.cuDevicePrimaryCtxRetain(0))
    here, stream = first.floats(1, 2), first.stream()
    first.cuMemcpyDtoDAsync(there, here, 8, stream)
    first.cuStreamSynchronize(stream)
    assert first.read(there, 2) == [1, 2]
    assert (gpu.counters(0).peer_calls, gpu.counters(0).peer_bytes) == (1, 8)
    assert gpu.counters(1).live_bytes == 8
    double(gpu, stream, there, here, 2)  # a kernel of the first reads memory of the second
    assert first.api.cuStreamSynchronize(stream)[0].name == "CUDA_ERROR_ILLEGAL_ADDRESS"
    assert "memory of another device" in gpu.take_problems()[0]


def test_threads_need_a_context(gpu: SimulatedDriver) -> None:
    c = Calls()
    found: list[str] = []

    def work(prepare: Callable[[], None]) -> None:
        prepare()
        found.append(c.api.cuMemAlloc(8)[0].name)

    context = c.cuCtxGetCurrent()
    for prepare in (lambda: None, lambda: c.cuCtxSetCurrent(context)):
        thread = threading.Thread(target=work, args=(prepare,))
        thread.start()
        thread.join()
    assert found == ["CUDA_ERROR_INVALID_CONTEXT", "CUDA_SUCCESS"]


def test_threads_that_synchronise_at_once_share_the_work(gpu: SimulatedDriver) -> None:
    c = Calls()
    context = c.cuCtxGetCurrent()
    results: list[list[float]] = []

    def work(value: float) -> None:
        c.cuCtxSetCurrent(context)
        stream, y = c.stream(), c.floats(0)
        x = c.floats(value)
        for _ in range(20):
            double(gpu, stream, x, y, 1)
            c.cuStreamSynchronize(stream)
        results.append(c.read(y, 1))

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(results) == [[2], [4], [6]]


def test_real_sizes_are_counted_without_contents(simulate: Simulate) -> None:
    gpu = simulate(memory_bytes=80 << 30, contents=False)
    c = Calls()
    stream, x = c.stream(), int(c.cuMemAlloc(60 << 30))
    c.cuMemcpyDtoDAsync(x, x + (30 << 30), 30 << 30, stream)
    c.cuStreamSynchronize(stream)
    assert gpu.counters().dtod_bytes == 30 << 30
    with pytest.raises(CudaCallError, match="OUT_OF_MEMORY"):
        c.cuMemAlloc(20 << 30 | 1)


def test_what_an_earlier_simulation_made_may_be_freed_later(simulate: Simulate) -> None:
    with simulated():
        c = Calls()
        old, stream, event = c.floats(1), c.stream(), c.event()
        pinned = c.pinned(1)
    assert c.api.cuInit(0)[0].name == "CUDA_ERROR_NO_DEVICE"
    gpu = simulate()
    c = Calls()
    c.cuMemFree(old)
    c.cuMemFreeHost(pinned.ctypes.data)
    for call, handle in (("cuStreamDestroy", stream), ("cuEventDestroy", event)):
        with pytest.raises(CudaCallError, match="INVALID_HANDLE"):
            getattr(c, call)(handle)
    assert gpu.counters().frees == gpu.counters().host_frees == 0
