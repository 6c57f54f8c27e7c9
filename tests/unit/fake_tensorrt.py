"""A library with TensorRT's runtime API and a device in host memory: `y = x + w`, where `w` is an
input or inside the engine.
"""

from __future__ import annotations

import ctypes
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ltx2rt.bundle.buckets import Bucket
from ltx2rt.bundle.engine_file import SIDECAR_SCHEMA, EngineInfo, write_info
from ltx2rt.bundle.manifest import Tensor
from ltx2rt.device.gpus import Gpu
from ltx2rt.engine import Array, EngineSpec, TensorSpec

VERSION = "1.7.1.116"

#: an engine that brings code of the host, as those for other versions do
HOST_CODE = b"hosted"

#: an engine that holds its weight, which follows as text
HELD = b"held "
SPEC = EngineSpec(
    "toy",
    (TensorSpec("x", "float32", ("B", 4)), TensorSpec("unread", "float32", ("B",))),
    (TensorSpec("y", "float32", ("B", 4)),),
)
BUCKETS = (
    Bucket(name="small", sizes={"B": (1, 2, 4)}),
    Bucket(name="large", sizes={"B": (1, 16, 32)}),
)


class FakeEvent:
    is_done = True

    def sync(self) -> None:
        """Everything runs when it is enqueued."""


class FakeStream:
    def __init__(self, handle: int) -> None:
        self.handle = handle

    def record(self) -> FakeEvent:
        return FakeEvent()

    def wait(self, event: FakeEvent) -> None:
        """Streams run in the order of the calls."""

    def sync(self) -> None:
        """Nothing is left to run."""


class FakePinned:
    is_pinned = True

    def __init__(self, size: int) -> None:
        self.array = np.zeros(size, np.uint8)

    def close(self) -> None:
        """It goes with its last reference."""


class FakeGraph:
    """Runs again what was captured: there is no capture here that could differ."""

    def __init__(self, enqueue: Callable[[], object]) -> None:
        self.launch = enqueue

    def close(self) -> None:
        """It goes with its last reference."""


class FakeDevice:
    """Device memory is host memory; every address is checked before it is used."""

    def __init__(self, purpose: str, target: str = "sm89", memory: int = 2**20) -> None:
        self.gpu = Gpu("a card", target, memory)
        self.compute, self.upload = FakeStream(7), FakeStream(8)
        self.memory = memory
        self.blocks: dict[int, Any] = {}
        self.uploads: list[int] = []
        self.threads: set[int] = set()
        self.closed = False
        self.is_lost = False

    def raise_if_lost(self) -> None:
        """It never is."""

    def finish(self, *streams: FakeStream) -> None:
        """Nothing is left to run."""

    def activate(self) -> None:
        self.threads.add(threading.get_ident())

    def allocate(self, size: int) -> int:
        block = ctypes.create_string_buffer(max(size, 1))
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def free(self, address: int) -> None:
        del self.blocks[address]

    def free_bytes(self) -> int:
        return self.memory - sum(len(b) for b in self.blocks.values())

    def check(self, address: int, size: int) -> None:
        """Refuse what does not lie inside one block."""
        assert any(a <= address and address + size <= a + len(b) for a, b in self.blocks.items()), (
            "no such memory"
        )

    def pinned(self, size: int) -> FakePinned:
        return FakePinned(size)

    def capture(self, enqueue: Callable[[], object]) -> FakeGraph:
        return FakeGraph(enqueue)

    def copy_in(self, address: int, array: Array, stream: FakeStream) -> None:
        assert threading.get_ident() in self.threads, "no context in this thread"
        self.check(address, array.nbytes)
        assert array.flags.c_contiguous
        self.uploads.append(array.nbytes)
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def copy_out(self, array: Array, address: int, stream: FakeStream) -> None:
        self.check(address, array.nbytes)
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def close(self) -> None:
        assert not self.closed, "the stream is gone already"
        self.closed = True

    def read(self, address: int, shape: tuple[int, ...]) -> Array:
        buffer = self.blocks[address]
        return np.frombuffer(buffer, np.float32, int(np.prod(shape))).reshape(shape)


