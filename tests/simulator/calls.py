"""The driver's calls as a test writes them: through cuda-bindings, raising what fails."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.simulator.driver import SimulatedDriver

Floats = NDArray[np.float32]


class CudaCallError(Exception):
    """A call failed; its text is the error's name."""


class Calls:
    """`Calls().cuMemAlloc(8)` is the call's value. The first device's context is current."""

    def __init__(self, device: int = 0) -> None:
        from cuda.bindings import driver

        self.api: Any = driver
        self.cuInit(0)
        self.cuCtxSetCurrent(self.cuDevicePrimaryCtxRetain(device))

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            result = getattr(self.api, name)(*arguments)
            if result[0] != self.api.CUresult.CUDA_SUCCESS:
                raise CudaCallError(result[0].name)
            return result[1] if len(result) == 2 else result[1:] or None

        return call

    def stream(self) -> int:
        """A stream that does not wait for the default stream."""
        return int(self.cuStreamCreate(1))

    def event(self) -> Any:
        return self.cuEventCreate(0)

    def floats(self, *values: float) -> int:
        """Address of new device memory that holds them, for certain."""
        address = int(self.cuMemAlloc(4 * len(values)))
        array = np.array(values, np.float32)
        self.cuMemcpyHtoD(address, array.ctypes.data, array.nbytes)
        return address

    def pinned(self, *values: float) -> Floats:
        """A pinned array."""
        pointer = int(self.cuMemHostAlloc(4 * len(values), 0))
        array = np.ctypeslib.as_array((ctypes.c_float * len(values)).from_address(pointer))
        array[:] = values
        return array

    def read(self, address: int, count: int) -> list[float]:
        """What device memory holds now, waiting for nothing else than the default stream."""
        out = np.zeros(count, np.float32)
        self.cuMemcpyDtoH(out.ctypes.data, address, out.nbytes)
        return list(out.tolist())

    def up(self, address: int, array: Floats, stream: int) -> None:
        self.cuMemcpyHtoDAsync(address, array.ctypes.data, array.nbytes, stream)

    def down(self, array: Floats, address: int, stream: int) -> None:
        self.cuMemcpyDtoHAsync(array.ctypes.data, address, array.nbytes, stream)


def double(driver: SimulatedDriver, stream: int, source: int, target: int, count: int) -> int:
    """Enqueue a kernel: `target = 2 * source`."""
    size = 4 * count

    def run() -> None:
        values = driver.view(source, size).view(np.float32) * 2
        driver.view(target, size).view(np.float32)[:] = values

    return driver.launch(stream, run, "double", [(source, size)], [(target, size)])
