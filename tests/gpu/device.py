"""Device memory for tests, through cuda-bindings: no torch on the GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ltx2rt_kernels import launch


def capability() -> tuple[int, int] | None:
    """Compute capability of the first GPU; None without GPU, driver or cuda-bindings."""
    try:
        driver = launch._driver()
    except launch.KernelError:
        return None
    attribute = driver.CUdevice_attribute
    device = _call(driver.cuDeviceGet, 0)
    return tuple(  # type: ignore[return-value]
        _call(driver.cuDeviceGetAttribute, a, device)
        for a in (
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )


class Device:
    """The first GPU's primary context; a context manager that frees what it handed out."""

    def __enter__(self) -> Device:
        self.driver = launch._driver()
        self._pointers: list[Any] = []
        self._device = _call(self.driver.cuDeviceGet, 0)
        _call(
            self.driver.cuCtxSetCurrent, _call(self.driver.cuDevicePrimaryCtxRetain, self._device)
        )
        return self

    def __exit__(self, *_: object) -> None:
        for pointer in self._pointers:
            _call(self.driver.cuMemFree, pointer)
        _call(self.driver.cuDevicePrimaryCtxRelease, self._device)

    def upload(self, host: Tensor) -> launch.Tensor:
        """A copy on the device."""
        there = self.empty(tuple(host.shape), host.dtype)
        _call(self.driver.cuMemcpyHtoD, there.pointer, host.data_ptr(), host.nbytes)
        return there

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> launch.Tensor:
        """Memory that holds NaN (every byte 255)."""
        size = torch.Size(shape).numel() * dtype.itemsize
        pointer = _call(self.driver.cuMemAlloc, size)
        self._pointers.append(pointer)
        _call(self.driver.cuMemsetD8, pointer, 255, size)
        return launch.Tensor(pointer=int(pointer), shape=shape)

    def download(self, there: launch.Tensor, dtype: torch.dtype) -> Tensor:
        """A copy on the host, after all work is done."""
        _call(self.driver.cuCtxSynchronize)
        host = torch.empty(there.shape, dtype=dtype)
        _call(self.driver.cuMemcpyDtoH, host.data_ptr(), there.pointer, host.nbytes)
        return host

    def run(
        self,
        kernel: launch.Kernel,
        inputs: Mapping[str, Tensor],
        outputs: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    ) -> dict[str, Tensor]:
        """Outputs of one launch on the default stream."""
        tensors = {name: self.upload(t) for name, t in inputs.items()}
        tensors |= {name: self.empty(*about) for name, about in outputs.items()}
        kernel(tensors, stream=0)
        return {name: self.download(tensors[name], dtype) for name, (_, dtype) in outputs.items()}


def _call(function: Any, *arguments: Any) -> Any:
    status, *values = function(*arguments)
    assert int(status) == 0, f"{function.__name__}: {status.name}"
    return values[0] if values else None
