"""The GPUs of this machine, by number; cuda-python is imported only when something is asked."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any, NamedTuple

from ltx2rt.env import visible_devices
from ltx2rt.errors import UnsupportedError
from ltx2rt.install import install_hint

#: the oldest CUDA version whose driver runs what ltx2rt needs
OLDEST_CUDA = (12, 0)


class Gpu(NamedTuple):
    """A GPU of this machine: its name, architecture (`sm90`) and memory."""

    name: str
    target: str
    memory_bytes: int


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
            f"{install_hint('gpu')}."
        ) from error


def check(driver: ModuleType, result: tuple[Any, ...]) -> Any:
    """The value of a driver call, or all of them where it has several.

    Raises:
        RuntimeError: the call failed; cuda-python raises the same where the driver is missing.
    """
    if result[0] != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(result[0].name)
    return result[1] if len(result) == 2 else result[1:] or None


def local_gpu(purpose: str, index: int = 0) -> Gpu:
    """A GPU of this machine.

    Raises:
        UnsupportedError: there is none of that number, or cuda-python or the driver is missing or
            too old.
    """
    driver = load_driver(purpose)
    return _gpu(driver, find_device(driver, purpose, index))


def driver_cuda() -> tuple[int, int] | None:
    """CUDA version that the driver supports; None where there is no driver or no cuda-python."""
    try:
        driver = load_driver("")
        version = int(check(driver, driver.cuDriverGetVersion()))
    except (UnsupportedError, RuntimeError):
        return None
    return version // 1000, version % 1000 // 10


def find_device(driver: ModuleType, purpose: str, index: int) -> Any:
    """The driver's handle of a GPU.

    Raises:
        UnsupportedError: see `local_gpu`.
    """
    try:
        check(driver, driver.cuInit(0))
        count = int(check(driver, driver.cuDeviceGetCount()))
    except RuntimeError as error:
        raise UnsupportedError(
            f"{purpose} needs an NVIDIA GPU and its driver, and none was found here "
            f"({_why_none() or str(error).splitlines()[0]})."
        ) from error
    cuda = driver_cuda()
    if cuda is not None and cuda < OLDEST_CUDA:
        raise UnsupportedError(
            f"{purpose} needs a driver for CUDA {OLDEST_CUDA[0]} or newer, and this one supports "
            f"CUDA {cuda[0]}.{cuda[1]}: update the NVIDIA driver."
        )
    if not 0 <= index < count:
        have = "0" if count == 1 else f"0 to {count - 1}"
        raise UnsupportedError(
            f"device {index} was asked for, and this machine shows {count} "
            f"{'GPU' if count == 1 else 'GPUs'} ({have}); name one of them with --device."
        )
    return check(driver, driver.cuDeviceGet(index))


def _why_none() -> str | None:
    shown = visible_devices()
    if shown is None:
        return None
    if not shown.strip():
        return "CUDA_VISIBLE_DEVICES is empty, which hides every GPU: unset it"
    return f"CUDA_VISIBLE_DEVICES={shown} names none of this machine's"


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
