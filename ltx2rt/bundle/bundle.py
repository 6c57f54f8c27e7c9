"""Open a bundle: check every entry, and say what it holds and where the weights lie."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ltx2rt.bundle.checks import check_file, engine_problems
from ltx2rt.bundle.component_options import option_problems
from ltx2rt.bundle.load_weights import tensor_entry, weight_problems
from ltx2rt.bundle.manifest import (
    UNMASKED,
    ComponentEntry,
    Manifest,
    ModelInfo,
    Place,
    WeightRef,
    read_manifest,
)
from ltx2rt.bundle.weight_digests import warn_of_later_changes
from ltx2rt.engine import Array
from ltx2rt.errors import BundleError, CheckpointError
from ltx2rt.lora.adapter import Adapter, official_tensor, parse_lora
from ltx2rt.names import (
    ADAPTED_COMPONENTS,
    TEXT_BLOCK_FULL,
    TEXT_ENCODER,
    TRANSFORMER_HEAD,
)
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile, TensorEntry


class Bundle:
    """An opened bundle: facts (`source.ModelFacts`) and places. `loader.Loader` hands out what is
    in it; nothing but headers is read until then.
    """

    def __init__(self, folder: Path, manifest: Manifest, sources: Sequence[Path]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._sources = tuple(sources)

    @cached_property
    def entries(self) -> dict[str, ComponentEntry]:
        """The manifest's entries, and under a name of its own how each runs without masks; device
        graphs too.
        """
        found = self.manifest.components | self.manifest.device_graphs
        for name, entry in self.manifest.components.items():
            if (unmasked := entry.without_masks()) is not None:
                found[name + UNMASKED] = unmasked
        return found

    @property
    def model(self) -> ModelInfo:
        """Facts about the checkpoint."""
        return self.manifest.model

    @property
    def bundle_id(self) -> str:
        """Names the bundle's content."""
        return self.manifest.bundle_id

    @property
    def text_encoder_id(self) -> str:
        """Names the text encoder's weight files and tokenizer, whatever the precision; "" where
        the bundle has none.
        """
        parts = [self.manifest.components.get(name) for name in (*TEXT_ENCODER, TEXT_BLOCK_FULL)]
        refs = [ref for e in parts if e for layer in e.layers for ref in layer.values()]
        if not refs:
            return ""
        digest = hashlib.sha256(self.manifest.tokenizer_sha256.encode())
        for source in sorted({ref.source for ref in refs}):
            digest.update(self.manifest.sources[source].header_sha256.encode())
        return digest.hexdigest()[:16]

    def state_of(self, name: str) -> str:
        """Names what a component computes: its graph and the weight files, as they are now.

        Raises:
            BundleError: the bundle was built without it.
            OSError: a weight file is not there.
        """
        entry = self.component(name)
        digest = hashlib.sha256(f"{entry.graph_sha256} {entry.precision}".encode())
        refs = [ref for layer in entry.layers for ref in layer.values()]
        for source in sorted({ref.source for ref in refs}):
            path = self._sources[source]
            facts = path.stat()
            digest.update(f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns}".encode())
        return digest.hexdigest()[:16]

    def context_widths(self) -> dict[str, int]:
        """`video_context`, `audio_context` -> their width in the transformer."""
        shapes = {t.name: t.shape for t in self.component(TRANSFORMER_HEAD).inputs}
        return {name: int(shapes[name][-1]) for name in ("video_context", "audio_context")}

    def options(self, name: str) -> Mapping[str, Any]:
        """The facts a component's runtime class needs."""
        return self.component(name).options

    def component(self, name: str) -> ComponentEntry:
        """The manifest's entry of a component.

        Raises:
            BundleError: the bundle was built without it.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise BundleError(
                f"{self.folder} holds no {name}; it has "
                f"{', '.join(sorted(self.manifest.components))}. "
                f"Build it again with the file that holds the {name}."
            )
        return entry

    def has(self, *names: str) -> bool:
        """Whether all these components are in the bundle."""
        return all(name in self.entries for name in names)

    def tokenizer_path(self) -> Path:
        """The text encoder's `tokenizer.json`."""
        return self.folder / self.manifest.tokenizer

    def weight_files(self) -> dict[str, Path]:
        """What the manifest calls each weight file -> where it is now."""
        return {
            f"{number}/{Path(source.path).name}": place
            for number, (source, place) in enumerate(
                zip(self.manifest.sources, self._sources, strict=True)
            )
        }

    def entry(self, name: str, ref: Place) -> TensorEntry:
        """Where a referenced tensor lies on disk now."""
        return tensor_entry(name, ref, self._sources)

    def match_lora(self, file: SafetensorsFile) -> Adapter:
        """Match an opened LoRA to this bundle's model.

        Raises:
            CheckpointError, UnsupportedError: see `parse_lora`.
        """
        return parse_lora(file, self.lora_targets())

    def lora_targets(self) -> dict[str, tuple[int, ...]]:
        """Official name of each tensor that a LoRA may change -> its shape."""
        return {
            official: ref.shape
            for name in filter(self.has, ADAPTED_COMPONENTS)
            for official, (_, _, ref) in self.official_tensors(name).items()
        }

    def official_tensors(self, name: str) -> dict[str, tuple[int, str, WeightRef]]:
        """Official name of a component's tensors -> layer, name there, and place; {} for components
        that no LoRA changes.
        """
        if name not in ADAPTED_COMPONENTS:
            return {}
        return {
            official: (index, weight, ref)
            for index, layer in enumerate(self.component(name).layers)
            for weight, ref in layer.items()
            if (official := official_tensor(name, index, weight)) is not None
        }

    def base_tensor(self, official: str) -> Array | None:
        """The model's own values of a tensor that LoRAs may change, float32; None where it has
        none of that name.
        """
        for name in filter(self.has, ADAPTED_COMPONENTS):
            if (found := self.official_tensors(name).get(official)) is not None:
                return MappedFiles().load(self.entry(found[1], found[2]), "float32")
        return None


