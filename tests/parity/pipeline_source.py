"""Models of a golden directory behind the face that pipelines take: `ModelSource`."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ltx2rt.backends.host_stack import HostStack
from ltx2rt.bundle.manifest import ModelInfo
from ltx2rt.config import RuntimeConfig
from ltx2rt.engine import Array, Engine, EngineBase, EngineSpec
from ltx2rt.errors import Ltx2rtError
from ltx2rt.lora.adapter import official_tensor
from ltx2rt.lora.files import Lora
from ltx2rt.lora.merger import LoraMerger
from ltx2rt.names import TRANSFORMER, StackNames
from ltx2rt.weights.safetensors import SafetensorsFile
from ltx2rt.weights.safetensors_writer import write_safetensors
from ltx2rt_export.bundle import model_info
from ltx2rt_export.catalog import COMPONENTS
from ltx2rt_export.checkpoint import ModelFiles, open_model
from ltx2rt_export.component import Component, load_weights
from ltx2rt_export.kinds import detect_kind
from ltx2rt_export.reference import TorchEngine, component_stack
from ltx2rt_export.version import (
    detect_version,
    generation_of_number,
    parse_model_version,
    read_config,
    read_version_text,
)
from tests.parity.golden import Runner, Skip, exported_graph
from tests.parity.ort_engine import ort_engine


class _Shared(EngineBase):
    """An engine of the runner: pipelines may close it, other cases still use it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def spec(self) -> EngineSpec:
        return self._engine.spec

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        return self._engine(tensors)


class ComponentSource:
    """A `ModelSource` over components made from checkpoint files, on the runner's backend."""

    def __init__(self, files: ModelFiles, runner: Runner) -> None:
        self._files = files
        self._runner = runner
        self._components: dict[str, Component] = {}
        self._with_loras: dict[tuple[Lora, ...], dict[str, Component]] = {}
        self._folder = tempfile.TemporaryDirectory()
        names = ("video_encoder", "audio_decoder", "vocoder")
        self.model: ModelInfo = model_info(files, {n: self._component(n).options for n in names})

    bundle_id = text_encoder_id = "golden"

    def context_widths(self) -> Mapping[str, int]:
        shapes = {t.name: t.shape for t in self._component("transformer_head").inputs}
        return {name: int(shapes[name][-1]) for name in ("video_context", "audio_context")}

    def _component(self, name: str) -> Component:
        if name not in self._components:
            row = next(r for r in COMPONENTS if r.name == name)
            self._components[name] = row.make(self._files)
        return self._components[name]

    def has(self, *names: str) -> bool:
        rows = {r.name: r for r in COMPONENTS}
        return all(n in rows and rows[n].fits(self._files) for n in names)

    def options(self, name: str) -> Mapping[str, Any]:
        return self._component(name).options

    def check_loras(self, loras: Sequence[Lora]) -> None:
        self._merged(loras)

    def text_loras(self, loras: Sequence[Lora]) -> tuple[Lora, ...]:
        return ()

    def engine(self, name: str, runtime: RuntimeConfig) -> Engine:
        return _Shared(self._runner.engine(self._component(name)))

    def stack(
        self, names: StackNames, runtime: RuntimeConfig, loras: Sequence[Lora] = ()
    ) -> HostStack:
        parts = {n: self._component(n) for n in names.components if self.has(n)}
        merged = self._merged(loras) if loras else {}

        def engine(part: Component) -> Engine:
            if part.name not in merged or part.layers:
                return _Shared(self._runner.engine(parts[part.name]))
            if self._runner.backend == "torch":
                return TorchEngine(part)
            graph = exported_graph(parts[part.name])
            return ort_engine(dataclasses.replace(graph, component=part))

        def layers(part: Component) -> Sequence[Mapping[str, Array]]:
            is_torch = self._runner.backend == "torch"
            transposed = frozenset() if is_torch else exported_graph(parts[part.name]).transposed
            return [load_weights(layer, transposed) for layer in part.layers]

        return component_stack(names, (merged.get(n, p) for n, p in parts.items()), engine, layers)

    def _merged(self, loras: Sequence[Lora]) -> dict[str, Component]:
        """The transformer with LoRAs merged in float32, as the goldens' official code did."""
        key = tuple(loras)
        if key not in self._with_loras:
            self._with_loras[key] = self._merge(key)
        return self._with_loras[key]

    def _merge(self, loras: tuple[Lora, ...]) -> dict[str, Component]:
        weights = {
            official: entry
            for name in TRANSFORMER
            for index, layer in enumerate(layers_of(self._component(name)))
            for weight, entry in layer.items()
            if (official := official_tensor(name, index, weight)) is not None
        }
        merger = LoraMerger(
            loras,
            {official: entry.shape for official, entry in weights.items()},
            dtype="float32",
            delta_dtype="float32",
        )
        changed = {m: merger.merge(m, e) for m, e in weights.items() if m in merger.changed}
        path = Path(self._folder.name) / f"{len(self._with_loras)}.safetensors"
        write_safetensors(path, changed)
        overlay = SafetensorsFile(path)
        merged = {}
        for name in TRANSFORMER:
            component = self._component(name)
            layers = tuple(
                {w: overlay.get(official_tensor(name, i, w) or "", e) for w, e in layer.items()}
                for i, layer in enumerate(layers_of(component))
            )
            merged[name] = dataclasses.replace(
                component, weights=layers[0], layers=layers if component.layers else ()
            )
        return merged

    def tokenizer_path(self) -> Path:
        if self._files.tokenizer_path is not None:
            return self._files.tokenizer_path
        packed = self._files.gemma.read_asset("tokenizer.json") if self._files.gemma else None
        if packed is None:
            raise Skip("the text encoder has no tokenizer")
        path = Path(self._folder.name) / "tokenizer.json"
        path.write_bytes(packed)
        return path


