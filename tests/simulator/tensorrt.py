"""The runtime API of TensorRT and TensorRT-RTX over the simulated driver.

`make_module("tensorrt_rtx")` is what `import tensorrt_rtx` gives while a simulation runs. Engines
are files of `engine_program`; an execution context enqueues their graph as a kernel, with the
addresses that are set when it is enqueued. Names and arguments are those of the real bindings
(`test_tensorrt_face.py`); as there, what is refused returns False and says why to the logger.
"""

from __future__ import annotations

import enum
import types
import weakref
from collections.abc import Sequence
from typing import Any

from tests.simulator.driver import SimulatedDriver, running
from tests.simulator.engine_program import Program
from tests.simulator.execution import ExecutionContext, Severity

VERSIONS = {"tensorrt_rtx": "1.7.1.116", "tensorrt": "11.4.0.106"}
BACKENDS = {"tensorrt_rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}


class ILogger:
    Severity = Severity
    INTERNAL_ERROR, ERROR, WARNING = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.WARNING
    INFO, VERBOSE = Severity.INFO, Severity.VERBOSE

    def __init__(self) -> None:
        pass

    def log(self, severity: Severity, msg: str) -> None:
        raise TypeError('Tried to call pure virtual function "nvinfer1::ILogger::log"')


class Logger(ILogger):
    def __init__(self, min_severity: Severity = Severity.WARNING) -> None:
        self.min_severity = min_severity
        self.messages: list[tuple[Severity, str]] = []

    def log(self, severity: Severity, msg: str) -> None:
        if severity <= self.min_severity:
            self.messages.append((severity, msg))


class DataType(enum.IntEnum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    FP8 = 6
    BF16 = 7
    INT64 = 8
    INT4 = 9
    FP4 = 10
    E8M0 = 11


DATA_TYPES = {
    "float32": DataType.FLOAT,
    "float16": DataType.HALF,
    "bfloat16": DataType.BF16,
    "int64": DataType.INT64,
    "int32": DataType.INT32,
    "int8": DataType.INT8,
    "uint8": DataType.UINT8,
    "bool": DataType.BOOL,
    "float8_e4m3fn": DataType.FP8,
    "int4": DataType.INT4,
}


class TensorIOMode(enum.IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.IntEnum):
    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(enum.IntEnum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class CudaGraphStrategy(enum.IntEnum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(enum.IntEnum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class Library:
    """What one imported library has in common: the first logger it was given, and the driver.

    A second logger is ignored; a first one that is gone is called all the same, which is a mistake.
    """

    def __init__(self, module: str) -> None:
        self.module = module
        self._logger: weakref.ref[ILogger] | None = None

    @property
    def is_rtx(self) -> bool:
        return self.module == "tensorrt_rtx"

    @property
    def driver(self) -> SimulatedDriver:
        return running()

    def use_logger(self, logger: ILogger) -> None:
        if self._logger is None:
            self._logger = weakref.ref(logger)
        elif self._logger() is not logger:
            self.log(
                Severity.WARNING,
                "The logger passed into createInferRuntime differs from one already registered for "
                "an existing builder, runtime, or refitter. So the current new logger is ignored.",
            )

    def log(self, severity: Severity, text: str) -> None:
        logger = self._logger() if self._logger is not None else None
        if logger is not None:
            logger.log(severity, text)
        elif severity <= Severity.ERROR:
            self.driver.report(f"the library calls its first logger, which is gone: {text}")


class IHostMemory:
    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def nbytes(self) -> int:
        return len(self._data)

    @property
    def dtype(self) -> DataType:
        return DataType.INT8

    def __bytes__(self) -> bytes:
        return self._data

    def __len__(self) -> int:
        return len(self._data)


class IRuntimeCache:
    """Kernels that were compiled: one for every engine and shape that ran."""

    def __init__(self) -> None:
        self.kernels: set[str] = set()

    def serialize(self) -> IHostMemory:
        return IHostMemory("\n".join(("kernels", *sorted(self.kernels))).encode())

    def deserialize(self, blob: bytes) -> bool:
        head, *kernels = bytes(blob).decode(errors="replace").split("\n")
        if head != "kernels":
            return False
        self.kernels.update(kernels)
        return True

    def reset(self) -> bool:
        self.kernels.clear()
        return True


class IRuntimeConfig:
    """How contexts get their memory; TensorRT has no more than this."""

    def __init__(self) -> None:
        self._strategy = ExecutionContextAllocationStrategy.STATIC

    def set_execution_context_allocation_strategy(
        self,
        strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC,
    ) -> None:
        self._strategy = ExecutionContextAllocationStrategy(strategy)

    def get_execution_context_allocation_strategy(self) -> ExecutionContextAllocationStrategy:
        return self._strategy


class RtxRuntimeConfig(IRuntimeConfig):
    """What TensorRT-RTX adds: kernels are compiled when they first run."""

    cuda_graph_strategy = CudaGraphStrategy.DISABLED
    dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def __init__(self) -> None:
        super().__init__()
        self._cache: IRuntimeCache | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        kept = getattr(type(self), name, value)
        if not isinstance(value, type(kept)):  # the bindings take no number for a member
            raise TypeError(f"{name} takes a {type(kept).__name__}, not {value!r}")
        object.__setattr__(self, name, value)

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache | None = None) -> bool:
        self._cache = cache
        return True

    def get_runtime_cache(self) -> IRuntimeCache | None:
        return self._cache


class ICudaEngine:
    """Reads its file only; nothing is on the device before a context runs."""

    def __init__(self, library: Library, program: Program) -> None:
        self._library = library
        self._program = program
        self._tensors = {t.name: t for t in (*program.inputs, *program.outputs)}
        self._inputs = {t.name for t in program.inputs}

    @property
    def name(self) -> str:
        return "simulated"

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return max(len(self._program.profiles), 1)

    @property
    def device_memory_size_v2(self) -> int:
        return max(
            self.get_device_memory_size_for_profile_v2(i)
            for i in range(self.num_optimization_profiles)
        )

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        if not 0 <= profile_index < self.num_optimization_profiles:
            return 0
        largest = {
            t.name: self.get_tensor_profile_shape(t.name, profile_index)[2]
            for t in self._program.inputs
        }
        return self._program.scratch_bytes(largest)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        if name not in self._tensors:
            return TensorIOMode.NONE
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DATA_TYPES[self._tensors[name].dtype]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else -1 for d in self._tensors[name].shape)

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        ranges = dict(self._program.profiles[profile_index]) if self._program.profiles else {}
        return list(ranges.get(name) or [self.get_tensor_shape(name)] * 3)

    def create_runtime_config(self) -> IRuntimeConfig:
        return RtxRuntimeConfig() if self._library.is_rtx else IRuntimeConfig()

    def create_execution_context(
        self,
        strategy: ExecutionContextAllocationStrategy | IRuntimeConfig = (
            ExecutionContextAllocationStrategy.STATIC
        ),
    ) -> IExecutionContext:
        config = strategy
        if not isinstance(config, IRuntimeConfig):
            config = self.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
        return (RtxExecutionContext if self._library.is_rtx else IExecutionContext)(self, config)

    def serialize(self) -> IHostMemory:
        return IHostMemory(self._program.to_bytes())


class IExecutionContext(ExecutionContext):
    """What the bindings show of an execution context; the work is in `execution`."""

    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig) -> None:
        super().__init__(engine._library, engine._program, config)
        self._engine = engine

    @property
    def engine(self) -> ICudaEngine:
        return self._engine

    def get_runtime_config(self) -> Any:
        return self._config


class RtxExecutionContext(IExecutionContext):
    def is_stream_capturable(self, stream: int) -> bool:
        """Not while kernels for other shapes may still replace those that run."""
        return self._can_be_captured()


class Runtime:
    _library: Library
    engine_host_code_allowed = False

    def __init__(self, logger: ILogger) -> None:
        self._given = logger  # lives as long as the runtime

    @property
    def logger(self) -> ILogger:
        return self._given

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        library = self._library
        try:
            program = Program.from_bytes(bytes(serialized_engine))
        except ValueError as error:
            library.log(Severity.ERROR, f"IRuntime::deserializeCudaEngine: Error Code 1: {error}")
            return None
        if program.backend != BACKENDS[library.module]:
            library.log(Severity.ERROR, f"the engine was built by {program.backend}")
            return None
        return ICudaEngine(library, program)


SHARED: Sequence[Any] = (
    ILogger,
    Logger,
    DataType,
    TensorIOMode,
    TensorLocation,
    ExecutionContextAllocationStrategy,
    ICudaEngine,
    IExecutionContext,
    IRuntimeConfig,
    IHostMemory,
)
OF_RTX: Sequence[Any] = (
    IRuntimeCache,
    CudaGraphStrategy,
    DynamicShapesKernelSpecializationStrategy,
)


def make_module(name: str) -> Any:
    """A library as `import tensorrt_rtx` or `import tensorrt` gives it."""
    library = Library(name)

    class BoundRuntime(Runtime):
        _library = library

        def __init__(self, logger: ILogger) -> None:
            super().__init__(logger)
            library.use_logger(logger)

    BoundRuntime.__name__ = BoundRuntime.__qualname__ = "Runtime"
    module = types.ModuleType(name)
    vars(module).update({c.__name__: c for c in SHARED})
    vars(module).update(__version__=VERSIONS[name], Runtime=BoundRuntime, library=library)
    if library.is_rtx:
        vars(module).update({c.__name__: c for c in OF_RTX})
        vars(module).update(IRuntimeConfig=RtxRuntimeConfig, IExecutionContext=RtxExecutionContext)
    return module
