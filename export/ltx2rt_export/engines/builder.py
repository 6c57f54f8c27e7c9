"""Build one engine with TensorRT or TensorRT-RTX: the only file that talks to their builders.

Runs in a process of its own (`worker.py`): after a failed build, later ones in the same process can
fail too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ltx2rt.backends.tensorrt_api import APIS, load, make_logger
from ltx2rt.errors import EngineError
from ltx2rt_kernels.errors import KernelError

#: called with (phase, step, steps) as the builder goes on
OnStep = Callable[[str, int, int], None]

#: smallest, likely and largest shape of an input
Shapes = tuple[Sequence[int], Sequence[int], Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """What to build.

    Attributes:
        backend: a key of `APIS`.
        graph: the ONNX file; external data lies beside it.
        output: where the engine goes.
        targets: `sm89`, ...; empty: the GPU of this machine.
        profiles: one mapping per optimization profile: input name to its shapes; inputs of fixed
            shape are left out.
        optimization_level: 0 to 5; None is the library's own choice.
        workspace_bytes, aux_streams: limits; None likewise.
        timing_cache: file to read and extend (TensorRT).
        hardware_compatible: also run on other GPUs from Ampere on (TensorRT).
        version_compatible: also load in other versions (TensorRT).
        plugin_modules: Python modules whose import registers plugins (TensorRT).
        kernels: folder of compiled kernels, and their architecture (TensorRT); None: no operators
            of ours are in the graph.
        operators: those that are.
    """

    backend: str
    graph: str
    output: str
    targets: tuple[str, ...] = ()
    profiles: tuple[Mapping[str, Shapes], ...] = ()
    optimization_level: int | None = None
    workspace_bytes: int | None = None
    aux_streams: int | None = None
    timing_cache: str | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    plugin_modules: tuple[str, ...] = ()
    kernels: tuple[str, str] | None = None
    operators: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    """What came out: the library's version, the tensors of the network, seconds and bytes."""

    version: str
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    build_s: float
    engine_bytes: int
    warnings: tuple[str, ...] = field(default=())


def build_engine(request: EngineRequest, on_step: OnStep | None = None) -> BuiltEngine:
    """Parse the graph, build the engine and write it to `request.output`.

    Raises:
        UnsupportedError: the library is missing.
        EngineError: the graph is refused or the build fails; gives the library's own words.
        OSError: the engine cannot be written.
    """
    trt = load(request.backend)
    for module in request.plugin_modules:
        import_module(module)
    if request.kernels is not None:
        folder, arch = request.kernels
        plugin = import_module("ltx2rt_kernels.plugin")
        try:
            plugin.register_plugins(Path(folder), arch, request.operators)
        except KernelError as error:
            raise EngineError(str(error)) from error
    logger = make_logger(trt)
    start = time.perf_counter()
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    label = f"{APIS[request.backend].label} {trt.__version__}"
    if not parser.parse_from_file(request.graph):
        problems = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise EngineError(f"{label} refuses the graph: {_first(problems or logger.errors)}")
    config = _configure(trt, builder, network, request)
    monitor = _make_monitor(trt, on_step) if on_step is not None else None
    if monitor is not None:
        config.progress_monitor = monitor
    writer = _make_writer(trt, Path(request.output))
    try:
        built = builder.build_serialized_network_to_stream(network, config, writer)
    finally:
        writer.file.close()
    if writer.problem is not None:
        raise writer.problem
    if not built:
        raise EngineError(f"{label} cannot build the engine: {_first(logger.errors)}")
    _save_timing_cache(config, request)
    return BuiltEngine(
        version=str(trt.__version__),
        inputs=_tensors(network.get_input, network.num_inputs),
        outputs=_tensors(network.get_output, network.num_outputs),
        build_s=time.perf_counter() - start,
        engine_bytes=Path(request.output).stat().st_size,
        warnings=tuple(logger.warnings),
    )


def _first(messages: Sequence[str]) -> str:
    return " ".join(messages[0].split())[:600] if messages else "it gives no reason"


