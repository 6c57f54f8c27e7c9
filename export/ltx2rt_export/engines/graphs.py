"""Exported graphs, kept by everything that they are traced from: a second build traces nothing."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.metadata
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import onnx

import ltx2rt
import ltx2rt_export
from ltx2rt.engine import TensorSpec
from ltx2rt.errors import BundleError
from ltx2rt.plain_data import read_document, write_document
from ltx2rt_export.catalog import rows_of
from ltx2rt_export.checkpoint import ModelFiles
from ltx2rt_export.component import Component
from ltx2rt_export.engines.cache import EngineCache, cache_key
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.shipped.find import shipped_graph

SCHEMA = 1

#: modules that, with all that they import, decide what a graph looks like
EXPORTERS = ("ltx2rt_export.catalog", "ltx2rt_export.onnx")

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
    """Graphs of one model in the folder of the engines.

    Args:
        folder: where they are kept.
        model: JSON data that decides what the model's components are. Our exporting sources and
            the packages that they use decide the rest, and are always in the key.
        make: gives a component of this model with its module, by name: for those that came with
            graphs, but not in every dtype.
    """

    def __init__(
        self,
        folder: EngineCache,
        model: Mapping[str, Any],
        make: Callable[[str], Component] | None = None,
    ) -> None:
        self._cache = folder
        self._model = model
        self._make = make

    @classmethod
    def of_files(cls, folder: EngineCache, files: ModelFiles) -> Self:
        """Of a model whose components are a function of what the headers of its files say."""
        gemma = files.gemma
        headers = {role: weights.headers_sha256 for role, weights in files.files.items()}
        shards = [file.header_sha256 for file in gemma.files] if gemma else []
        return cls(
            folder,
            {
                "version": dataclasses.asdict(files.version),
                "files": headers,
                "gemma": [dict(gemma.config), shards] if gemma else None,
            },
            lambda name: next(row for row in rows_of(files) if row.name == name).make(files),
        )

    def export(self, component: Component, dtype: str = "float32") -> ExportedGraph:
        """As `onnx.export_component`, or what that gave before, here or where this version of
        ltx2rt was made.
        """
        if graph := shipped_graph(component, dtype):
            return graph
        if component.module is None and self._make is not None:
            component = dataclasses.replace(
                self._make(component.name),
                weights=component.weights,
                layers=component.layers,
                options=component.options,
            )
        from ltx2rt_export.onnx import export_component

        key = cache_key({**self._facts(), "component": component.name, "dtype": dtype})
        return self._find(key, component, dtype) or self._store(
            key, export_component(component, dtype)
        )

    def _facts(self) -> dict[str, Any]:
        return {
            "sources": exporter_sha256(),
            "python": platform.python_version(),
            "packages": package_versions(),
            **self._model,
        }

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


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what a graph looks like."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def sources_sha256() -> str:
    """Digest of all our Python."""
    return _digest(_sources())


@cache
def exporter_sha256() -> str:
    """Digest of the Python that decides what a graph looks like: the table of components, the
    exporter, and whatever of ours they import.
    """
    return _digest(imported_modules(EXPORTERS))


def imported_modules(starts: Iterable[str]) -> dict[str, Path]:
    """These modules and all of ours that they import, with their files."""
    sources = _sources()
    reached: dict[str, Path] = {}
    waiting = [*starts]
    while waiting:
        name = waiting.pop()
        if name in sources and name not in reached:
            reached[name] = sources[name]
            waiting += _imports(sources[name])
    return reached


def _sources() -> dict[str, Path]:
    """Dotted name -> file, of our packages."""
    found = {}
    for package in (ltx2rt, ltx2rt_export):
        for folder in map(Path, package.__path__):
            for path in folder.rglob("*.py"):
                parts = (package.__name__, *path.relative_to(folder).with_suffix("").parts)
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imports(path: Path) -> Iterator[str]:
    """What a file imports, anywhere in it; of `from a import b`, both `a` and `a.b`."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _digest(sources: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in sorted(sources.items()):
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
