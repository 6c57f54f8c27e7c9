"""Turn a model's files into a bundle: export every component, record where every weight lies.

Everything is written to a folder beside the target and renamed at the end. A build that is stopped
leaves nothing there but weight files that it had finished: the next of that name goes on from them,
or removes them if it is another build.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ltx2rt import __version__
from ltx2rt.bundle.bundle import find_moved
from ltx2rt.bundle.lock import build_lock
from ltx2rt.bundle.manifest import (
    SCHEMA,
    BuildInputs,
    ComponentEntry,
    Manifest,
    ModelInfo,
    bundle_id,
    write_manifest,
)
from ltx2rt.components.tokenizer import Tokenizer
from ltx2rt.config import lora_problems
from ltx2rt.errors import CheckpointError, OptionError
from ltx2rt.lora.describe import names_distillation
from ltx2rt.lora.files import Lora
from ltx2rt.names import AUDIO_DECODER, TEXT_STACK, VIDEO_ENCODER, VOCODER, WRITING_STACK
from ltx2rt.progress import Job
from ltx2rt.weights.precision import PRECISIONS
from ltx2rt_export.build_config import BuildConfig
from ltx2rt_export.catalog import TEXT_ROLES, components_of, traced_components
from ltx2rt_export.checkpoint import REQUIRED, ModelFiles, open_model
from ltx2rt_export.component import Component
from ltx2rt_export.copy_weights import copy_weights
from ltx2rt_export.decode_gguf import decode_gguf
from ltx2rt_export.engines.stage import engine_stage, with_tile_memory
from ltx2rt_export.engines.trace_jobs import trace_ahead
from ltx2rt_export.exchange import exchange
from ltx2rt_export.fuse_loras import fuse_loras
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.manifest_entries import SourceTable, entry_of, with_unmasked
from ltx2rt_export.quantize import component_precision
from ltx2rt_export.quantize.overlay import Overlays
from ltx2rt_export.quantize.prepare import attach_overlays, prepare
from ltx2rt_export.quantize.range_check import check_float16
from ltx2rt_export.resume import KEY_FILE, OLD, open_work, prune, restore_old, weights_key

#: the components of the text encoder
TEXT_PARTS = frozenset((*TEXT_STACK.components, *WRITING_STACK.components))


def check_target(output: Path, *, force: bool) -> None:
    """Refuse a target that exists (without `force`) or whose folder cannot be written.

    Raises:
        OptionError: says what is in the way.
    """
    parent = output.absolute().parent
    if not parent.is_dir():
        raise OptionError(
            f"cannot build {output}: the folder {parent} does not exist; create it first."
        )
    if not os.access(parent, os.W_OK):
        raise OptionError(f"cannot build {output}: the folder {parent} is not writable.")
    if output.exists():
        is_bundle = (output / "manifest.json").exists() or (
            output.is_dir() and not any(output.iterdir())
        )
        if not is_bundle:
            raise OptionError(
                f"cannot build {output}: it exists and is not a bundle; choose another name."
            )
        if not force:
            raise OptionError(f"{output} exists; pass --force to replace it.")


def _check_inputs_survive(inputs: BuildInputs, output: Path) -> None:
    """Refuse to replace the very bundle that holds the input files."""
    target = Path(os.path.realpath(output))
    named = [getattr(inputs, f.name) for f in dataclasses.fields(inputs)]
    places = [p for p in named if isinstance(p, str)]
    places += [*inputs.audio_parts, *(x.path for x in inputs.loras)]
    inside = [p for p in places if _is_inside(p, target)]
    if inside:
        raise OptionError(
            f"cannot replace {output}: it holds {inside[0]}, which this build reads; "
            "choose another name."
        )


def _is_inside(path: str, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(folder)


def open_inputs(inputs: BuildInputs, components: Collection[str] = ()) -> ModelFiles:
    """Open the files that `ltx2rt build` was given.

    Args:
        components: those that are wanted, empty for all: without any of the text encoder's, its
            files are not needed.
    """
    names = [f.name for f in dataclasses.fields(BuildInputs) if f.name != "loras"]
    given = {n: v for n in names if (v := getattr(inputs, n)) is not None}
    of_text = not components or not TEXT_PARTS.isdisjoint(components)
    need = [role for role in REQUIRED if of_text or role not in TEXT_ROLES]
    return open_model(**given, need=need)


def inputs_in(inputs: BuildInputs, folder: Path, weights_dir: Path | None = None) -> BuildInputs:
    """The inputs of a bundle in `folder` where they are now (see `bundle.find_moved`)."""

    def now(path: str) -> str:
        return str(find_moved(folder / path, weights_dir))

    paths = {
        f.name: now(v)
        for f in dataclasses.fields(BuildInputs)
        if isinstance(v := getattr(inputs, f.name), str)
    }
    loras = tuple(dataclasses.replace(x, path=now(x.path)) for x in inputs.loras)
    parts = tuple(map(now, inputs.audio_parts))
    return dataclasses.replace(inputs, loras=loras, audio_parts=parts, **paths)


def make_components(files: ModelFiles, loras: Sequence[Lora], folder: Path) -> list[Component]:
    """Every component that these files make, with its module; LoRAs fused into an overlay in
    `folder`.

    Raises:
        CheckpointError, UnsupportedError: the files do not fit; found before anything is written.
    """
    components = traced_components(files)
    return fuse_loras(components, files, loras, folder) if loras else components


def _check_numbers(components: Sequence[Component]) -> None:
    """Refuse weights that are no floats and have no encoding: no engine could take them.

    Raises:
        CheckpointError: lists some of them.
    """
    wrong = [
        f"{entry.name} in {entry.path} has dtype {entry.dtype}"
        for component in components
        for layer in component.layers or (component.weights,)
        for entry in layer.values()
        if entry.encoding is None and not entry.dtype.startswith(("float", "bfloat"))
    ]
    if wrong:
        raise CheckpointError("weights have to be floats", [*dict.fromkeys(wrong)][:20])


def build_bundle(
    files: ModelFiles,
    inputs: BuildInputs,
    output: Path,
    config: BuildConfig,
    job: Job | None = None,
) -> Manifest:
    """Build a bundle at `output` and return its manifest.

    Args:
        files: the model's files, opened.
        inputs: the same files as the user named them, recorded for rebuilding.
        job: gets one step per component.

    Raises:
        CheckpointError, UnsupportedError: the files do not fit; nothing is written.
        OptionError: the target cannot be used.
    """
    job = job or Job()
    check_target(output, force=config.force)
    _check_inputs_survive(inputs, output)
    problems = lora_problems(inputs.loras)
    named = [files.checkpoint, *([files.gemma.path] if files.gemma else [])]
    if config.copy_weights and any(p.suffix.lower() == ".gguf" for p in named):
        problems = [*problems, "copy_weights does not take GGUF files, whose weights are written "
                    "into the bundle in any case: leave it out"]  # fmt: skip
    if problems:
        raise OptionError("cannot build", problems)
    with build_lock(output):
        if restore_old(output):
            check_target(output, force=config.force)
        key = weights_key(files, inputs, config)
        work = open_work(output.absolute().parent, output.name, key)
        try:
            manifest = _fill(work, files, inputs, config, job)
            (work / KEY_FILE).unlink()
            work.chmod(0o755)
            _put_in_place(work, output)
        except BaseException as error:
            _leave(work, error)
            raise
    return manifest


def _leave(work: Path, error: BaseException) -> None:
    """Keep the weight files of a build that failed or was interrupted; without any, nothing."""
    if (work / KEY_FILE).exists() and (count := prune(work)):
        error.add_note(
            f"{count} finished weight file{'s' * (count > 1)} are kept in {work}: repeat the "
            "command to go on from there, or remove that folder."
        )
    else:
        shutil.rmtree(work, ignore_errors=True)


def _put_in_place(work: Path, output: Path) -> None:
    """Give the finished folder its name; an old bundle goes only when the new one is in place."""
    if not output.exists():
        work.replace(output)
        return
    target = Path(os.path.realpath(output))
    if exchange(work, target):
        shutil.rmtree(work)
        return
    old = target.with_name(f"{work.name}{OLD}")
    target.replace(old)
    try:
        work.replace(target)
    except BaseException:
        old.replace(target)
        raise
    shutil.rmtree(old)


def _fill(
    work: Path,
    files: ModelFiles,
    inputs: BuildInputs,
    config: BuildConfig,
    job: Job,
) -> Manifest:
    tokenizer = b""
    if files.gemma is not None:
        tokenizer = files.gemma.read_asset("tokenizer.json") or b""
        if not tokenizer:
            raise CheckpointError(
                "the text encoder has no tokenizer.json; give the whole Gemma folder."
            )
        Tokenizer(tokenizer, "the text encoder's tokenizer.json")  # before hours of work
    components = components_of(files)
    _check_numbers(components)
    components = with_tile_memory(config, components)
    options = {c.name: c.options for c in components}
    info = model_info(files, options)
    if any(names_distillation(Path(lora.path).name) for lora in inputs.loras):
        info = dataclasses.replace(info, is_distilled=True)
    components = chosen_components(components, config.components)
    engines = engine_stage(config, info, options)
    host = {c.name: engines.dtype(c.name, config) for c in components}
    dtypes = {n: dtype or PRECISIONS[config.asked(n)].dtype for n, dtype in host.items()}
    components = decode_gguf(components, work / "weights", dtypes, resume=True)
    if inputs.loras:  # last: it writes every tensor that they change
        components = fuse_loras(components, files, inputs.loras, work / "weights", resume=True)
    graph_cache = engines.graphs(files)
    if config.jobs > 1:
        trace_ahead(components, _traced(components, config, host), inputs, graph_cache,
                    engines.cache_dir, config.jobs, job)  # fmt: skip
    (work / "graphs").mkdir()
    (work / "text").mkdir()
    table = SourceTable(work)
    graphs: list[ExportedGraph] = []
    exported: list[ExportedGraph] = []  # without our operators, which hide values from a check
    entries: dict[str, ComponentEntry] = {}
    overlays: dict[str, Overlays] = {}
    unmasked: dict[str, ExportedGraph] = {}
    job.report("export", 0, len(components))
    for i, component in enumerate(components):
        for part in prepare(
            component,
            config.asked(component.name),
            work / "weights",
            job,
            dtype=host[component.name],
            plain_layers=config.plain_layers,
            lora_inputs=config.lora_inputs,
            export=graph_cache.export,
            resume=True,
        ):
            exported.append(part.graph)
            graph = engines.finish(part.graph, part.precision)
            name = graph.component.name
            data = graph.model.SerializeToString(deterministic=True)
            (work / f"graphs/{name}.onnx").write_bytes(data)
            graphs.append(graph)
            entries[name] = entry_of(part, graph, hashlib.sha256(data).hexdigest(), table)
            if (without := engines.unmasked(part.graph, part.precision)) is not None:
                entries[name] = with_unmasked(entries[name], without, work)
                unmasked[name] = without
            overlays[name] = part.overlays
        job.report("export", i + 1, len(components), component.name)
    if PRECISIONS[config.precision].dtype == "float16":
        job.report("range check", 0, 1)
        check_float16([graph for graph in exported if graph.dtype == "float16"])
        job.report("range check", 1, 1)
    if tokenizer:
        (work / "text" / "tokenizer.json").write_bytes(tokenizer)
    sources = table.sources
    if config.copy_weights:
        entries, sources, inputs = copy_weights(work, entries, sources, files, inputs, job)
    entries, sources = attach_overlays(entries, sources, overlays, work)
    entries = engines.add(graphs, unmasked, entries, sources, work, job)
    beside = engines.add_device_graphs(graphs, work, config.precision, job)
    manifest = Manifest(
        schema=SCHEMA,
        bundle_id="",
        created_by=f"ltx2rt {__version__}",
        backend=config.backend,
        precision=config.precision,
        model=info,
        sources=tuple(sources),
        components=entries,
        tokenizer="text/tokenizer.json" if tokenizer else "",
        tokenizer_sha256=hashlib.sha256(tokenizer).hexdigest() if tokenizer else "",
        build=inputs,
        build_flags=config.flags(),
        device_graphs=beside,
    )
    manifest = dataclasses.replace(manifest, bundle_id=bundle_id(manifest))
    write_manifest(manifest, work)
    return manifest


def _traced(
    components: Sequence[Component], config: BuildConfig, host: Mapping[str, str | None]
) -> dict[str, str]:
    """Component -> the dtype that `prepare` has its graph exported in."""
    asked = {c.name: component_precision(c.name, config.asked(c.name)) for c in components}
    return {name: host[name] or PRECISIONS[chosen].dtype for name, chosen in asked.items()}


def chosen_components(components: list[Component], names: Sequence[str]) -> list[Component]:
    """Those asked for; all if none are named.

    Raises:
        OptionError: names that this model does not have.
    """
    known = [c.name for c in components]
    if unknown := sorted(set(names) - set(known)):
        raise OptionError(
            f"components {', '.join(unknown)} are not in this model; it has {', '.join(known)}."
        )
    return [c for c in components if not names or c.name in names]


def model_info(files: ModelFiles, options: Mapping[str, Mapping[str, Any]]) -> ModelInfo:
    """Facts about the model that pipelines need, from its version and its components."""
    version = files.version
    video, audio = options[VIDEO_ENCODER], options[AUDIO_DECODER]
    factors = video["scale_factors"]
    return ModelInfo(
        generation=version.generation,
        version=version.text,
        num_inference_steps=version.num_inference_steps,
        stg_block=version.stg_block,
        image_crf=version.image_crf,
        distilled_sampler=version.distilled_sampler,
        is_distilled=version.is_distilled,
        time_scale=factors["time"],
        spatial_scale=factors["height"],
        latent_channels=video["latent_channels"],
        audio_channels=audio["latent_channels"],
        audio_bins=audio["latent_bins"],
        audio_sampling_rate=options[VOCODER]["output_sampling_rate"],
    )
