"""From a component's graph to an engine in the bundle: buckets, weights, cache, build, sidecar."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from ltx2rt.backends.engine_checks import AMPERE_AND_NEWER, import_plugins
from ltx2rt.backends.tensorrt_api import APIS, load
from ltx2rt.bundle.buckets import Bucket, tensor_ranges
from ltx2rt.bundle.engine_file import SIDECAR_SCHEMA, EngineInfo, file_sha256, write_info
from ltx2rt.bundle.manifest import EngineEntry, Tensor
from ltx2rt.device.cuda import local_gpu
from ltx2rt.engine import Array, TensorSpec
from ltx2rt.env import cache_dir
from ltx2rt.errors import InternalError, OptionError
from ltx2rt.progress import Job
from ltx2rt_export.build_config import BuildConfig
from ltx2rt_export.component import Component
from ltx2rt_export.custom_ops.kernels import engine_facts, used_operators, write_kernels
from ltx2rt_export.engines.activations import activation_bytes, graph_bytes
from ltx2rt_export.engines.builder import EngineRequest
from ltx2rt_export.engines.cache import EngineCache, cache_key
from ltx2rt_export.engines.process import run_build
from ltx2rt_export.engines.profile_request import ProfileRequest
from ltx2rt_export.engines.profiles import component_buckets
from ltx2rt_export.engines.weights import weights_as_constants, weights_as_inputs
from ltx2rt_export.graph import DTYPE_NAMES, ExportedGraph
from ltx2rt_export.quantize.lora_inputs import RANK


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBuilder:
    """Builds the engines of one bundle. Make it with `open_builder`.

    Attributes:
        config: as asked for; `targets` and `device` are resolved.
        version: of the backend's library.
        device: the GPU that engines are timed on, where the backend does that.
        plugins: modules that register plugins -> digests of their sources.
    """

    config: BuildConfig
    profiles: ProfileRequest
    version: str
    targets: tuple[str, ...]
    device: str
    plugins: Mapping[str, str]
    cache: EngineCache

    def build(
        self,
        graph: ExportedGraph,
        precision: str,
        weights: Mapping[str, Array] | None,
        bundle: Path,
        job: Job,
        *,
        layer: int | None = None,
        variant: str = "",
        measured: Component | None = None,
    ) -> EngineEntry:
        """Build one component's engine into `bundle`, or take it from the cache.

        Args:
            graph: in its precision; see `weights.fold_transposes`.
            precision: name of that precision.
            weights: arrays to put inside, by name and in the graph's dtypes and layouts; None:
                weights are inputs.
            bundle: the folder of the bundle.
            job: gets the builder's steps.
            layer: the engine is for this layer alone.
            variant: follows the component's name where it has several engines.
            measured: the component whose activations stand for those of the engine, where its
                module takes more than the graph.

        Raises:
            EngineError: the build failed.
            OSError: a file cannot be written.
        """
        component = graph.component
        stage = f"build {component.name}{variant}" + ("" if layer is None else f" {layer}")
        job.report(stage, 0, 1)
        buckets = component_buckets(component.name, component.inputs, self.profiles)
        with self.cache.work() as work:
            model, digest = self._model(graph, weights, work)
            data = model.SerializeToString(deterministic=True)
            sha256 = hashlib.sha256(data + digest.encode()).hexdigest()
            shapes = [_profile(component.inputs, bucket) for bucket in buckets]
            kernels = self._kernels(graph, work / "kernels")
            key = self._key(sha256, shapes, kernels)
            info = self.cache.find(key)
            if info is None:
                (work / "graph.onnx").write_bytes(data)
                info = self._build(
                    graph,
                    model,
                    precision,
                    work,
                    shapes,
                    buckets,
                    sha256,
                    key,
                    kernels,
                    measured or component,
                    stage,
                    job,
                )
                job.report(stage, 1, 1, f"{info.build_s:.1f} s, {info.engine_bytes / 1e6:.1f} MB")
            else:
                job.report(stage, 1, 1, "from the cache")
        # a kept engine may have been built under another name: what it is called is not in its key
        info = dataclasses.replace(
            info, component=component.name, precision=precision, buckets=buckets
        )
        return self._place(info, bundle, variant, layer)

    def _model(
        self, graph: ExportedGraph, weights: Mapping[str, Array] | None, work: Path
    ) -> tuple[onnx.ModelProto, str]:
        if weights is None or graph.component.weight_binding == "input":
            return weights_as_inputs(graph.model), ""
        return weights_as_constants(graph.model, weights, work)

    def _kernels(self, graph: ExportedGraph, folder: Path) -> tuple[str, str] | None:
        """Compile the kernels of our operators for TensorRT: their folder and architecture."""
        if self.config.backend != "tensorrt" or not used_operators(graph):
            return None
        folder.mkdir()
        return str(folder), write_kernels(graph, self.targets[0], folder)

    def _key(
        self, graph_sha256: str, shapes: list[dict[str, Any]], kernels: tuple[str, str] | None
    ) -> str:
        return cache_key(
            {
                "backend": self.config.backend,
                "version": self.version,
                "targets": self.targets,
                "device": self.device,
                "graph": graph_sha256,
                "profiles": shapes,
                "options": self.config.builder_options(),
                "plugins": self.plugins,
                "kernels": engine_facts(Path(kernels[0])) if kernels else {},
            }
        )

    def _build(
        self,
        graph: ExportedGraph,
        model: onnx.ModelProto,
        precision: str,
        work: Path,
        shapes: list[dict[str, Any]],
        buckets: tuple[Bucket, ...],
        sha256: str,
        key: str,
        kernels: tuple[str, str] | None,
        measured: Component,
        stage: str,
        job: Job,
    ) -> EngineInfo:
        config, component = self.config, graph.component
        engine = work / "engine"
        request = EngineRequest(
            backend=config.backend,
            graph=str(work / "graph.onnx"),
            output=str(engine),
            targets=self.targets if APIS[config.backend].names_targets else (),
            profiles=tuple(shapes),
            timing_cache=None if config.timing_cache is None else str(config.timing_cache),
            plugin_modules=config.plugin_modules,
            kernels=kernels,
            operators=used_operators(graph) if kernels else (),
            **config.builder_options(),
        )

        def on_step(phase: str, step: int, steps: int) -> None:
            if step < steps:
                job.report(stage, step, steps, phase)

        outcome = run_build(component.name, request, on_step)
        names = {t.name for t in component.inputs}
        bound = tuple(_tensor(v) for v in model.graph.input if v.name not in names)
        info = EngineInfo(
            schema=SIDECAR_SCHEMA,
            component=component.name,
            backend=config.backend,
            backend_version=outcome.built.version,
            targets=self.targets,
            precision=precision,
            weights="input" if bound else "constant",
            inputs=manifest_tensors(component.inputs),
            outputs=manifest_tensors(component.outputs),
            weight_inputs=bound,
            buckets=buckets,
            attentions=count_attentions(model),
            graph_sha256=sha256,
            cache_key=key,
            options=dict(config.builder_options()),
            version_compatible=config.version_compatible,
            plugins=self.plugins,
            build_s=outcome.built.build_s,
            peak_memory_bytes=outcome.peak_memory_bytes,
            engine_bytes=outcome.built.engine_bytes,
            engine_sha256=file_sha256(engine),
            activation_bytes=tuple(
                largest_activations(measured, b, graph.dtype)
                if measured.module is not None or measured.shipped is not None
                else graph_bytes(graph, largest_sizes(b))
                for b in buckets
            ),
        )
        self.cache.put(engine, info)
        return info

    def _place(
        self, info: EngineInfo, bundle: Path, variant: str, layer: int | None
    ) -> EngineEntry:
        """Copy an engine and its JSON from the cache to where the manifest looks for them."""
        name = engine_name(info, variant, layer)
        target = bundle / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.cache.path(info.cache_key), target)
        write_info(info, target)
        return EngineEntry(
            file=name,
            sha256=info.engine_sha256,
            bytes=info.engine_bytes,
            backend=info.backend,
            backend_version=info.backend_version,
            targets=info.targets,
            precision=info.precision,
            weights=info.weights,
            version_compatible=info.version_compatible,
            buckets=info.buckets,
        )


def open_builder(config: BuildConfig, profiles: ProfileRequest) -> EngineBuilder:
    """Check that the backend can build here: its library, and its GPU if it needs one.

    Raises:
        UnsupportedError: the library is missing.
        OptionError: the targets are not the GPU of this machine, a plugin module cannot be
            imported, or the cache cannot be used.
    """
    api = APIS[config.backend]
    version = str(load(config.backend).__version__)
    targets, device = config.targets, ""
    if not api.names_targets:
        gpu = local_gpu(f"backend {api.backend}")
        device = gpu.name
        if targets and targets != (gpu.target,):
            raise OptionError(
                f"{api.label} builds for the GPU of this machine, which is {gpu.target} "
                f"({gpu.name}), not for {', '.join(targets)}; leave --target out, or build on that "
                "GPU."
            )
        targets = (AMPERE_AND_NEWER,) if config.hardware_compatible else (gpu.target,)
    cache = EngineCache(config.cache_dir or cache_dir())
    return EngineBuilder(
        config=config,
        profiles=profiles,
        version=version,
        targets=targets,
        device=device,
        plugins=import_plugins(config.plugin_modules),
        cache=cache,
    )


def largest_activations(component: Component, bucket: Bucket, dtype: str) -> int:
    """Estimate of what a run at the largest sizes of a bucket takes, weights left out: LoRA factors
    too, which are weights of a layer.
    """
    inputs = tuple(s for s in component.inputs if RANK not in s.shape)
    small = dataclasses.replace(component, inputs=inputs)
    return activation_bytes(small, largest_sizes(bucket), dtype)


def largest_sizes(bucket: Bucket) -> dict[str, int]:
    """Symbol -> its largest size."""
    return {symbol: size[2] for symbol, size in bucket.sizes.items()}


def engine_name(info: EngineInfo, variant: str = "", layer: int | None = None) -> str:
    """Where an engine lies in a bundle."""
    parts = [info.backend, *info.targets, info.precision]
    if layer is not None:
        parts.append(f"layer{layer:02d}")
    return f"engines/{info.component}{variant}/{'-'.join(parts)}.engine"


def count_attentions(model: onnx.ModelProto) -> int:
    """Attentions of a graph: the Softmax nodes, in loops and calls of local functions too."""
    bodies = {(f.domain, f.name): f.node for f in model.functions}

    def count(nodes: Iterable[onnx.NodeProto]) -> int:
        found = 0
        for node in nodes:
            found += node.op_type == "Softmax"
            found += count(bodies.get((node.domain, node.op_type), ()))
            found += sum(count(a.g.node) for a in node.attribute if a.HasField("g"))
        return found

    return count(model.graph.node)


def _profile(inputs: tuple[TensorSpec, ...], bucket: Bucket) -> dict[str, Any]:
    """Shapes of the inputs that have symbols."""
    return {
        spec.name: tensor_ranges(spec.shape, bucket)
        for spec in inputs
        if any(isinstance(d, str) for d in spec.shape)
    }


def manifest_tensors(specs: tuple[TensorSpec, ...]) -> tuple[Tensor, ...]:
    """A boundary as manifests and the files beside engines have it."""
    return tuple(Tensor(name=t.name, dtype=t.dtype, shape=t.shape) for t in specs)


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    tensor = value.type.tensor_type
    if tensor.elem_type not in DTYPE_NAMES:
        raise InternalError(f"input {value.name} has ONNX element type {tensor.elem_type}")
    shape = tuple(d.dim_value for d in tensor.shape.dim)
    return Tensor(name=value.name, dtype=DTYPE_NAMES[tensor.elem_type], shape=shape)
