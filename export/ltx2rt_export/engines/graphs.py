"""Exported graphs, kept by everything that they are traced from: a second build traces nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import onnx

from ltx2rt.engine import Array, TensorSpec
from ltx2rt.errors import BundleError
from ltx2rt.plain_data import read_document, to_plain, write_document
from ltx2rt_export.catalog import factory_module, rows_of
from ltx2rt_export.checkpoint import ModelFiles
from ltx2rt_export.component import Component
from ltx2rt_export.engines.cache import EngineCache, cache_key
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.shipped.find import shipped_graph
from ltx2rt_export.sources import graph_sources

if TYPE_CHECKING:
    from torch import nn

SCHEMA = 1

#: what computes constants of graphs
TABLES = ("ltx2rt.latents.rope",)

#: packages that decide what a graph looks like
PACKAGES = ("torch", "onnx", "onnxscript", "onnx-ir", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedGraph:
    """What lies beside a cached ONNX file; fields as of `ExportedGraph` and its component."""

    schema: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: tuple[str, ...]
    transposed: tuple[str, ...]
    graph_sha256: str


class GraphCache:
    """Graphs in the folder of the engines, whichever model they are of.

    Args:
        folder: where they are kept.
        make: gives a component with its module, by name: for those that came with graphs, but not
            in every dtype.
    """

    def __init__(self, folder: EngineCache, make: Callable[[str], Component] | None = None) -> None:
        self._cache = folder
        self._make = make

    @classmethod
    def of_files(cls, folder: EngineCache, files: ModelFiles) -> Self:
        """For the components of these files."""
        rows = {row.name: row for row in rows_of(files)}
        return cls(folder, lambda name: rows[name].make(files))

    def export(self, component: Component, dtype: str = "float32") -> ExportedGraph:
        """As `onnx.export_component`, or what that gave before, here or where this version of
        ltx2rt was made.
        """
        if graph := shipped_graph(component, dtype):
            return graph
        component = self._with_module(component)
        from ltx2rt_export.onnx import export_component

        key = self._key(component, dtype)
        return self._find(key, component, dtype) or self._store(
            key, export_component(component, dtype)
        )

    def has(self, component: Component, dtype: str) -> bool:
        """Whether `export` traces nothing."""
        if component.shipped is not None and dtype in component.shipped.about.graphs:
            return True
        component = self._with_module(component)
        return self._find(self._key(component, dtype), component, dtype) is not None

    def _with_module(self, component: Component) -> Component:
        """One that came with graphs, but not in every dtype, with its module."""
        if component.module is not None or self._make is None:
            return component
        return dataclasses.replace(
            self._make(component.name),
            weights=component.weights,
            layers=component.layers,
            options=component.options,
        )

    def _key(self, component: Component, dtype: str) -> str:
        """Of a component with its module: everything that decides its graph."""
        kinds = {type(module).__module__ for module in component.network.modules()}
        own = {kind for kind in kinds if not kind.startswith("torch.")}
        return cache_key(
            {
                "sources": graph_sources({factory_module(component.name), *own, *TABLES}),
                "python": platform.python_version(),
                "packages": package_versions(),
                "component": component.name,
                "dtype": dtype,
                "network": _described(component.network),
                "inputs": to_plain(component.inputs),
                "outputs": to_plain(component.outputs),
                "weights": {name: entry.shape for name, entry in component.weights.items()},
                "trace": dict(component.trace),
                "options": to_plain(component.options),
            }
        )

    def _find(self, key: str, component: Component, dtype: str) -> ExportedGraph | None:
        path = self._cache.graph_path(key)
        try:
            kept = read_document(
                CachedGraph, _beside(path), SCHEMA, where=path.name, missing="no graph", again=""
            )
            data = path.read_bytes()
        except (BundleError, OSError):
            return None
        if hashlib.sha256(data).hexdigest() != kept.graph_sha256:
            return None
        component = dataclasses.replace(component, inputs=kept.inputs, outputs=kept.outputs)
        model = onnx.load_model_from_string(data)
        return ExportedGraph(component, model, kept.weights, frozenset(kept.transposed), dtype)

    def _store(self, key: str, graph: ExportedGraph) -> ExportedGraph:
        data = graph.model.SerializeToString(deterministic=True)
        kept = CachedGraph(
            schema=SCHEMA,
            inputs=graph.component.inputs,
            outputs=graph.component.outputs,
            weights=graph.weights,
            transposed=tuple(sorted(graph.transposed)),
            graph_sha256=hashlib.sha256(data).hexdigest(),
        )
        target = self._cache.graph_path(key)
        with self._cache.work() as work:
            made = work / target.name
            made.write_bytes(data)
            write_document(dataclasses.asdict(kept), _beside(made))
            made.replace(target)
            _beside(made).replace(_beside(target))
        return graph


def _described(network: nn.Module) -> list[Any]:
    """Every part of a network: its class, plain attributes and constants; weights only by shape."""
    import torch

    parts: list[Any] = []
    for name, part in network.named_modules():
        plain = {k: repr(v) for k, v in sorted(vars(part).items()) if not k.startswith("_")}
        shapes = {n: list(p.shape) for n, p in part.named_parameters(recurse=False)}
        constants = {
            n: list(b.shape) if b.is_meta else _digest(b.reshape(-1).view(torch.uint8).numpy())
            for n, b in part.named_buffers(recurse=False)
        }
        parts.append([name, type(part).__qualname__, plain, shapes, constants])
    return parts


def _digest(values: Array) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what a graph looks like."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".json")
