"""TensorRT and TensorRT-RTX share one Python API; what differs between them is in `APIS`.

Both libraries are optional and imported only here, when an engine is built or loaded.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ltx2rt.device.gpus import driver_cuda
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
    except (ImportError, OSError) as error:  # OSError: from the wheels that load libraries by name
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


#: module -> its logger: a library keeps the first one that it gets, for good
_LOGGERS: dict[int, tuple[ModuleType, Any]] = {}


def logger_of(backend: str) -> Any:
    """The logger of a backend's library, one a process; it keeps errors and warnings for messages.

    Raises:
        UnsupportedError: see `load`.
    """
    trt = load(backend)
    if id(trt) not in _LOGGERS:
        _LOGGERS[id(trt)] = trt, make_logger(trt)
    return _LOGGERS[id(trt)][1]


def make_logger(trt: ModuleType) -> Any:
    """A logger that keeps errors and warnings for messages."""

    class Logger(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            """Called by the library, on any of its threads."""
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.WARNING and len(self.warnings) < 100:
                self.warnings.append(message)

    return Logger()