def _network_flags(trt: ModuleType) -> int:
    """Always strongly typed: the graph decides every dtype. Ignored from TensorRT 11 on."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _configure(trt: ModuleType, builder: Any, network: Any, request: EngineRequest) -> Any:
    api = APIS[request.backend]
    config = builder.create_builder_config()
    if api.names_targets and request.targets:
        config.num_compute_capabilities = len(request.targets)
        for i, target in enumerate(request.targets):
            capability = getattr(trt.ComputeCapability, target.upper())
            if not config.set_compute_capability(capability, i):  # it would build for this GPU
                raise EngineError(f"{api.label} {trt.__version__} refuses the target {target}")
    if request.optimization_level is not None:
        config.builder_optimization_level = request.optimization_level
    if request.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    if request.aux_streams is not None:
        config.max_aux_streams = request.aux_streams
    if request.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if request.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if request.timing_cache is not None:
        path = Path(request.timing_cache)
        data = path.read_bytes() if path.exists() else b""
        if not config.set_timing_cache(config.create_timing_cache(data), False):
            raise EngineError(
                f"{api.label} {trt.__version__} refuses the timing cache {path}: it is of another "
                "GPU or version; name another file, or remove it"
            )
    names = {network.get_input(i).name for i in range(network.num_inputs)}
    for shapes in request.profiles:
        profile = builder.create_optimization_profile()
        for name, (smallest, likely, largest) in shapes.items():
            if name not in names:  # a parser drops inputs that nothing reads
                continue
            try:
                profile.set_shape(name, tuple(smallest), tuple(likely), tuple(largest))
            except ValueError as error:
                raise EngineError(
                    f"{api.label} {trt.__version__} refuses the sizes {smallest} to {largest} of "
                    f"{name}: {error}"
                ) from error
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"{api.label} {trt.__version__} refuses the profile {dict(shapes)}")
    return config


def _save_timing_cache(config: Any, request: EngineRequest) -> None:
    if request.timing_cache is None:
        return
    path = Path(request.timing_cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(bytes(config.get_timing_cache().serialize()))
    part.replace(path)


def _tensors(get: Callable[[int], Any], count: int) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    tensors = (get(i) for i in range(count))
    return tuple((t.name, dtype_name(t.dtype), tuple(t.shape)) for t in tensors)


#: the library's data types -> dtype names of manifests
DTYPE_NAMES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
    "FP8": "float8_e4m3fn",
    "FP4": "float4_e2m1fn",
    "INT4": "int4",
    "E8M0": "float8_e8m0fnu",
}


def dtype_name(data_type: Any) -> str:
    """The manifest's name of a `DataType` of the library."""
    return DTYPE_NAMES[data_type.name]


def _make_monitor(trt: ModuleType, on_step: OnStep) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc,name-defined]
        """Hands the builder's phases on: steps of the outermost, with the innermost's name."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.root: str | None = None
            self.phases: dict[str, tuple[int, int]] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.root = self.root or name
            self.phases[name] = (0, steps)
            self._say(name)

        def step_complete(self, name: str, step: int) -> bool:
            self.phases[name] = (step + 1, self.phases.get(name, (0, 0))[1])
            if name == self.root:
                self._say(name)
            return True

        def phase_finish(self, name: str) -> None:
            self.phases.pop(name, None)

        def _say(self, name: str) -> None:
            done, steps = self.phases.get(self.root or "", (0, 1))
            on_step(name, done, steps)

    return Monitor()


def _make_writer(trt: ModuleType, path: Path) -> Any:
    class Writer(trt.IStreamWriter):  # type: ignore[misc,name-defined]
        """Writes the engine as it is made, so that it is never in memory as a whole."""

        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.file = path.open("wb")
            self.problem: OSError | None = None

        def write(self, data: Any) -> int:
            try:
                return self.file.write(data)
            except OSError as error:  # must not leave through the library
                self.problem = error
                return 0

    return Writer()
