"""Engines of any component behind TensorRT's runtime API, on a device in host memory: what they
compute is real, so that stacks on a device are compared with stacks on the host.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ltx2rt.backends.device_memory import DeviceMemory
from ltx2rt.backends.tensorrt import TrtEngine
from ltx2rt.bundle.buckets import Bucket, symbol_sizes
from ltx2rt.bundle.manifest import Tensor
from ltx2rt.engine import NUMPY_DTYPES, Array, Engine, EngineBase, EngineSpec, check_inputs
from ltx2rt.weights.floats import as_dtype, as_float32
from tests.unit.fake_tensorrt import FakeDevice, FakeStream, write_engine

ANY_SIZE = Bucket(name="any", sizes={})
SCRATCH_BYTES = 64


class LoggingDevice(FakeDevice):
    """A device that writes down what happens on it: ("upload", bytes), ("run", component), ..."""

    def __init__(self, memory: int = 2**31) -> None:
        super().__init__("", memory=memory)
        self.log: list[tuple[str, Any]] = []

    def allocate(self, size: int) -> int:
        self.log.append(("allocate", size))
        return super().allocate(size)

    def copy_in(self, address: int, array: Array, stream: FakeStream) -> None:
        self.log.append(("upload", array.nbytes))
        super().copy_in(address, array, stream)

    def copy_out(self, array: Array, address: int, stream: FakeStream) -> None:
        self.log.append(("download", array.nbytes))
        super().copy_out(array, address, stream)

    def array(self, address: int, shape: tuple[int, ...], dtype: Any) -> Array:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.check(address, size)
        return np.frombuffer(ctypes.string_at(address, size), dtype).reshape(shape)


class In16Bits(EngineBase):
    """An engine in float32 whose boundary has the dtypes of its bfloat16 graph; weights too."""

    def __init__(self, engine: Engine, spec: EngineSpec) -> None:
        self._engine, self.spec = engine, spec

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        check_inputs(self.spec, tensors)
        dtypes = {s.name: s.dtype for s in self.spec.inputs}
        wide = {
            n: as_float32(a, dtypes.get(n, "bfloat16" if a.dtype == np.uint16 else "float32"))
            for n, a in tensors.items()
        }
        out = self._engine(wide)
        return {s.name: as_dtype(out[s.name], s.dtype) for s in self.spec.outputs}

    def close(self) -> None:
        self._engine.close()


def device_engine(
    own: Path,
    runner: Engine,
    device: LoggingDevice,
    memory: DeviceMemory,
    weights: Mapping[str, Array],
) -> TrtEngine:
    """A `TrtEngine` that runs `runner`.

    Args:
        own: a folder of its own, where its file goes.
        weights: of one of its layers, for their names, dtypes and shapes; {}: it holds them.
    """
    spec = runner.spec
    own.mkdir(exist_ok=True)
    names = {np.dtype(np.uint16): "bfloat16"}
    path = write_engine(
        own,
        component=spec.component,
        backend="tensorrt",
        inputs=tuple(Tensor(name=t.name, dtype=t.dtype, shape=t.shape) for t in spec.inputs),
        outputs=tuple(Tensor(name=t.name, dtype=t.dtype, shape=t.shape) for t in spec.outputs),
        weight_inputs=tuple(
            Tensor(name=n, dtype=names.get(a.dtype, a.dtype.name), shape=a.shape)
            for n, a in weights.items()
            if n not in {t.name for t in spec.inputs}
        ),
        buckets=(ANY_SIZE,),
    )
    path.write_bytes(str(id(runner)).encode())
    _RUNNERS[path.read_bytes()] = (
        device,
        runner,
        {n: (a.shape, a.dtype) for n, a in weights.items()},
    )
    return TrtEngine(path, spec, {}, "", memory=memory)


#: content of an engine file -> what it runs: device, engine, weights' shapes and dtypes
_RUNNERS: dict[bytes, tuple[LoggingDevice, Engine, Mapping[str, Any]]] = {}


class _Context:
    def __init__(self, device: LoggingDevice, runner: Engine, weights: Mapping[str, Any]) -> None:
        self._device, self._runner, self._weights = device, runner, weights
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = (0, -1)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        return index == 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        spec = self._runner.spec
        sizes = symbol_sizes({s.name: s.shape for s in spec.inputs}, self._shapes)
        shape = next(s.shape for s in spec.outputs if s.name == name)
        return tuple(d if isinstance(d, int) else sizes[d] for d in shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return SCRATCH_BYTES

    def set_device_memory(self, address: int, size: int) -> None:
        self._device.check(address, size)
        self._scratch = (address, size)

    def execute_async_v3(self, stream: int) -> bool:
        assert self._scratch[1] >= SCRATCH_BYTES
        spec = self._runner.spec
        facts = {s.name: (self._shapes[s.name], NUMPY_DTYPES[s.dtype]) for s in spec.inputs}
        tensors = {
            name: self._device.array(self._addresses[name], shape, dtype)
            for name, (shape, dtype) in {**self._weights, **facts}.items()
        }
        self._check_outputs({n: (self._addresses[n], a.nbytes) for n, a in tensors.items()})
        for name, array in self._runner(tensors).items():
            whole = np.ascontiguousarray(array)
            assert whole.shape == self.get_tensor_shape(name)
            self._device.check(self._addresses[name], whole.nbytes)
            ctypes.memmove(self._addresses[name], whole.ctypes.data, whole.nbytes)
        self._device.log.append(("run", spec.component))
        return True

    def _check_outputs(self, read: Mapping[str, tuple[int, int]]) -> None:
        """No output may lie over what the engine reads."""
        for output in self._runner.spec.outputs:
            size = NUMPY_DTYPES[output.dtype].itemsize * int(
                np.prod(self.get_tensor_shape(output.name))
            )
            start = self._addresses[output.name]
            for name, (address, length) in {**read, "scratch": self._scratch}.items():
                apart = address + length <= start or start + size <= address
                assert apart, f"{output.name} lies over {name}"


def make_library() -> Any:
    """The module `tensorrt`."""

    class Logger:
        INTERNAL_ERROR, ERROR, WARNING = "internal", "error", "warning"

    class LoadedEngine:
        def __init__(self, data: bytes) -> None:
            self._facts = _RUNNERS[data]
            spec = self._facts[1].spec
            self.names = list(
                dict.fromkeys((*(s.name for s in (*spec.inputs, *spec.outputs)), *self._facts[2]))
            )
            self.num_io_tensors = len(self.names)

        def get_tensor_name(self, index: int) -> str:
            return self.names[index]

        def create_execution_context(self, strategy: str) -> _Context:
            assert strategy == "user"
            return _Context(*self._facts)

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, data: bytes) -> LoadedEngine:
            return LoadedEngine(data)

    return types.SimpleNamespace(
        __version__="1.7.1.116",
        ILogger=Logger,
        Runtime=Runtime,
        ExecutionContextAllocationStrategy=types.SimpleNamespace(USER_MANAGED="user"),
    )
