"""The CUDA driver through cuda-python: the GPU, one stream, device memory and copies.

cuda-python is optional and imported only when something here is called.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from ltx2rt.engine import Array
from ltx2rt.errors import EngineError, UnsupportedError


class Gpu(NamedTuple):
    """A GPU of this machine: its name, architecture (`sm90`) and memory."""

    name: str
    target: str
    memory_bytes: int


class Device(Protocol):
    """What a backend needs of a device. Copies and kernels run in order on `stream`."""

    @property
    def gpu(self) -> Gpu: ...

    @property
    def stream(self) -> int: ...

    def activate(self) -> None: ...

    def allocate(self, size: int) -> int: ...

    def free(self, address: int) -> None: ...

    def free_bytes(self) -> int: ...

    def upload(self, address: int, array: Array) -> None: ...

    def download(self, array: Array, address: int) -> None: ...

    def synchronize(self) -> None: ...

    def close(self) -> None: ...


class CudaDevice:
    """The first GPU: its primary context and a stream of our own.

    Raises:
        UnsupportedError: no GPU, no driver or no cuda-python.
    """

    def __init__(self, purpose: str) -> None:
        self._driver = load_driver(purpose)
        self._device = _first_device(self._driver, purpose)
        self.gpu = _gpu(self._driver, self._device)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self.activate()
        flags = int(self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self._stream = self._call("cuStreamCreate", flags)

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._stream)

    def activate(self) -> None:
        """Make the context that of the calling thread: frames decode on a thread of their own."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """Address of `size` new bytes.

        Raises:
            EngineError: the GPU has no room for them; says how much it has.
        """
        result = self._driver.cuMemAlloc(max(size, 1))
        if result[0] == self._driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise EngineError(self._out_of_memory(size))
        try:
            return int(check(self._driver, result))
        except RuntimeError as error:
            raise EngineError(f"CUDA failed in cuMemAlloc: {error}") from error

    def free_bytes(self) -> int:
        """Memory that is free now."""
        return int(self._call("cuMemGetInfo")[0])

    def _out_of_memory(self, size: int) -> str:
        free, total = self._driver.cuMemGetInfo()[1:]
        return (
            f"the GPU ({self.gpu.name}) is out of memory: {size / 2**30:.2f} GiB more are needed, "
            f"{free / 2**30:.2f} of {total / 2**30:.2f} GiB are free; ask for a smaller clip, end "
            "what else uses the GPU, or build in a smaller precision (`ltx2rt build --dry-run` "
            "says what each takes)."
        )

    def free(self, address: int) -> None:
        """Give memory of `allocate` back, once the stream no longer uses it; from any thread."""
        self.activate()
        self._call("cuMemFree", address)

    def upload(self, address: int, array: Array) -> None:
        """Copy a contiguous array to the device; it must live until `synchronize`."""
        self._call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, self._stream)

    def download(self, array: Array, address: int) -> None:
        """Copy into a contiguous array; complete after `synchronize`."""
        self._call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, self._stream)

    def synchronize(self) -> None:
        """Wait for everything on the stream."""
        self._call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Free the stream and leave the context."""
        self._call("cuStreamDestroy", self._stream)
        self._call("cuDevicePrimaryCtxRelease", self._device)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call the driver.

        Raises:
            EngineError: the call failed.
        """
        try:
            return check(self._driver, getattr(self._driver, name)(*arguments))
        except RuntimeError as error:
            raise EngineError(f"CUDA failed in {name}: {error}") from error


def load_driver(purpose: str) -> ModuleType:
    """Import cuda-python's driver module.

    Raises:
        UnsupportedError: it is not installed.
    """
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise UnsupportedError(
            f"{purpose} needs cuda-python, which cannot be imported here ({error}): "
            "pip install 'ltx2rt[cuda]'."
        ) from error


def check(driver: ModuleType, result: tuple[Any, ...]) -> Any:
    """The value of a driver call, or all of them where it has several.

    Raises:
        RuntimeError: the call failed; cuda-python raises the same where the driver is missing.
    """
    if result[0] != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(result[0].name)
    return result[1] if len(result) == 2 else result[1:] or None


def local_gpu(purpose: str) -> Gpu:
    """The first GPU of this machine.

    Raises:
        UnsupportedError: there is none, or cuda-python or the driver is missing.
    """
    driver = load_driver(purpose)
    return _gpu(driver, _first_device(driver, purpose))


def driver_cuda() -> tuple[int, int] | None:
    """CUDA version that the driver supports; None where there is no driver or no cuda-python."""
    try:
        driver = load_driver("")
        version = int(check(driver, driver.cuDriverGetVersion()))
    except (UnsupportedError, RuntimeError):
        return None
    return version // 1000, version % 1000 // 10


def _first_device(driver: ModuleType, purpose: str) -> Any:
    try:
        check(driver, driver.cuInit(0))
        return check(driver, driver.cuDeviceGet(0))
    except RuntimeError as error:
        raise UnsupportedError(
            f"{purpose} needs an NVIDIA GPU and its driver, and none was found here "
            f"({str(error).splitlines()[0]})."
        ) from error


def _gpu(driver: ModuleType, device: Any) -> Gpu:
    names = driver.CUdevice_attribute
    major, minor = (
        check(driver, driver.cuDeviceGetAttribute(attribute, device))
        for attribute in (
            names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    name = bytes(check(driver, driver.cuDeviceGetName(128, device))).split(b"\0")[0].decode()
    memory = int(check(driver, driver.cuDeviceTotalMem(device)))
    return Gpu(name, f"sm{major}{minor}", memory)