class FakeContext:
    def __init__(self, device: FakeDevice, held: float | None = None) -> None:
        self.device = device
        self.held = held
        self.profiles: list[int] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = (0, -1)
        self.fail = False
        self.compiled: FakeCache | None = None
        self.compilations = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream == self.device.compute.handle
        self.profiles.append(index)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes["x"]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return 100 * self.shapes["x"][0]

    def set_device_memory(self, address: int, size: int) -> None:
        assert len(self.device.blocks[address]) >= size
        self.scratch = (address, size)

    def execute_async_v3(self, stream: int) -> bool:
        if self.fail:
            return False
        assert self.scratch[1] == self.update_device_memory_size_for_shapes()
        shape = self.shapes["x"]
        if self.compiled is not None and b"K%d;" % shape[0] not in self.compiled.kernels:
            self.compilations += 1
            self.compiled.kernels += b"K%d;" % shape[0]
        x = self.device.read(self.addresses["x"], shape)
        w = self.held
        if w is None:
            w = self.device.read(self.addresses["w"], (4,))
        out = (x + w).astype(np.float32)
        ctypes.memmove(self.addresses["y"], out.ctypes.data, out.nbytes)
        return True


class FakeConfig:
    """A runtime configuration with its cache of kernels."""

    def __init__(self) -> None:
        self.strategy = ""
        self.dynamic_shapes_kernel_specialization_strategy = "lazy"
        self.cache: FakeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> FakeCache:
        return FakeCache()

    def set_runtime_cache(self, cache: FakeCache) -> bool:
        self.cache = cache
        return True


class FakeCache:
    """Kernels are the numbers of rows that were run."""

    def __init__(self) -> None:
        self.kernels = b""

    def serialize(self) -> bytes:
        return self.kernels

    def deserialize(self, data: bytes) -> bool:
        if not data.startswith(b"K"):
            return False
        self.kernels = data
        return True


def make_library(device: FakeDevice, context: FakeContext, *, loads: bool = True) -> Any:
    """The module that `tensorrt_api.load` finds; `context` is the first that an engine gives."""
    given: list[FakeContext] = []

    class Logger:
        INTERNAL_ERROR, ERROR, WARNING = "internal", "error", "warning"

    class Engine:
        def __init__(self, data: bytes) -> None:
            self.held = float(data.removeprefix(HELD)) if data.startswith(HELD) else None
            self.names = ("x", "y") if self.held is not None else ("x", "w", "y")
            self.num_io_tensors = len(self.names)

        def get_tensor_name(self, index: int) -> str:
            return self.names[index]

        def create_runtime_config(self) -> FakeConfig:
            return FakeConfig()

        def create_execution_context(self, config: FakeConfig) -> FakeContext:
            assert config.strategy == "user"
            assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
            first = self.held is None and not given
            made = context if first else FakeContext(device, self.held)
            given.append(made)
            made.compiled = config.cache
            return made

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
            if loads and data == HOST_CODE and not self.engine_host_code_allowed:
                self.logger.log(Logger.ERROR, "host code is not allowed")
                return None
            if not loads:
                self.logger.log(Logger.ERROR, "the engine\nis broken")
            return Engine(data) if loads else None

    return types.SimpleNamespace(
        __version__=VERSION,
        ILogger=Logger,
        Runtime=Runtime,
        ExecutionContextAllocationStrategy=types.SimpleNamespace(USER_MANAGED="user"),
        DynamicShapesKernelSpecializationStrategy=types.SimpleNamespace(EAGER="eager"),
    )


def write_engine(folder: Path, held: float | None = None, **changes: Any) -> Path:
    """An engine file and its JSON; with its weight inside if `held` is given."""
    path = folder / ("toy.engine" if held is None else f"toy-{held:g}.engine")
    path.write_bytes(HOST_CODE if changes.get("version_compatible") else b"engine")
    if held is not None:
        path.write_bytes(HELD + str(held).encode())
        changes |= {"weights": "constant", "weight_inputs": ()}
    facts: dict[str, Any] = {
        "schema": SIDECAR_SCHEMA,
        "component": "toy",
        "backend": "tensorrt-rtx",
        "backend_version": VERSION,
        "targets": ("sm89", "sm120"),
        "precision": "fp32",
        "weights": "input",
        "inputs": tuple(Tensor(name=t.name, dtype=t.dtype, shape=t.shape) for t in SPEC.inputs),
        "outputs": tuple(Tensor(name=t.name, dtype=t.dtype, shape=t.shape) for t in SPEC.outputs),
        "weight_inputs": (
            Tensor(name="w", dtype="float32", shape=(4,)),
            Tensor(name="dropped", dtype="float32", shape=(2,)),
        ),
        "buckets": BUCKETS,
        "attentions": 0,
        "graph_sha256": "0" * 64,
        "cache_key": "1" * 32,
        "options": {},
        "version_compatible": False,
        "build_s": 1.0,
        "peak_memory_bytes": 2**28,
        "engine_bytes": 6,
        "engine_sha256": "2" * 64,
    }
    write_info(EngineInfo(**{**facts, **changes}), path)
    return path
