"""Exported graphs, kept by everything that they are traced from: a second build traces nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path

import onnx

import ltx2rt
import ltx2rt_export
from ltx2rt.engine import TensorSpec
from ltx2rt.errors import BundleError
from ltx2rt.plain_data import read_document, write_document
from ltx2rt_export.checkpoint import ModelFiles
from ltx2rt_export.component import Component
from ltx2rt_export.engines.cache import EngineCache, cache_key
from ltx2rt_export.onnx import ExportedGraph, export_component

SCHEMA = 1

#: packages that decide what a graph looks like
PACKAGES = ("torch", "onnx", "onnxscript", "onnx-ir", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptGraph:
    """What lies beside a kept ONNX file; fields as of `ExportedGraph` and its component."""

    schema: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: tuple[str, ...]
    transposed: tuple[str, ...]
    graph_sha256: str


class GraphCache:
    """Graphs of one model in the folder of the engines.

    A component is a function of our sources and of what the headers of the model's files say, and
    its graph of the exporting packages besides.
    """

    def __init__(self, cache: EngineCache, files: ModelFiles) -> None:
        self._cache = cache
        gemma = files.gemma
        self._facts = {
            "sources": sources_sha256(),
            "python": platform.python_version(),
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
            "version": dataclasses.asdict(files.version),
            "files": {role: file.header_sha256 for role, file in files.files.items()},
            "gemma": None
            if gemma is None
            else [dict(gemma.config), [file.header_sha256 for file in gemma.files]],
        }

    def export(self, component: Component, dtype: str = "float32") -> ExportedGraph:
        """As `export_component`, or what that gave before."""
        key = cache_key({**self._facts, "component": component.name, "dtype": dtype})
        return self._find(key, component, dtype) or self._keep(
            key, export_component(component, dtype)
        )

    def _find(self, key: str, component: Component, dtype: str) -> ExportedGraph | None:
        path = self._cache.graph_path(key)
        try:
            kept = read_document(
                KeptGraph, _beside(path), SCHEMA, where=path.name, missing="no graph", again=""
            )
            data = path.read_bytes()
        except (BundleError, OSError):
            return None
        if hashlib.sha256(data).hexdigest() != kept.graph_sha256:
            return None
        component = dataclasses.replace(component, inputs=kept.inputs, outputs=kept.outputs)
        model = onnx.load_model_from_string(data)
        return ExportedGraph(component, model, kept.weights, frozenset(kept.transposed), dtype)

    def _keep(self, key: str, graph: ExportedGraph) -> ExportedGraph:
        data = graph.model.SerializeToString(deterministic=True)
        kept = KeptGraph(
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


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def sources_sha256() -> str:
    """Digest of all our Python: whatever changed may change a graph."""
    digest = hashlib.sha256()
    for package in (ltx2rt, ltx2rt_export):
        for folder in sorted(package.__path__):
            for path in sorted(Path(folder).rglob("*.py")):
                digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
