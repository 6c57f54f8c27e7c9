"""Open a bundle: check every entry, then hand out engines, weights and the tokenizer."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ltx2rt.config import RuntimeConfig
from ltx2rt.engine import Array, Engine
from ltx2rt.errors import BundleError, CheckpointError, join_problems
from ltx2rt.manifest import ComponentEntry, Manifest, ModelInfo, WeightRef, read_manifest
from ltx2rt.safetensors import MappedFiles, SafetensorsFile, TensorEntry


class ModelSource(Protocol):
    """Where a pipeline gets its engines from: a bundle, or the reference behind the same face."""

    @property
    def model(self) -> ModelInfo: ...

    @property
    def bundle_id(self) -> str: ...

    def has(self, *names: str) -> bool: ...

    def options(self, name: str) -> Mapping[str, Any]: ...

    def engine(self, name: str, runtime: RuntimeConfig) -> Engine: ...

    def layers(self, name: str) -> Sequence[Mapping[str, Array]]: ...

    def tokenizer_path(self) -> Path: ...


class Bundle:
    """An opened bundle: a `ModelSource`. Nothing but headers is read until an engine is asked
    for.
    """

    def __init__(self, folder: Path, manifest: Manifest, sources: Sequence[Path]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._sources = tuple(sources)
        self._files = MappedFiles()

    @property
    def model(self) -> ModelInfo:
        """Facts about the checkpoint."""
        return self.manifest.model

    @property
    def bundle_id(self) -> str:
        """Names the bundle's content."""
        return self.manifest.bundle_id

    def options(self, name: str) -> Mapping[str, Any]:
        """The facts a component's runtime class needs."""
        return self.component(name).options

    def component(self, name: str) -> ComponentEntry:
        """The manifest's entry of a component.

        Raises:
            BundleError: the bundle was built without it.
        """
        entry = self.manifest.components.get(name)
        if entry is None:
            raise BundleError(
                f"{self.folder} holds no {name}; it has "
                f"{', '.join(sorted(self.manifest.components))}. "
                f"Build it again with the file that holds the {name}."
            )
        return entry

    def has(self, *names: str) -> bool:
        """Whether all these components are in the bundle."""
        return all(name in self.manifest.components for name in names)

    def engine(self, name: str, runtime: RuntimeConfig) -> Engine:
        """Load a component's engine on this bundle's backend; weights come from the mapped
        files.
        """
        from ltx2rt.backends import onnxruntime as backend

        entry = self.component(name)
        weights: Mapping[str, Array] = {}
        if entry.weight_binding == "initializer":
            weights = self._load(entry, entry.layers[0])
        options = backend.OrtOptions(threads=runtime.threads)
        graph = (self.folder / entry.graph).read_bytes()
        return backend.OrtEngine(graph, entry.spec(name), weights, options)

    def layers(self, name: str) -> LayerWeights:
        """Weights of every layer of a repeated component, loaded when first used and then kept."""
        return LayerWeights(self, self.component(name))

    def tokenizer_path(self) -> Path:
        """The text encoder's `tokenizer.json`."""
        return self.folder / self.manifest.tokenizer

    def close(self) -> None:
        """Release the maps of the weight files."""
        self._files.close()

    def entry(self, name: str, ref: WeightRef) -> TensorEntry:
        """Where a referenced tensor lies on disk now."""
        path = self._sources[ref.source]
        return TensorEntry(path, name, ref.dtype, ref.shape, ref.offset, ref.length)

    def _load(self, entry: ComponentEntry, layer: Mapping[str, WeightRef]) -> dict[str, Array]:
        dtype = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[entry.precision]
        loaded = {n: self._files.load(self.entry(n, r), dtype) for n, r in layer.items()}
        transposed = set(entry.transposed)
        return {n: np.ascontiguousarray(a.T) if n in transposed else a for n, a in loaded.items()}


class LayerWeights(Sequence[Mapping[str, Array]]):
    """The layers of a repeated component, each converted on first use and kept."""

    def __init__(self, bundle: Bundle, entry: ComponentEntry) -> None:
        self._bundle = bundle
        self._entry = entry
        self._loaded: dict[int, Mapping[str, Array]] = {}

    def __len__(self) -> int:
        return len(self._entry.layers)

    def __getitem__(self, index: int) -> Mapping[str, Array]:  # type: ignore[override]
        if index not in self._loaded:
            if not 0 <= index < len(self):
                raise IndexError(index)
            self._loaded[index] = self._bundle._load(self._entry, self._entry.layers[index])
        return self._loaded[index]

    def __iter__(self) -> Iterator[Mapping[str, Array]]:
        return (self[i] for i in range(len(self)))


def open_bundle(
    path: str | os.PathLike[str], *, weights_dir: str | os.PathLike[str] | None = None
) -> Bundle:
    """Open a bundle folder and check everything the manifest names.

    Args:
        path: the bundle's folder.
        weights_dir: look for moved weight files here, by file name, before their recorded place.

    Raises:
        BundleError: lists all problems: missing or changed graphs, weight files that moved or
        changed.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    problems = [
        problem
        for name, entry in manifest.components.items()
        for problem in _check_file(folder / entry.graph, entry.graph_sha256, name)
    ]
    problems += _check_file(folder / manifest.tokenizer, manifest.tokenizer_sha256, "the tokenizer")
    problems += _check_weights(manifest)
    sources: list[Path] = []
    for source in manifest.sources:
        place = folder / source.path
        if weights_dir is not None and (Path(weights_dir) / place.name).exists():
            place = Path(weights_dir) / place.name
        sources.append(place)
        try:
            file = SafetensorsFile(place)
        except CheckpointError as error:
            hint = "" if place.exists() else "; if it moved, pass its new folder (--weights-dir)"
            problems.append(f"{error}{hint}")
            continue
        if (file.file_bytes, file.header_sha256) != (source.bytes, source.header_sha256):
            problems.append(f"{place} changed since the build")
    if problems:
        raise BundleError(
            join_problems(f"{folder} cannot be used", problems)
            + "\nBuild it again with `ltx2rt build`."
        )
    return Bundle(folder, manifest, sources)


def _check_file(path: Path, sha256: str, what: str) -> list[str]:
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return [f"{what}: {path} cannot be read ({error.strerror})"]
    return [] if digest == sha256 else [f"{what}: {path} does not match its hash in the manifest"]


def _check_weights(manifest: Manifest) -> list[str]:
    problems = []
    for name, entry in manifest.components.items():
        if not entry.layers:
            problems.append(f"{name} lists no weights")
        for layer in entry.layers:
            for weight, ref in layer.items():
                if not 0 <= ref.source < len(manifest.sources):
                    problems.append(
                        f"{name}: {weight} names source {ref.source}, which is not listed"
                    )
                elif ref.offset < 0 or ref.offset + ref.length > manifest.sources[ref.source].bytes:
                    problems.append(
                        f"{name}: {weight} lies outside {manifest.sources[ref.source].path}"
                    )
    return problems[:20]
