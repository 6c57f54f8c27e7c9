"""The bundle's manifest: what the runtime reads first, and the only description of a bundle it
trusts.

Reading is strict: an unknown key, a missing key or a value of the wrong type is a problem, and all
problems are reported at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ltx2rt.bundle.buckets import Bucket
from ltx2rt.engine import EngineSpec, TensorSpec
from ltx2rt.errors import BundleError
from ltx2rt.file_kind import NO_WEIGHTS, name_of
from ltx2rt.lora.files import Lora
from ltx2rt.plain_data import read_document, write_document
from ltx2rt.sampling.samplers import Sampler
from ltx2rt.weights.precision import PRECISIONS

SCHEMA = 1
#: after the name of a component: as passes without any mask run it
UNMASKED = "_unmasked"
#: fields that few bundles or components fill; left out where they are empty
OPTIONAL_FIELDS = (
    "encoding",
    "weight_dtypes",
    "quantized",
    "overlays",
    "modified_ns",
    "unmasked",
    "device_graphs",
    "audio_parts",
)
FILE_NAME = "manifest.json"
#: what a source says of where and since when it lies there, which is not the bundle's content
PLACE = ("path", "modified_ns")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A weights file: an absolute path, or one relative to the bundle; its size, header digest and
    time of change at build time (0: not recorded, as of files in the bundle).
    """

    path: str
    bytes: int
    header_sha256: str
    modified_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One stored tensor: `length` bytes at `offset` of `sources[source]`."""

    source: int
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightEncoding:
    """How a quantised weight is stored; see `codecs.stored.Encoding`."""

    format: str
    shape: tuple[int, ...]
    group: int
    parts: dict[str, Place]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRef(Place):
    """One weight. A quantised one has an `encoding`; its `shape` is that of its values."""

    encoding: WeightEncoding | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor at an engine's boundary; see `engine.TensorSpec`."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEntry:
    """One engine of a component: what can load it, and the sizes it was built for.

    `weights` is `input` (bound by name) or `constant` (inside); `version_compatible` engines load
    in other versions of their backend too.
    """

    file: str
    sha256: str
    bytes: int
    backend: str
    backend_version: str
    targets: tuple[str, ...]
    precision: str
    weights: str
    version_compatible: bool
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmaskedEntry:
    """A component's graph and engines again, without inputs that mask attentions: what passes
    without any mask run. Weights are those of the component.

    Attributes:
        leaves_out: the inputs.
    """

    graph: str
    graph_sha256: str
    leaves_out: tuple[str, ...]
    engines: tuple[EngineEntry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentEntry:
    """One component: its graph, boundary, weights and the facts its runtime class needs.

    Attributes:
        layers: state-dict name -> tensor of the model, one mapping a layer. An empty mapping:
            another component serves that layer (`transformer_block_plain`).
        weight_dtypes: weight input -> dtype the graph takes it in, where that is not the one of
            `precision`.
        weight_binding: `initializer` (injected when the engine loads), `input` (bound at every
            call: one engine for all layers) or `layer` (ONNX Runtime: one engine a layer, with its
            weights inside).
        quantized: weight -> the format in which the graph takes it (`codecs.engine_formats`).
        overlays: for each layer, weight input -> where it lies ready to be bound: quantised
            weights, their scales. Others, and those that a LoRA changes, are made from `layers`.
        engines: none for ONNX Runtime; one, or, where a repeated component's weights are inside
            (`layered`), one for each layer that it serves.
        unmasked: of the transformer's blocks; `without_masks` gives it as an entry.
    """

    graph: str
    graph_sha256: str
    precision: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    weight_binding: str
    transposed: tuple[str, ...]
    layers: tuple[dict[str, WeightRef], ...]
    options: dict[str, Any]
    weight_dtypes: dict[str, str] = field(default_factory=dict)
    quantized: dict[str, str] = field(default_factory=dict)
    overlays: tuple[dict[str, Place], ...] = ()
    engines: tuple[EngineEntry, ...] = ()
    unmasked: UnmaskedEntry | None = None

    def without_masks(self) -> ComponentEntry | None:
        """The same component as passes without any mask run it."""
        if self.unmasked is None:
            return None
        return replace(
            self,
            graph=self.unmasked.graph,
            graph_sha256=self.unmasked.graph_sha256,
            inputs=tuple(t for t in self.inputs if t.name not in self.unmasked.leaves_out),
            engines=self.unmasked.engines,
            unmasked=None,
        )

    @property
    def served(self) -> tuple[int, ...]:
        """The layers that this component serves."""
        return tuple(i for i, layer in enumerate(self.layers) if layer)

    @property
    def layered(self) -> bool:
        """Whether every layer has an engine of its own, with its weights inside."""
        return self.weight_binding == "input" and any(e.weights == "constant" for e in self.engines)

    def spec(self, name: str) -> EngineSpec:
        """The boundary as the engine protocol states it."""
        return EngineSpec(
            name,
            tuple(TensorSpec(t.name, t.dtype, t.shape) for t in self.inputs),
            tuple(TensorSpec(t.name, t.dtype, t.shape) for t in self.outputs),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Facts about the checkpoint that pipelines need (spec/pipelines.md §0.8).

    Attributes:
        is_distilled: by the names of its files; None where they do not say, or in older bundles.
    """

    generation: str
    version: str
    num_inference_steps: int
    stg_block: int
    image_crf: int
    distilled_sampler: Sampler
    time_scale: int
    spatial_scale: int
    latent_channels: int
    audio_channels: int
    audio_bins: int
    audio_sampling_rate: int
    is_distilled: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInputs:
    """The files a bundle was built from, as `ltx2rt build` takes them: absolute, or relative to
    the bundle.

    `audio_parts` are further files of `--audio-vae`, where its parts lie apart.
    """

    checkpoint: str | None = None
    gemma: str | None = None
    spatial_upsampler: str | None = None
    temporal_upsampler: str | None = None
    video_vae: str | None = None
    audio_vae: str | None = None
    text_encoder: str | None = None
    duration_head: str | None = None
    audio_parts: tuple[str, ...] = ()
    loras: tuple[Lora, ...] = ()

    def command(self) -> str:
        """The command that builds the bundle again."""
        flags = [
            f"--{name.replace('_', '-')} {shlex.quote(value)}"
            for name in self.__slots__
            if isinstance(value := getattr(self, name), str)
        ]
        flags += [f"--audio-vae {shlex.quote(path)}" for path in self.audio_parts]
        flags += [f"--lora {shlex.quote(f'{lora.path}:{lora.strength:g}')}" for lora in self.loras]
        return " ".join(["ltx2rt build", *flags])


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything about a bundle. `bundle_id` names its content: two equal builds have equal ids.

    `build_flags` are flags of `ltx2rt build` beside the files in `build`; `device_graphs` are
    graphs without weights that run beside the components of a bundle of engines.
    """

    schema: int
    bundle_id: str
    created_by: str
    backend: str
    precision: str
    model: ModelInfo
    sources: tuple[Source, ...]
    components: dict[str, ComponentEntry]
    tokenizer: str
    tokenizer_sha256: str
    build: BuildInputs
    build_flags: str = ""
    device_graphs: dict[str, ComponentEntry] = field(default_factory=dict)

    @property
    def runs_on_cpu(self) -> bool:
        """Whether every component runs on a CPU: no engines, and precisions that it has."""
        entries = self.components.values()
        return all(PRECISIONS[e.precision].on_cpu and not e.engines for e in entries)

    def command(self) -> str:
        """The command that builds the bundle again, but for `-o`."""
        return " ".join(filter(None, [self.build.command(), self.build_flags]))


def bundle_id(manifest: Manifest) -> str:
    """Twelve hex digits over everything but places on disk and the id itself."""
    return content_id(_plain(manifest))


def content_id(manifest: Mapping[str, Any]) -> str:
    """As `bundle_id`, of the JSON data of a manifest, as it was written."""
    data = {k: v for k, v in manifest.items() if k not in ("bundle_id", "build")}
    data["sources"] = [{k: v for k, v in s.items() if k not in PLACE} for s in data["sources"]]
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(manifest: Manifest) -> dict[str, Any]:
    """JSON values; what few bundles have is left out elsewhere."""

    def fields(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {k: v for k, v in items if v or k not in OPTIONAL_FIELDS}

    return dataclasses.asdict(manifest, dict_factory=fields)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `manifest.json` atomically, with the id of its content; it goes last, so a folder
    without one is no bundle.
    """
    write_document(_plain(manifest) | {"bundle_id": bundle_id(manifest)}, folder / FILE_NAME)


def read_manifest(folder: Path) -> Manifest:
    """Read and check `manifest.json` of a bundle folder.

    Raises:
        BundleError: not a bundle, another schema, or fields that do not fit (all listed).
    """
    missing = f"it holds no {FILE_NAME}" if folder.is_dir() else "no such folder"
    if not (folder / FILE_NAME).is_file() and (other := name_of(folder, besides=[NO_WEIGHTS])):
        missing = f"it is {other}"
    missing = f"{folder} is not a bundle: {missing}. Make one with `ltx2rt build`."
    if not folder.is_dir():
        raise BundleError(missing)
    return read_document(
        Manifest,
        folder / FILE_NAME,
        SCHEMA,
        where="manifest",
        missing=missing,
        again="Build the bundle again with `ltx2rt build`.",
        check=_id_problems,
    )


def _id_problems(data: dict[str, Any]) -> list[str]:
    if content_id(data) == data["bundle_id"]:
        return []
    return ["it was changed since the build: what it says is not what its bundle_id names"]
