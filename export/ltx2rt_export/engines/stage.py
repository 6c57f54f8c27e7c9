"""The engine part of building a bundle: nothing for ONNX Runtime, engines for the others."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx2rt.backends.tensorrt_api import APIS
from ltx2rt.bundle.load_weights import engine_tensors, stored_tensor, tensor_entry
from ltx2rt.bundle.manifest import UNMASKED, ComponentEntry, EngineEntry, ModelInfo, Source
from ltx2rt.components.decoder_tiles import DEVICE_BYTES
from ltx2rt.engine import Array
from ltx2rt.env import cache_dir
from ltx2rt.latents.shapes import VideoScaleFactors
from ltx2rt.names import (
    DIFFUSION_FEATURES,
    TEXT_STACK,
    TRANSFORMER_BLOCKS,
    TRANSFORMER_STACK,
    WRITING_STACK,
)
from ltx2rt.progress import Job
from ltx2rt.weights.precision import PRECISIONS
from ltx2rt.weights.safetensors import MappedFiles
from ltx2rt_export.build_config import BuildConfig
from ltx2rt_export.checkpoint import ModelFiles
from ltx2rt_export.component import Component
from ltx2rt_export.custom_ops import apply_custom_ops, operators_for, require_compiler
from ltx2rt_export.custom_ops.linear_attention import use_linear_attention
from ltx2rt_export.custom_ops.token_chunks import chunk_feed_forward
from ltx2rt_export.device_graphs.table import device_graphs
from ltx2rt_export.engines.bias_rank import with_wide_biases
from ltx2rt_export.engines.build import EngineBuilder, manifest_tensors, open_builder
from ltx2rt_export.engines.cache import EngineCache
from ltx2rt_export.engines.graphs import GraphCache
from ltx2rt_export.engines.profile_request import ProfileRequest
from ltx2rt_export.engines.shapes import parse_shapes
from ltx2rt_export.engines.video_profiles import check_sides
from ltx2rt_export.engines.weights import fold_transposes, holding_layers, holding_weights
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.unmasked import without_masks


@dataclass(frozen=True, slots=True)
class EngineStage:
    """What building a bundle asks of the backend.

    Attributes:
        builder: None for ONNX Runtime.
        cache_dir: where exported graphs are kept.
        custom_ops, weights: see `BuildConfig`.
    """

    builder: EngineBuilder | None
    cache_dir: Path
    custom_ops: str = "auto"
    weights: str = "input"

    def dtype(self, component: str, config: BuildConfig) -> str | None:
        """Of what a component's precision does not quantise, if not the precision's own. ONNX
        Runtime has float32 kernels only on a CPU; on a GPU its stacks run in 16 bits, and
        convolutions, which it does not have in every 16-bit type, in float32.
        """
        if self.builder is not None:
            return None
        stacks = (TEXT_STACK, WRITING_STACK, TRANSFORMER_STACK)
        stacked = any(component in names.components for names in stacks)
        on_cpu = any(PRECISIONS[p].on_cpu for p in (config.precision, config.asked(component)))
        return "float32" if on_cpu or not stacked else None

    def graphs(self, files: ModelFiles) -> GraphCache:
        """What exports components of these files; the graphs are kept for the next build."""
        return GraphCache.of_files(EngineCache(self.cache_dir), files)

    def finish(self, graph: ExportedGraph, precision: str) -> ExportedGraph:
        """The graph with our operators, where they were asked for, and its weights laid out as the
        backend wants them.

        Raises:
            UnsupportedError: operators that no kernel runs on this target.
        """
        builder = self.builder
        backend = "onnxruntime" if builder is None else builder.config.backend
        target = builder.targets[0] if builder is not None and builder.targets else None
        graph = apply_custom_ops(
            graph, backend=backend, target=target, precision=precision, mode=self.custom_ops
        )
        if builder is None:
            graph = chunk_feed_forward(use_linear_attention(graph))
            row = PRECISIONS[precision]
            # what is converted at every use would be held converted
            inside = row.inside or (self.weights == "constant" and row.stored is None)
            held = inside and graph.component.name in TRANSFORMER_BLOCKS
            return holding_layers(graph) if held else graph
        return with_wide_biases(fold_transposes(graph))

    def unmasked(self, graph: ExportedGraph, precision: str) -> ExportedGraph | None:
        """The finished graph of passes without masks, of components that have one. Engines that
        hold their weights have none: it would hold them again.

        Args:
            graph: before `finish`.

        Raises:
            UnsupportedError: see `finish`.
        """
        if self.builder is not None and holds_weights(self.builder.config, graph.component):
            return None
        without = without_masks(graph)
        return None if without is None else self.finish(without, precision)

    def add(
        self,
        graphs: Sequence[ExportedGraph],
        unmasked: Mapping[str, ExportedGraph],
        entries: Mapping[str, ComponentEntry],
        sources: Sequence[Source],
        bundle: Path,
        job: Job,
    ) -> dict[str, ComponentEntry]:
        """The entries with their engines, built into `bundle`."""
        done = dict(entries)
        if self.builder is None:
            return done
        places = [bundle / s.path for s in sources]
        for graph in graphs:
            name = graph.component.name
            engines = self._engines(self.builder, graph, done[name], places, bundle, job)
            done[name] = dataclasses.replace(done[name], engines=tuple(engines))
            entry = done[name].unmasked
            if entry is not None:
                built = self.builder.build(
                    unmasked[name],
                    done[name].precision,
                    None,
                    bundle,
                    job,
                    variant=UNMASKED,
                    measured=graph.component,
                )
                entry = dataclasses.replace(entry, engines=(built,))
                done[name] = dataclasses.replace(done[name], unmasked=entry)
        return done

    def add_device_graphs(
        self, graphs: Sequence[ExportedGraph], bundle: Path, precision: str, job: Job
    ) -> dict[str, ComponentEntry]:
        """Entries of the graphs that run beside these components, with their engines; they and the
        graphs are written into `bundle`. Nothing for ONNX Runtime.
        """
        entries: dict[str, ComponentEntry] = {}
        if self.builder is None:
            return entries
        for graph in device_graphs([graph.component for graph in graphs]):
            component, data = graph.component, graph.model.SerializeToString(deterministic=True)
            place = f"graphs/{component.name}.onnx"
            (bundle / place).write_bytes(data)
            entries[component.name] = ComponentEntry(
                graph=place,
                graph_sha256=hashlib.sha256(data).hexdigest(),
                precision=precision,
                inputs=manifest_tensors(component.inputs),
                outputs=manifest_tensors(component.outputs),
                weight_binding="initializer",
                transposed=(),
                layers=({},),
                options={},
                engines=(self.builder.build(graph, precision, None, bundle, job),),
            )
        return entries

    def _engines(
        self,
        builder: EngineBuilder,
        graph: ExportedGraph,
        entry: ComponentEntry,
        sources: Sequence[Path],
        bundle: Path,
        job: Job,
    ) -> Iterator[EngineEntry]:
        weights: Mapping[str, Array] | None = None
        if holds_weights(builder.config, graph.component):
            if graph.component.weight_binding == "input":
                held = holding_weights(graph)
                for layer in entry.served:
                    weights = StoredWeights(entry, sources, layer)
                    yield builder.build(held, entry.precision, weights, bundle, job, layer=layer)
                return
            weights = StoredWeights(entry, sources)
        yield builder.build(graph, entry.precision, weights, bundle, job)


def holds_weights(config: BuildConfig, component: Component) -> bool:
    """Whether a component's engines have its weights inside. Those of the text encoder's layers
    never have: they run once a prompt, and would take more time to load.
    """
    return config.weights == "constant" and (
        component.weight_binding != "input" or component.name in TRANSFORMER_BLOCKS
    )


class StoredWeights(Mapping[str, Array]):
    """Weights of one layer as its engine takes them, each read when it is asked for."""

    def __init__(self, entry: ComponentEntry, sources: Sequence[Path], layer: int = 0) -> None:
        self._entry = entry
        self._sources = sources
        self._weights = entry.layers[layer]
        self._ready = entry.overlays[layer] if entry.overlays else {}
        self._files = MappedFiles()

    def __getitem__(self, name: str) -> Array:
        if name in self._ready:
            tensor = tensor_entry(name, self._ready[name], self._sources)
            return stored_tensor(self._entry, name, self._files.raw(tensor))
        tensor = tensor_entry(name, self._weights[name], self._sources)
        values, dtype = self._files.values(tensor)
        return engine_tensors(self._entry, name, values, dtype, f"{name} of {tensor.path}")[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights.keys() | self._ready.keys())

    def __len__(self) -> int:
        return len(self._weights.keys() | self._ready.keys())


def with_tile_memory(config: BuildConfig, components: Sequence[Component]) -> list[Component]:
    """The components, the diffusion decoder's with the memory that its automatic tiles may take on
    a device: the runtime then makes the tiles that engines are built for.
    """
    if config.backend not in APIS:
        return list(components)
    room = DEVICE_BYTES if config.decoder_mib is None else config.decoder_mib * 2**20
    return [
        dataclasses.replace(c, options={**c.options, "tile_bytes": room})
        if c.name == DIFFUSION_FEATURES
        else c
        for c in components
    ]


def profile_request(
    config: BuildConfig, model: ModelInfo, options: Mapping[str, Mapping[str, Any]]
) -> ProfileRequest:
    """What the buckets of a model are made for.

    Raises:
        ShapeError: a shape is not one of this model's.
        OptionError: all are too small for its video VAE.
    """
    factors = VideoScaleFactors(model.time_scale, model.spatial_scale, model.spatial_scale)
    request = ProfileRequest(
        shapes=parse_shapes(config.shapes, factors),
        max_batch=config.max_batch,
        factors=factors,
        options=options,
    )
    check_sides(request)
    return request


def engine_stage(
    config: BuildConfig, model: ModelInfo, options: Mapping[str, Mapping[str, Any]]
) -> EngineStage:
    """Check that the backend can build here, with our operators if they are asked for.

    Raises:
        UnsupportedError: no kernel for this target and precision, or none can be compiled; and see
            `open_builder`.
    """
    folder = config.cache_dir or cache_dir()
    if config.backend not in APIS:
        return EngineStage(None, folder, config.custom_ops, config.weights)
    builder = open_builder(config, profile_request(config, model, options))
    target = builder.targets[0] if builder.targets else None
    names = operators_for(config.backend, target, config.precision, config.custom_ops)
    if names and config.backend == "tensorrt":
        require_compiler()
    return EngineStage(builder, folder, config.custom_ops)
