"""TensorRT and TensorRT-RTX share one Python API; what differs between them is in `APIS`.

Both libraries are optional and imported only here, when an engine is built or loaded.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ltx2rt.errors import UnsupportedError

#: CUDA versions that both libraries are published for; the last is assumed where there is no driver
CUDA_MAJORS = (12, 13)


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """One of the two libraries.

    Attributes:
        backend: its name in options and manifests; `label` for people.
        module: Python module.
        package: what to install; `{cuda}` is CUDA's major version.
        names_targets: engines are built for named architectures, without a GPU; else for the GPU
            of the build host.
        timing_cache, version_compatible, hardware_compatible, plugins: what its builder has.
        runtime_cache: kernels are compiled on the first run, and may be kept.
    """

    backend: str
    label: str
    module: str
    package: str
    names_targets: bool
    timing_cache: bool
    version_compatible: bool
    hardware_compatible: bool
    plugins: bool
    runtime_cache: bool


APIS = {
    "tensorrt": Api(
        backend="tensorrt",
        label="TensorRT",
        module="tensorrt",
        package="tensorrt-cu{cuda}",
        names_targets=False,
        timing_cache=True,
        version_compatible=True,
        hardware_compatible=True,
        plugins=True,
        runtime_cache=False,
    ),
    "tensorrt-rtx": Api(
        backend="tensorrt-rtx",
        label="TensorRT-RTX",
        module="tensorrt_rtx",
        package="tensorrt-rtx-cu{cuda}",
        names_targets=True,
        timing_cache=False,
        version_compatible=False,
        hardware_compatible=False,
        plugins=False,
        runtime_cache=True,
    ),
}


def installed_version(backend: str) -> str | None:
    """Version of a backend's library as its package states it, or None; nothing is imported."""
    api = APIS[backend]
    names = [api.package.format(cuda=n) for n in reversed(CUDA_MAJORS)]
    for name in (*names, api.module.replace("_", "-")):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def load(backend: str) -> ModuleType:
    """Import a backend's library.

    Raises:
        UnsupportedError: it is not installed, or its shared libraries do not load; says how to
            install it for this machine's CUDA.
    """
    api = APIS[backend]
    try:
        return importlib.import_module(api.module)
    except ImportError as error:
        raise UnsupportedError(
            f"backend {backend} needs {api.label}, which cannot be imported here ({error}); "
            f"{install_hint(api, driver_cuda())}."
        ) from error


def install_hint(api: Api, cuda: tuple[int, int] | None) -> str:
    """How to install a library for the CUDA version that the driver supports (None: no driver)."""
    newest = CUDA_MAJORS[-1]
    if cuda is None:
        package = api.package.format(cuda=newest)
        return f"no NVIDIA driver was found; for CUDA {newest}: pip install {package}"
    found = f"{cuda[0]}.{cuda[1]}"
    if cuda[0] < CUDA_MAJORS[0]:
        return (
            f"the NVIDIA driver supports CUDA {found}, which is too old: update it to one for CUDA "
            f"{CUDA_MAJORS[0]} or newer, then pip install {api.package.format(cuda=newest)}"
        )
    package = api.package.format(cuda=min(cuda[0], newest))
    return f"the NVIDIA driver supports CUDA {found}: pip install {package}"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU of this machine: its name and architecture (`sm90`)."""

    name: str
    target: str


def local_gpu(api: Api) -> Gpu:
    """The first GPU of this machine.

    Raises:
        UnsupportedError: there is none, or cuda-python or the driver is missing.
    """
    need = f"backend {api.backend} needs an NVIDIA GPU in this machine"
    try:
        driver = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise UnsupportedError(f"{need} and cuda-python: pip install 'ltx2rt[cuda]'.") from error
    try:
        _ok(driver, driver.cuInit(0))
        device = _ok(driver, driver.cuDeviceGet(0))
        name = _ok(driver, driver.cuDeviceGetName(128, device))
        attributes = driver.CUdevice_attribute
        major, minor = (
            _ok(driver, driver.cuDeviceGetAttribute(attribute, device))
            for attribute in (
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
    except RuntimeError as error:  # what cuda-python raises where the driver's library is missing
        raise UnsupportedError(f"{need}, and none was found ({error}).") from error
    return Gpu(bytes(name).split(b"\0")[0].decode(), f"sm{major}{minor}")


def _ok(driver: ModuleType, result: tuple[Any, ...]) -> Any:
    """The value of a driver call.

    Raises:
        RuntimeError: the call failed.
    """
    if result[0] != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"CUDA driver: {result[0].name}")
    return result[1] if len(result) > 1 else None


def driver_cuda() -> tuple[int, int] | None:
    """CUDA version that the driver supports, or None where there is no driver or no cuda-python."""
    try:
        driver = importlib.import_module("cuda.bindings.driver")
    except ImportError:
        return None
    try:
        status, version = driver.cuDriverGetVersion()
    except RuntimeError:  # what cuda-python raises where the driver's library is missing
        return None
    return None if int(status) else (int(version) // 1000, int(version) % 1000 // 10)
