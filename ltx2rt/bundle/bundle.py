"""Open a bundle: check every entry, then hand out engines, weights and the tokenizer."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ltx2rt.backends.device_memory import DeviceMemory
from ltx2rt.bundle.checks import check_file, engine_problems
from ltx2rt.bundle.load_weights import (
    engine_tensors,
    layer_number,
    lora_tensors,
    stored_tensor,
    tensor_entry,
    weight_problems,
)
from ltx2rt.bundle.manifest import (
    ComponentEntry,
    Manifest,
    ModelInfo,
    Place,
    WeightRef,
    read_manifest,
)
from ltx2rt.bundle.memory import denoise_reserve, refuse_too_large, stage_weight_bytes
from ltx2rt.config import RuntimeConfig
from ltx2rt.device.cuda import CudaDevice, local_gpu
from ltx2rt.engine import Array, Engine
from ltx2rt.errors import BundleError, CheckpointError, UnsupportedError, join_problems
from ltx2rt.lora.adapter import Adapter, official_tensor, parse_lora
from ltx2rt.lora.files import Lora
from ltx2rt.lora.merger import LoraMerger
from ltx2rt.names import (
    ADAPTED_COMPONENTS,
    LORA_COMPONENTS,
    TEXT_BLOCK_FULL,
    TEXT_ENCODER,
    TEXT_TAIL,
    TRANSFORMER_BLOCKS,
    TRANSFORMER_HEAD,
)
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile, TensorEntry

#: more threads than this wait for the memory that they share
_MERGE_THREADS = 8


class ModelSource(Protocol):
    """Where a pipeline gets its engines from: a bundle, or the reference behind the same face."""

    @property
    def model(self) -> ModelInfo: ...

    @property
    def bundle_id(self) -> str: ...

    @property
    def text_encoder_id(self) -> str: ...

    def has(self, *names: str) -> bool: ...

    def context_widths(self) -> Mapping[str, int]: ...

    def options(self, name: str) -> Mapping[str, Any]: ...

    def check_loras(self, loras: Sequence[Lora]) -> None: ...

    def text_loras(self, loras: Sequence[Lora]) -> tuple[Lora, ...]: ...

    def engine(self, name: str, runtime: RuntimeConfig, loras: Sequence[Lora] = ()) -> Engine: ...

    def layers(
        self, name: str, loras: Sequence[Lora] = (), *, keep: bool = True
    ) -> Sequence[Mapping[str, Array]]: ...

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
        self._fits = False
        self._memory: DeviceMemory | None = None
        self._merger: tuple[tuple[Lora, ...], LoraMerger] | None = None

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

    def check_loras(self, loras: Sequence[Lora]) -> None:
        """Match LoRA files to this bundle's model and look through their numbers.

        Raises:
            CheckpointError, UnsupportedError: see `LoraMerger`.
        """
        self._merger = None
        self._merge_of(loras)

    def text_loras(self, loras: Sequence[Lora]) -> tuple[Lora, ...]:
        """Those that change connectors or projections, and so the contexts of prompts."""
        merger = self._merge_of(loras)
        if merger is None or not self.has(TEXT_TAIL):
            return ()
        return merger.loras_for(self._official(TEXT_TAIL))

    def engine(self, name: str, runtime: RuntimeConfig, loras: Sequence[Lora] = ()) -> Engine:
        """Load a component's engine on this bundle's backend; weights come from the mapped
        files, with `loras` merged in memory.

        Raises:
            UnsupportedError: no GPU, one that is too small, or a LoRA that cannot be merged; see
                `TrtEngine` for more.
        """
        entry = self.component(name)
        weights: Mapping[str, Array] = {}
        inside = any(e.weights == "constant" for e in entry.engines)
        if inside and self._is_changed(name, loras):
            raise UnsupportedError(
                f"a LoRA cannot be merged into the engine of {name}, which holds its weights as "
                "constants; build again with --weights input: "
                + self.manifest.command().replace(" --weights constant", "")
            )
        if entry.engines:
            self._check_gpu()
        if entry.weight_binding == "initializer" and not inside:
            weights = self._load(name, entry, 0, self._merge_of(loras))
        if entry.layered:
            from ltx2rt.backends.layered import LayeredEngine

            files = [self.folder / e.file for e in entry.engines]
            paths = dict(zip(entry.served, files, strict=True))
            memory = self._transformer_memory()
            return LayeredEngine(paths, entry.spec(name), self.manifest.command(), memory)
        if entry.engines:
            from ltx2rt.backends.tensorrt import TrtEngine

            path = self.folder / entry.engines[0].file
            shared = self._transformer_memory() if name in LORA_COMPONENTS else None
            return TrtEngine(
                path, entry.spec(name), weights, self.manifest.command(), memory=shared
            )
        from ltx2rt.backends import onnxruntime as backend

        options = backend.OrtOptions(
            threads=runtime.threads,
            full_optimization="float8_e4m3fn" not in entry.weight_dtypes.values(),
        )
        graph = (self.folder / entry.graph).read_bytes()
        return backend.OrtEngine(graph, entry.spec(name), weights, options)

    def _check_gpu(self) -> None:
        """Refuse a GPU that cannot hold this bundle, before its first engine is loaded."""
        if not self._fits:
            gpu = local_gpu(f"backend {self.manifest.backend}")
            refuse_too_large(stage_weight_bytes(self.manifest, least=True), "weights", gpu)
            self._fits = True

    def _transformer_memory(self) -> DeviceMemory:
        """The device memory of the transformer's engines, between which hidden states stay
        there.
        """
        if self._memory is None or self._memory.closed:
            device = CudaDevice(f"backend {self.manifest.backend}")
            self._memory = DeviceMemory(device, reserve=denoise_reserve(self.manifest))
        return self._memory

    def layers(self, name: str, loras: Sequence[Lora] = (), *, keep: bool = True) -> LayerWeights:
        """Weights of every layer of a repeated component, loaded when first used and then kept
        (or, without `keep`, loaded anew at every use); `loras` are merged while a layer is loaded.
        """
        return LayerWeights(self, name, self._merge_of(loras), keep=keep)

    def tokenizer_path(self) -> Path:
        """The text encoder's `tokenizer.json`."""
        return self.folder / self.manifest.tokenizer

    def close(self) -> None:
        """Release the maps of the weight files."""
        self._merger = None
        self._files.close()

    def entry(self, name: str, ref: Place) -> TensorEntry:
        """Where a referenced tensor lies on disk now."""
        return tensor_entry(name, ref, self._sources)

    def _merge_of(self, loras: Sequence[Lora]) -> LoraMerger | None:
        active = tuple(lora for lora in loras if lora.strength)
        if not active:
            return None
        if self._merger is None or self._merger[0] != active:
            unmerged = {
                official
                for name in filter(self.has, TRANSFORMER_BLOCKS)
                for official, (_, weight, _) in self._official(name).items()
                if weight.removesuffix(".weight") in self.options(name).get("lora_inputs", ())
            }
            threads = min(os.cpu_count() or 1, _MERGE_THREADS)
            targets = self._lora_targets()
            self._merger = active, LoraMerger(active, targets, unmerged=unmerged, threads=threads)
        return self._merger[1]

    def match_lora(self, file: SafetensorsFile) -> Adapter:
        """Match an opened LoRA to this bundle's model.

        Raises:
            CheckpointError, UnsupportedError: see `parse_lora`.
        """
        return parse_lora(file, self._lora_targets())

    def base_tensor(self, official: str) -> Array | None:
        """The model's own values of a tensor that LoRAs may change, float32; None where it has
        none of that name.
        """
        for name in filter(self.has, ADAPTED_COMPONENTS):
            if (found := self._official(name).get(official)) is not None:
                return self._files.load(self.entry(found[1], found[2]), "float32")
        return None

    def _is_changed(self, name: str, loras: Sequence[Lora]) -> bool:
        merger = self._merge_of(loras) if name in ADAPTED_COMPONENTS else None
        return merger is not None and any(map(merger.changes, self._official(name)))

    def _lora_targets(self) -> dict[str, tuple[int, ...]]:
        return {
            official: ref.shape
            for name in filter(self.has, ADAPTED_COMPONENTS)
            for official, (_, _, ref) in self._official(name).items()
        }

    def _official(self, name: str) -> dict[str, tuple[int, str, WeightRef]]:
        """Official name -> layer, name and place of a component's tensors."""
        return {
            official: (index, weight, ref)
            for index, layer in enumerate(self.component(name).layers)
            for weight, ref in layer.items()
            if (official := official_tensor(name, index, weight)) is not None
        }

    def _load(
        self, name: str, entry: ComponentEntry, index: int, loras: LoraMerger | None
    ) -> dict[str, Array]:
        loaded: dict[str, Array] = {}
        overlay = entry.overlays[index] if entry.overlays else {}
        adapted = {f"{module}.weight" for module in entry.options.get("lora_inputs", ())}
        if name not in ADAPTED_COMPONENTS:
            loras = None
        for weight, ref in entry.layers[index].items():
            official, tensor = official_tensor(name, index, weight), self.entry(weight, ref)
            if weight in adapted:
                loaded |= lora_tensors(entry, weight, ref.shape, official, loras)
            if loras is not None and loras.changes(official) and weight not in adapted:
                assert official is not None
                values, dtype = loras.merge(official, tensor), "float32"
            elif weight in overlay:
                continue
            else:
                values, dtype = self._files.values(tensor)
            loaded |= engine_tensors(entry, weight, values, dtype, f"{weight} of {tensor.path}")
        for ready in overlay.keys() - loaded.keys():
            array = self._files.raw(self.entry(ready, overlay[ready]))
            loaded[ready] = stored_tensor(entry, ready, array)
        return loaded


