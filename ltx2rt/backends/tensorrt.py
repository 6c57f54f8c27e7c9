"""TensorRT and TensorRT-RTX engines behind the `Engine` protocol.

A call takes and gives host arrays; `device_stack` binds tensors that are on the device already.
Weights are uploaded once; everything runs in order on one stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ltx2rt.backends.device_memory import DeviceMemory, DeviceTensor
from ltx2rt.backends.engine_checks import check_gpu, check_plugins, check_version
from ltx2rt.backends.runtime_cache import RuntimeCache
from ltx2rt.backends.tensorrt_api import APIS, load, make_logger
from ltx2rt.bundle.buckets import choose_bucket, symbol_sizes
from ltx2rt.bundle.engine_file import read_info
from ltx2rt.bundle.manifest import Tensor
from ltx2rt.device.cuda import CudaDevice, Device
from ltx2rt.engine import NUMPY_DTYPES, Array, EngineBase, EngineSpec, Shaped, check_inputs
from ltx2rt.errors import EngineError, InternalError

#: (output, bytes) -> the address where it goes
Place = Callable[[str, int], int]

#: bits of one element, by dtype name; weights come in more dtypes than other tensors
BITS = {
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "int64": 64,
    "int32": 32,
    "int8": 8,
    "uint8": 8,
    "bool": 8,
    "float8_e4m3fn": 8,
    "float4_e2m1": 4,
    "int4": 4,
}


def tensor_bytes(tensor: Tensor) -> int:
    """Memory of a tensor of fixed shape."""
    elements = math.prod(d for d in tensor.shape if isinstance(d, int))
    return -(-elements * BITS[tensor.dtype] // 8)


class TrtEngine(EngineBase):
    """One engine with its context and device memory.

    Args:
        path: the engine file; its JSON lies beside it.
        spec: the component's boundary; inputs that `spec` does not list are weights.
        weights: those bound once, by name; the others are given at every call, and stay on the
            device as long as their arrays live.
        rebuild: command that builds the engine again, for errors.
        make_device: tests give another.
        memory: shared with engines that it takes turns with; None: its own.

    Raises:
        UnsupportedError: the library, cuda-python, the driver or the GPU is missing.
        BundleError: the engine is of another version, for other GPUs or of other plugins.
        OptionError: one of its plugins cannot be imported.
        EngineError: the library refuses the engine, or the device has too little memory.
    """

    def __init__(
        self,
        path: Path,
        spec: EngineSpec,
        weights: Mapping[str, Array],
        rebuild: str,
        make_device: Callable[[str], Device] = CudaDevice,
        memory: DeviceMemory | None = None,
    ) -> None:
        self._spec = spec
        self._info = read_info(path)
        trt = load(self._info.backend)
        self._label = f"{APIS[self._info.backend].label} {trt.__version__}"
        check_version(self._info, str(trt.__version__), rebuild)
        check_plugins(self._info, rebuild)
        if memory is None:
            memory = DeviceMemory(make_device(f"backend {self._info.backend}"))
        self._memory = memory.opened()
        self._device = self._memory.device
        self._bound = dict(weights)
        self._profile = -1
        self._kernels: RuntimeCache | None = None
        self._ran = False
        self._closed = False
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        try:
            check_gpu(self._info, self._device.gpu.target, self._device.gpu.name, rebuild)
            self._load(trt, path)
        except BaseException:
            self.close()
            raise

    @property
    def spec(self) -> EngineSpec:
        return self._spec

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run once on host arrays; see `Engine`."""
        found = self.bind(tensors)
        self.bind_weights(tensors)
        self.enqueue()
        outputs = {}
        for name, tensor in found.items():
            outputs[name] = np.empty(tensor.shape, tensor.dtype)
            self._device.download(outputs[name], tensor.address)
        self.synchronize()
        return outputs

    def bind(
        self, tensors: Mapping[str, Shaped], place: Place | None = None
    ) -> dict[str, DeviceTensor]:
        """Choose the profile, upload the inputs that are arrays, set the addresses of inputs,
        outputs and scratch memory.

        Args:
            tensors: arrays, or `DeviceTensor`s.
            place: says where outputs go, never over an input; None: to buffers of their own.

        Returns:
            where the outputs will be.
        """
        check_inputs(self._spec, tensors)
        self._device.activate()
        shapes = {t.name: t.shape for t in self._spec.inputs}
        sizes = symbol_sizes(shapes, {name: tensors[name].shape for name in shapes})
        self._choose_profile(choose_bucket(self._spec.component, self._info.buckets, sizes))
        for name in shapes.keys() & self._names:
            given = tensors[name]
            if isinstance(given, np.ndarray):
                given = self._memory.upload(f"input {name}", given)
            assert isinstance(given, DeviceTensor)
            self._ok(self._context.set_input_shape(name, given.shape), f"the shape of {name}")
            self._bind(name, given.address)
        outputs = {}
        for tensor in self._spec.outputs:
            shape = tuple(self._context.get_tensor_shape(tensor.name))
            dtype = NUMPY_DTYPES[tensor.dtype]
            size = math.prod(shape) * dtype.itemsize
            if place is None:
                address = self._memory.buffer(f"output {tensor.name}", size)
            else:
                address = place(tensor.name, size)
            self._bind(tensor.name, address)
            outputs[tensor.name] = DeviceTensor(shape, dtype, address)
        self._set_scratch()
        return outputs

    def bind_weights(self, weights: Mapping[str, Shaped]) -> None:
        """Set the addresses of all weights: those given, else those bound once. After `bind`, so
        that they take what memory is left.

        Raises:
            InternalError: a weight is missing or has another size.
        """
        for weight in self._info.weight_inputs:
            if weight.name not in self._names:
                continue
            given = weights.get(weight.name, self._bound.get(weight.name))
            if not isinstance(given, np.ndarray | DeviceTensor):
                raise InternalError(f"{self._spec.component} got no weight {weight.name}")
            if given.nbytes != tensor_bytes(weight):
                raise InternalError(
                    f"{self._spec.component}: weight {weight.name} has {given.nbytes} bytes, its "
                    f"engine takes {tensor_bytes(weight)}"
                )
            if isinstance(given, DeviceTensor):
                self._bind(weight.name, given.address)
            else:
                self._bind(weight.name, self._memory.weight(weight.name, given))

    def enqueue(self) -> None:
        """Run on the stream with what `bind` and `bind_weights` set, without waiting."""
        self._ran = True
        self._ok(self._context.execute_async_v3(self._device.stream), "the run")

    def synchronize(self) -> None:
        """Wait for what is enqueued."""
        self._memory.synchronize()

    def close(self) -> None:
        """Free the context, the engine and its memory; closing again does nothing."""
        if self._closed:
            return
        self._closed = True
        self._device.activate()
        if self._ran and self._kernels is not None:
            self._kernels.save()
        # in this order: each lives in what follows
        self._context = self._kernels = self._engine = self._runtime = None
        self._bound = {}
        self._memory.close()

    def _load(self, trt: ModuleType, path: Path) -> None:
        self._logger = make_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        # an engine for other versions brings a runtime of its own, which is code of the host
        self._runtime.engine_host_code_allowed = self._info.version_compatible
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise EngineError(f"{self._label} cannot load {path}: {self._said()}")
        self._context = self._create_context(trt)
        if self._context is None:
            raise EngineError(f"{self._label} cannot run {path}: {self._said()}")
        count = self._engine.num_io_tensors
        self._names = {self._engine.get_tensor_name(i) for i in range(count)}

    def _create_context(self, trt: ModuleType) -> Any:
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not APIS[self._info.backend].runtime_cache:
            return self._engine.create_execution_context(strategy)
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        self._kernels = RuntimeCache(config, self._info, self._device.gpu)
        return self._engine.create_execution_context(config)

    def _choose_profile(self, index: int) -> None:
        if index != self._profile:
            done = self._context.set_optimization_profile_async(index, self._device.stream)
            self._ok(done, f"profile {index}")
            self._profile = index

    def _set_scratch(self) -> None:
        """Give the context the memory that its activations need at these shapes."""
        size = int(self._context.update_device_memory_size_for_shapes())
        self._context.set_device_memory(self._memory.buffer("", size), size)

    def _bind(self, name: str, address: int) -> None:
        self._ok(self._context.set_tensor_address(name, address), f"the address of {name}")

    def _ok(self, done: bool, what: str) -> None:
        if not done:
            raise EngineError(
                f"{self._label} refuses {what} in {self._spec.component}: {self._said()}"
            )

    def _said(self) -> str:
        return " ".join(self._logger.errors[-1].split()) if self._logger.errors else "no reason"
