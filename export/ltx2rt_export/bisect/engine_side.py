"""The other side: a graph as an engine, built anew for every question, and run on a GPU."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from ltx2rt.backends.runtime_cache import cache_path
from ltx2rt.backends.tensorrt import TrtEngine
from ltx2rt.backends.tensorrt_api import APIS
from ltx2rt.bundle.buckets import Bucket, tensor_ranges
from ltx2rt.bundle.card import trust_of
from ltx2rt.bundle.engine_file import EngineInfo, file_sha256, write_info
from ltx2rt.bundle.manifest import Tensor
from ltx2rt.config import RuntimeConfig
from ltx2rt.device.cuda import CudaDevice
from ltx2rt.engine import Array, EngineSpec, TensorSpec
from ltx2rt.errors import UnsupportedError
from ltx2rt.weights.floats import as_float32
from ltx2rt_export.bisect.marks import marked
from ltx2rt_export.engines.builder import EngineRequest, Shapes
from ltx2rt_export.engines.process import run_build
from ltx2rt_export.engines.weights import weights_as_constants
from ltx2rt_export.graph import DTYPE_NAMES, inputs_to_initializers
from ltx2rt_kernels.spec import DOMAIN


class EngineSide:
    """Engines like one of a bundle: of its library, for its GPUs, with its options, its first
    bucket, and its weights inside or bound.

    Args:
        model: the component's graph, of `marks.typed`.
        info: what lies beside the bundle's engine.
        inputs: in the dtypes of `info`.
        weights: in the graph's dtypes.
        runtime: which GPU, and what engines may run.

    Raises:
        UnsupportedError: the graph holds operators of ours, which TensorRT needs kernels for.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        info: EngineInfo,
        inputs: Mapping[str, Array],
        weights: Mapping[str, Array],
        runtime: RuntimeConfig,
    ) -> None:
        ours = sorted({node.op_type for node in model.graph.node if node.domain == DOMAIN})
        if ours and info.backend == "tensorrt":
            raise UnsupportedError(
                f"the graph of {info.component} holds {', '.join(ours)}, operators of ltx2rt, and "
                "--bisect builds engines of ONNX's own alone; build the bundle with --custom-ops "
                "off, and compare that."
            )
        self.model, self._info = model, info
        self._inputs, self._weights, self._runtime = inputs, weights, runtime

    def values(self, tensors: Sequence[str]) -> dict[str, Array]:
        """These tensors of the graph, floats as float32."""
        model = marked(self.model, tensors)
        outputs = tuple(_tensor(value) for value in model.graph.output)
        info = dataclasses.replace(self._info, outputs=outputs, buckets=self._info.buckets[:1])
        found = self._run(model, info, self._inputs)
        return {name: found[name] for name in tensors}

    def alone(self, model: onnx.ModelProto, inputs: Mapping[str, Array]) -> Array:
        """The only output of a graph of `case.cut`."""
        info = dataclasses.replace(
            self._info,
            inputs=tuple(_tensor(value) for value in model.graph.input),
            outputs=tuple(_tensor(value) for value in model.graph.output),
            weights="constant",
            weight_inputs=(),
            buckets=(Bucket(name="alone", sizes={}),),
        )
        return self._run(model, info, inputs)[info.outputs[0].name]

    def _run(
        self, model: onnx.ModelProto, info: EngineInfo, inputs: Mapping[str, Array]
    ) -> dict[str, Array]:
        device = self._runtime.gpu or 0
        with tempfile.TemporaryDirectory(prefix="ltx2rt-bisect-") as folder:
            work = Path(folder)
            built = self._build(model, info, work)
            with TrtEngine(
                work / "engine",
                _spec(built),
                {} if built.weights == "constant" else self._weights,
                "ltx2rt build",
                lambda need: CudaDevice(need, device),
                trust=trust_of(self._runtime),
            ) as engine:
                found = engine({t.name: inputs[t.name] for t in built.inputs})
                kernels = cache_path(built, engine.memory.device.gpu)
            kernels.unlink(missing_ok=True)  # of an engine that never runs again
        return {t.name: as_float32(found[t.name], t.dtype) for t in built.outputs}

    def _build(self, model: onnx.ModelProto, info: EngineInfo, work: Path) -> EngineInfo:
        """Build `work / "engine"`; returns what lies beside it."""
        if info.weights == "constant":
            own = {t.name for t in info.inputs}
            inputs_to_initializers(model, [v.name for v in model.graph.input if v.name not in own])
            model, _ = weights_as_constants(model, self._weights, work)
        graph, engine = work / "graph.onnx", work / "engine"
        graph.write_bytes(model.SerializeToString())
        request = EngineRequest(
            backend=info.backend,
            graph=str(graph),
            output=str(engine),
            targets=info.targets if APIS[info.backend].names_targets else (),
            profiles=tuple(_shapes(info, bucket) for bucket in info.buckets),
            plugin_modules=tuple(info.plugins),
            **info.options,
        )
        outcome = run_build(info.component, request)
        digest = file_sha256(engine)
        info = dataclasses.replace(
            info,
            backend_version=outcome.built.version,
            graph_sha256=digest,
            cache_key=digest,
            engine_sha256=digest,
            engine_bytes=outcome.built.engine_bytes,
        )
        write_info(info, engine)
        return info


def _shapes(info: EngineInfo, bucket: Bucket) -> dict[str, Shapes]:
    """Shapes of the inputs that have symbols."""
    return {
        t.name: tensor_ranges(t.shape, bucket)
        for t in info.inputs
        if any(isinstance(d, str) for d in t.shape)
    }


def _spec(info: EngineInfo) -> EngineSpec:
    def specs(tensors: tuple[Tensor, ...]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(t.name, t.dtype, t.shape) for t in tensors)

    return EngineSpec(info.component, specs(info.inputs), specs(info.outputs))


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    shape = tuple(d.dim_param or d.dim_value for d in kind.shape.dim)
    return Tensor(name=value.name, dtype=DTYPE_NAMES[kind.elem_type], shape=shape)
