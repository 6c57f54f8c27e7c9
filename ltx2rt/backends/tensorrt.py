"""TensorRT and TensorRT-RTX engines behind the `Engine` protocol.

A call takes and gives host arrays; `device_stack` binds tensors that are on the device already.
Weights are uploaded once; everything runs in order on one stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltx2rt.backends.binding import Binding, Place
from ltx2rt.backends.device_memory import DeviceMemory, DeviceTensor
from ltx2rt.backends.engine_checks import (
    NO_TRUST,
    Trust,
    check_gpu,
    check_host_code,
    check_plugins,
    check_version,
)
from ltx2rt.backends.runtime_cache import RuntimeCache, cache_path
from ltx2rt.backends.tensorrt_api import APIS, load, logger_of
from ltx2rt.bundle.buckets import Bucket
from ltx2rt.bundle.engine_file import read_info
from ltx2rt.bundle.manifest import Tensor
from ltx2rt.device.cuda import CudaDevice
from ltx2rt.device.device import Device
from ltx2rt.engine import Array, EngineBase, EngineSpec, Shaped, check_inputs
from ltx2rt.errors import EngineError, InternalError

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


def _no_context() -> Any:
    raise InternalError("an engine that is not loaded")


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
        specialize: when TensorRT-RTX makes kernels for sizes: `EAGER` before the first run of a
            size, `NONE` never, `LAZY` meanwhile, so that the first runs take other kernels.
        trust: what of the engine may run code of the host.

    Raises:
        UnsupportedError: the library, cuda-python, the driver or the GPU is missing.
        BundleError: the engine is of another version, for other GPUs or of other plugins, or it
            would run code that is not trusted.
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
        specialize: str = "EAGER",
        trust: Trust = NO_TRUST,
    ) -> None:
        self._spec = spec
        self._info = read_info(path)
        self._specialize = specialize
        self._trt = load(self._info.backend)
        self._label = f"{APIS[self._info.backend].label} {self._trt.__version__}"
        check_version(self._info, str(self._trt.__version__), rebuild)
        check_host_code(self._info, trust)
        check_plugins(self._info, rebuild, trust)
        if memory is None:
            memory = DeviceMemory(make_device(f"backend {self._info.backend}"))
        self._memory = memory.opened()
        self._device = self._memory.device
        self._bound = dict(weights)
        self._kernels: RuntimeCache | None = None
        self._ran = False
        self._closed = False
        self._runtime: Any = None
        self._engine: Any = None
        self._own: Any = None
        self._make_context: Callable[[], Any] = _no_context
        try:
            check_gpu(self._info, self._device.gpu.target, self._device.gpu.name, rebuild)
            self._load(path)
        except BaseException:
            self.close()
            raise

    @property
    def spec(self) -> EngineSpec:
        return self._spec

    @property
    def memory(self) -> DeviceMemory:
        """That it shares with the engines that it takes turns with."""
        return self._memory

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The sizes that it was built for."""
        return self._info.buckets

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run once on host arrays; see `Engine`."""
        with self._memory.lock:
            found = self.bind(tensors)
            self.bind_weights(tensors)
            timeline = self._memory.timeline
            with timeline.span(self._device.compute, self._memory.track, self._spec.component):
                self.enqueue()
            outputs = {name: np.empty(t.shape, t.dtype) for name, t in found.items()}
            self.receive([(outputs[n], t.address) for n, t in found.items()])
            timeline.collect()
            if self._memory.is_planned:  # others take their turn in the same memory
                self._memory.drop_buffers()
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
        feeds = {}
        for spec in self._spec.inputs:
            given = tensors[spec.name]
            if isinstance(given, np.ndarray) and spec.name in self._names:
                given = self._memory.upload(f"input {spec.name}", given)
            elif isinstance(given, np.ndarray):
                given = DeviceTensor(given.shape, given.dtype, 0)  # the engine does not read it
            assert isinstance(given, DeviceTensor)
            feeds[spec.name] = given
        outputs: dict[str, DeviceTensor] = self._own.bind(feeds, place or self._buffer)
        return outputs

    def bind_weights(self, weights: Mapping[str, Shaped], binding: Binding | None = None) -> None:
        """Set the addresses of all weights: those given, else those bound once.

        Args:
            binding: one of `new_binding`; None: the engine's own.

        Raises:
            InternalError: a weight is missing or has another size.
        """
        binding = binding or self._own
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
                binding.set_address(weight.name, given.address)
            else:
                binding.set_address(weight.name, self._memory.weight(weight.name, given))

    def enqueue(self) -> None:
        """Run on the compute stream with what `bind` and `bind_weights` set, without waiting."""
        self.run(self._own)

    def new_binding(self) -> Binding:
        """A further execution context, for a caller that sets it once and runs it often."""
        return self._binding(self._create_context())

    def run(self, binding: Binding) -> None:
        """Enqueue one of `new_binding` on the compute stream."""
        self._ran = True
        binding.enqueue(self._device.compute)

    def wait(self) -> None:
        """Wait for what is enqueued."""
        self._memory.synchronize()

    def receive(self, wanted: Sequence[tuple[Array, int]]) -> None:
        """Copy outputs to the host, and wait for what is enqueued."""
        self._memory.staging.receive(wanted, self._device.compute)

    def close(self) -> None:
        """Free the context, the engine and its memory; closing again does nothing."""
        if self._closed:
            return
        self._closed = True
        self._device.activate()
        if not self._memory.closed:
            self._memory.finish()  # a context must not go while it runs
        if self._kernels is not None and not self._kernels.close(used=self._ran):
            self._memory.kernels.pop(self._kernels.path)
        # in this order: each lives in what follows
        self._own, self._make_context = None, _no_context
        self._kernels = self._engine = self._runtime = None
        self._bound = {}
        self._memory.close()

    def _load(self, path: Path) -> None:
        self._logger = logger_of(self._info.backend)
        self._runtime = self._trt.Runtime(self._logger)
        # an engine for other versions brings a runtime of its own, which is code of the host; that
        # it may was checked
        self._runtime.engine_host_code_allowed = self._info.version_compatible
        self._device.activate()
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            self._device.raise_if_lost()
            raise EngineError(f"{self._label} cannot load {path}: {self._said()}")
        count = self._engine.num_io_tensors
        self._names = {self._engine.get_tensor_name(i) for i in range(count)}
        self._make_context = self._context_maker()
        self._own = self._binding(self._create_context())

    def _context_maker(self) -> Callable[[], Any]:
        """Makes contexts whose memory is ours; those of TensorRT-RTX share their kernels."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not APIS[self._info.backend].runtime_cache:
            return lambda: self._engine.create_execution_context(strategy)
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        kinds = self._trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = getattr(kinds, self._specialize)
        path, shared = cache_path(self._info, self._device.gpu), self._memory.kernels
        if path not in shared:
            shared[path] = RuntimeCache(path, config)
        shared[path].open_for(config)
        self._kernels = shared[path]
        return lambda: self._engine.create_execution_context(config)

    def _create_context(self) -> Any:
        context = self._make_context()
        if context is None:
            self._device.raise_if_lost()
            raise EngineError(f"{self._label} cannot run {self._spec.component}: {self._said()}")
        return context

    def _binding(self, context: Any) -> Binding:
        return Binding(
            context, self._spec, self._info, self._names, self._memory, self._label, self._said
        )

    def _buffer(self, output: str, size: int) -> int:
        return self._memory.buffer(f"output {output}", size)

    def _said(self) -> str:
        return " ".join(self._logger.errors[-1].split()) if self._logger.errors else "no reason"