def open_bundle(
    path: str | os.PathLike[str], *, weights_dir: str | os.PathLike[str] | None = None
) -> Bundle:
    """Open a bundle folder and check everything the manifest names.

    ```python
    bundle = ltx2rt.open_bundle("ltx23.bundle")
    print(bundle.bundle_id, bundle.model.generation)
    ```

    Args:
        path: the bundle's folder.
        weights_dir: look for moved weight files here, before their recorded place; see
            `find_moved`.

    Raises:
        BundleError: lists all problems: missing or changed graphs, weight files that moved or
            changed.
    """
    folder = Path(path)
    if weights_dir is not None and not Path(weights_dir).is_dir():
        raise BundleError(f"the folder of weights '{weights_dir}' is not there, or is no folder.")
    manifest = read_manifest(folder)
    entries = Bundle(folder, manifest, ()).entries
    problems = [
        problem
        for name, entry in entries.items()
        for problem in check_file(folder, entry.graph, entry.graph_sha256, name)
    ]
    if manifest.tokenizer or not manifest.components.keys().isdisjoint(TEXT_ENCODER):
        problems += check_file(
            folder, manifest.tokenizer, manifest.tokenizer_sha256, "the tokenizer"
        )
    problems += weight_problems(manifest)[:20]
    for name, entry in manifest.components.items():
        problems += option_problems(name, entry.options)
    problems += engine_problems(folder, manifest, entries)
    sources: list[Path] = []
    for source in manifest.sources:
        place = find_moved(folder / source.path, weights_dir)
        sources.append(place)
        try:
            file = SafetensorsFile(place)
        except CheckpointError as error:
            hint = "" if place.exists() else "; if it moved, pass its new folder (--weights-dir)"
            problems += [f"{problem}{hint}" for problem in error.problems]
            continue
        if (file.file_bytes, file.header_sha256) != (source.bytes, source.header_sha256):
            problems.append(f"{place} changed since the build")
        else:
            warn_of_later_changes(source, place)
    if problems:
        raise BundleError(
            f"{folder} cannot be used",
            problems,
            f"Build it again: {manifest.command()} -o {folder} --force",
        )
    return Bundle(folder, manifest, sources)


def find_moved(place: Path, weights_dir: str | os.PathLike[str] | None) -> Path:
    """Where a file or folder is now: in `weights_dir`, under its own name or with the name of its
    folder before it (Gemma's shards), else where it was.
    """
    if weights_dir is None:
        return place
    moved = (Path(weights_dir) / place.name, Path(weights_dir) / place.parent.name / place.name)
    return next((p for p in moved if p.exists()), place)