def layers_of(component: Component) -> Sequence[Mapping[str, Any]]:
    return component.layers or (component.weights,)


def find_model(generation: str, runner: Runner, *, conv_decoder: bool = False) -> ModelFiles:
    """The directory's files of a generation ("2", "2.3", ...), recognised by their content.

    A generation without a single-file checkpoint is put together from one file per component;
    `conv_decoder` then chooses among its video VAEs.
    """
    try:
        return open_model(**model_files(generation, runner, conv_decoder=conv_decoder))
    except Ltx2rtError as error:
        raise Skip(f"cannot open the model: {error}") from error


def model_files(generation: str, runner: Runner, *, conv_decoder: bool = False) -> dict[str, Path]:
    """Those of `find_model`, by the names that a build gives them.

    Raises:
        Skip: the directory has none.
    """
    given = _split_files(generation, runner, conv_decoder)
    if given is not None:
        return given
    checkpoints = [c for c in _checkpoints(runner) if c[1] == f"LTX-{generation}"]
    upsamplers = [c for c in _upsamplers(runner)]
    gemmas = [p for p in (runner.root / "checkpoints").iterdir() if (p / "config.json").exists()]
    if not (checkpoints and upsamplers and gemmas):
        raise Skip(f"no single-file checkpoint of LTX-{generation} with Gemma 3 in this directory")
    names = ("checkpoint", "gemma", "spatial_upsampler")
    return dict(zip(names, (checkpoints[0][0], gemmas[0], upsamplers[0]), strict=True))


def _split_files(generation: str, runner: Runner, conv_decoder: bool) -> dict[str, Path] | None:
    found: dict[str, list[SafetensorsFile]] = {}
    for file in _files(runner):
        found.setdefault(detect_kind(file), []).append(file)
    transformers = [f for f in found.get("transformer", []) if _is_of(f, generation)]
    if not transformers:
        return None
    vaes = [f for f in found.get("video_vae", []) if _is_of(f, generation)]
    vaes = [f for f in vaes if ("decoder.conv_in.conv.weight" in f) == conv_decoder]
    choices = {
        "checkpoint": transformers,
        "text_encoder": found.get("text_encoder", []),
        "video_vae": vaes,
        "audio_vae": [f for f in found.get("audio_vae", []) if _is_of(f, generation)],
        "duration_head": [f for f in found.get("duration_head", []) if _is_of(f, generation)],
    }
    files = {role: options[0].path for role, options in choices.items() if options}
    for upsampler in _upsamplers(runner)[:1]:
        files["spatial_upsampler"] = upsampler
    for file in found.get("temporal_upsampler", []):
        files["temporal_upsampler"] = file.path
    return files


def _is_of(file: SafetensorsFile, generation: str) -> bool:
    number = parse_model_version(read_version_text(file))
    return bool(number) and generation_of_number(number) == f"LTX-{generation}"


def _files(runner: Runner) -> Iterator[SafetensorsFile]:
    for path in sorted((runner.root / "checkpoints").glob("*.safetensors*")):
        yield SafetensorsFile(runner.checkpoint(path.name.removesuffix(".xz")))


@cache
def _checkpoints(runner: Runner) -> list[tuple[Path, str]]:
    found = []
    for file in _files(runner):
        if detect_kind(file) == "checkpoint":
            prefix = "model.diffusion_model."
            transformer = {k[len(prefix) :]: e for k, e in file.items() if k.startswith(prefix)}
            found.append((file.path, detect_version(file, transformer, file).generation))
    return found


@cache
def _upsamplers(runner: Runner) -> list[Path]:
    return [
        f.path
        for f in _files(runner)
        if detect_kind(f) == "spatial_upsampler" and read_config(f).get("spatial_scale", 2.0) == 2.0
    ]