class LayerWeights(Sequence[Mapping[str, Array]]):
    """The layers of a repeated component, each converted on first use and (with `keep`) kept; of
    one whose weights are inside its engines, only their numbers.
    """

    def __init__(
        self, bundle: Bundle, name: str, loras: LoraMerger | None, *, keep: bool = True
    ) -> None:
        self._keep = keep
        self._bundle = bundle
        self._name = name
        self._entry = bundle.component(name)
        self._loras = loras
        self._loaded: dict[int, Mapping[str, Array]] = {}

    def __len__(self) -> int:
        return len(self._entry.layers)

    def __getitem__(self, index: int) -> Mapping[str, Array]:  # type: ignore[override]
        if index not in self._loaded:
            if not 0 <= index < len(self):
                raise IndexError(index)
            layer = self._load(index)
            if not self._keep:
                return layer
            self._loaded[index] = layer
        return self._loaded[index]

    def __iter__(self) -> Iterator[Mapping[str, Array]]:
        return (self[i] for i in range(len(self)))

    def _load(self, index: int) -> Mapping[str, Array]:
        if self._entry.layered:
            return layer_number(index) if self._entry.layers[index] else {}
        return self._bundle._load(self._name, self._entry, index, self._loras)


def open_bundle(
    path: str | os.PathLike[str], *, weights_dir: str | os.PathLike[str] | None = None
) -> Bundle:
    """Open a bundle folder and check everything the manifest names.

    Args:
        path: the bundle's folder.
        weights_dir: look for moved weight files here, before their recorded place; see
            `find_moved`.

    Raises:
        BundleError: lists all problems: missing or changed graphs, weight files that moved or
        changed.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    problems = [
        problem
        for name, entry in manifest.components.items()
        for problem in check_file(folder, entry.graph, entry.graph_sha256, name)
    ]
    problems += check_file(folder, manifest.tokenizer, manifest.tokenizer_sha256, "the tokenizer")
    problems += weight_problems(manifest)[:20]
    problems += engine_problems(folder, manifest)
    sources: list[Path] = []
    for source in manifest.sources:
        place = find_moved(folder / source.path, weights_dir)
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
            + f"\nBuild it again: {manifest.command()} -o {folder} --force"
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
