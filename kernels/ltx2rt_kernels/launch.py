"""Launch precompiled kernels through the CUDA driver: no Triton, no torch.

The only module of this package that the runtime may import. Nothing here needs a GPU until `load`
is called; cuda-bindings is imported there.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ltx2rt_kernels.errors import KernelError, raise_problems
from ltx2rt_kernels.expressions import evaluate, solve

SCHEMA = 2

#: dynamic shared memory that a kernel may use without asking the driver first, in bytes
PLAIN_SHARED_LIMIT = 48 * 1024

#: compute capability to the artifacts that run on it, best first; `a` code runs nowhere else
ARTIFACTS_FOR = {
    (8, 0): ("80",),
    (8, 6): ("80",),
    (8, 7): ("80",),
    (8, 9): ("89", "80"),
    (9, 0): ("90a",),
    (10, 0): ("100a",),
    (12, 0): ("120a",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor that is passed: device address, shape, packed row-major."""

    pointer: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchConfig:
    """Blocks in x, y, z; threads of a block; bytes of dynamic shared memory."""

    grid: tuple[int, int, int]
    threads: int
    shared: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The JSON file beside an artifact, as far as a launch needs it."""

    name: str
    arch: str
    entry: str
    parameters: tuple[tuple[str, str], ...]
    tensors: Mapping[str, tuple[str, ...]]
    scalars: Mapping[str, str]
    multiples: Mapping[str, int]
    sizes: Mapping[str, int]
    tiles: Mapping[str, int]
    grid: tuple[str, str, str]
    threads: int
    shared: int
    cubin_sha256: str

    @classmethod
    def read(cls, path: Path) -> Description:
        """Read `<op>.<variant>.<arch>.json`.

        Raises:
            KernelError: the file is missing, not one of ours, or of another version.
        """
        try:
            about: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError:
            raise KernelError(f"no kernel {path}; build it with ltx2rt_kernels.build") from None
        except json.JSONDecodeError as error:
            raise KernelError(f"{path} is not a kernel description: {error}") from None
        if about.get("schema") != SCHEMA:
            raise KernelError(
                f"{path} has schema {about.get('schema')}, this version reads {SCHEMA}; build the "
                "kernels again"
            )
        return cls(
            name=path.stem,
            arch=about["arch"],
            entry=about["entry"],
            parameters=tuple((p["name"], p["type"]) for p in about["parameters"]),
            tensors={t["name"]: tuple(t["shape"]) for t in (*about["inputs"], *about["outputs"])},
            scalars={s["name"]: s["value"] for s in about["scalars"]},
            multiples={s["name"]: s["divisible_by"] for s in about["scalars"]},
            sizes=about["sizes"],
            tiles=about["tiles"],
            grid=tuple(about["grid"]),
            threads=about["threads"],
            shared=about["shared"],
            cubin_sha256=about["files"]["cubin"]["sha256"],
        )

    def dimensions(self, tensors: Mapping[str, Tensor]) -> dict[str, int]:
        """Value of every dimension name, from the shapes of the tensors.

        Raises:
            KernelError: lists tensors that are missing, unknown, misaligned or of another shape.
        """
        problems = [f"{name} is missing" for name in self.tensors if name not in tensors]
        problems += [f"it has no tensor {name}" for name in tensors if name not in self.tensors]
        sizes = dict(self.sizes)
        for name, shape in self.tensors.items():
            if name not in tensors:
                continue
            tensor = tensors[name]
            problems += [f"{name} {p}" for p in solve(shape, tensor.shape, sizes)]
            if tensor.pointer % 16:
                problems.append(f"{name} is at {tensor.pointer:#x}, not a multiple of 16 bytes")
        raise_problems(f"kernel {self.name} cannot be launched", problems)
        return sizes

    def launch_config(self, dimensions: Mapping[str, int]) -> LaunchConfig:
        """Blocks and threads for these dimensions."""
        known = {**self.tiles, **dimensions}
        x, y, z = (evaluate(text, known) for text in self.grid)
        if not (0 < x < 2**31 and 0 < y < 2**16 and 0 < z < 2**16):
            raise KernelError(f"kernel {self.name} cannot run as {x} x {y} x {z} blocks")
        return LaunchConfig(grid=(x, y, z), threads=self.threads, shared=self.shared)

    def arguments(
        self, tensors: Mapping[str, Tensor], dimensions: Mapping[str, int]
    ) -> list[ctypes.c_uint64 | ctypes.c_int32]:
        """Values of the kernel's parameters, in its order.

        Raises:
            KernelError: an integer is beyond 32 bits, or not the multiple that was compiled for.
        """
        known = {**self.tiles, **dimensions}
        values: list[ctypes.c_uint64 | ctypes.c_int32] = []
        for name, kind in self.parameters:
            if kind.startswith("*"):
                values.append(ctypes.c_uint64(tensors[name.removesuffix("_ptr")].pointer))
                continue
            value = evaluate(self.scalars[name], known)
            if not -(2**31) <= value < 2**31:
                raise KernelError(f"kernel {self.name}: {name} is {value}, beyond 32 bits")
            if value % self.multiples[name]:
                raise KernelError(
                    f"kernel {self.name}: {name} is {value}, not a multiple of "
                    f"{self.multiples[name]}"
                )
            values.append(ctypes.c_int32(value))
        return values


def find_artifact(directory: Path, kernel: str, capability: tuple[int, int]) -> Path:
    """Description of `<op>.<variant>` that runs on a GPU of this compute capability.

    Raises:
        KernelError: there is none.
    """
    names = ARTIFACTS_FOR.get(capability, ())
    for arch in names:
        if (path := directory / f"{kernel}.{arch}.json").is_file():
            return path
    major, minor = capability
    have = sorted(p.name.split(".")[-2] for p in directory.glob(f"{kernel}.*.json"))
    raise KernelError(
        f"no kernel {kernel} for compute capability {major}.{minor} in {directory}; there are: "
        f"{', '.join(have) or 'none'}"
    )


class Kernel:
    """A kernel on the current CUDA context; a context manager, unloaded at the end."""

    def __init__(self, path: Path) -> None:
        """Load the cubin beside a description.

        Raises:
            KernelError: no driver, a damaged file, or the driver refuses.
        """
        self.description = Description.read(path)
        file = path.with_suffix(".cubin")
        try:
            cubin = file.read_bytes()
        except FileNotFoundError:
            raise KernelError(f"no kernel {file}; build it with ltx2rt_kernels.build") from None
        if hashlib.sha256(cubin).hexdigest() != self.description.cubin_sha256:
            raise KernelError(f"{file} differs from its description")
        self._driver = _driver()
        self._module = self._call("cuModuleLoadData", cubin)
        try:
            self._function = self._prepare()
        except KernelError:
            self.close()
            raise

    def _prepare(self) -> Any:
        """The function of the loaded module, allowed its shared memory."""
        function = self._call("cuModuleGetFunction", self._module, self.description.entry.encode())
        if self.description.shared > PLAIN_SHARED_LIMIT:
            attribute = self._driver.CUfunction_attribute
            self._call(
                "cuFuncSetAttribute",
                function,
                attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                self.description.shared,
            )
        return function

    def __call__(self, tensors: Mapping[str, Tensor], stream: int) -> None:
        """Enqueue the kernel on a stream (its handle); returns before it has run.

        Raises:
            KernelError: tensors do not fit, or the driver refuses.
        """
        self.bind(tensors)(stream)

    def bind(self, tensors: Mapping[str, Tensor]) -> Callable[[int], None]:
        """Work out a launch once, to enqueue it many times: the result takes a stream's handle.

        Raises:
            KernelError: tensors do not fit; later: the driver refuses.
        """
        dimensions = self.description.dimensions(tensors)
        launch = self.description.launch_config(dimensions)
        values = self.description.arguments(tensors, dimensions)
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))

        def enqueue(stream: int) -> None:
            assert len(addresses) == len(values)  # keeps the values alive
            self._call(
                "cuLaunchKernel",
                self._function,
                *launch.grid,
                *(launch.threads, 1, 1),
                launch.shared,
                stream,
                ctypes.addressof(addresses),
                0,
            )

        return enqueue

    def close(self) -> None:
        """Unload; the kernel must have finished."""
        if self._module is not None:
            self._call("cuModuleUnload", self._module)
            self._module = None

    def __enter__(self) -> Kernel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, function: str, *arguments: Any) -> Any:
        status, *values = getattr(self._driver, function)(*arguments)
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise KernelError(f"kernel {self.description.name}: {function} says {status.name}")
        return values[0] if values else None


def _driver() -> Any:
    """cuda-bindings' driver module, with a driver behind it."""
    try:
        from cuda.bindings import driver
    except ImportError:
        raise KernelError(
            "launching kernels needs cuda-bindings; install ltx2rt with its extra cuda"
        ) from None
    try:
        (status,) = driver.cuInit(0)
    except RuntimeError as error:  # the driver library is missing
        raise KernelError(f"launching kernels needs an NVIDIA driver: {error}") from None
    if status != driver.CUresult.CUDA_SUCCESS:
        raise KernelError(f"launching kernels needs an NVIDIA GPU: cuInit says {status.name}")
    return driver
