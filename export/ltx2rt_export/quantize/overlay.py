"""Write a component's quantised weights into the bundle: a file a layer, one tensor in memory at a
time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ltx2rt.engine import Array
from ltx2rt.errors import InternalError
from ltx2rt.progress import Job
from ltx2rt.weights.codecs.engine_formats import EngineFormat
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile, TensorEntry, convert
from ltx2rt.weights.safetensors_writer import Stream, data_bytes, require_space, write_safetensors
from ltx2rt_export.component import Component
from ltx2rt_export.quantize.carry import carried
from ltx2rt_export.quantize.layer_choice import QuantPlan, has_input_scale

Overlays = tuple[dict[str, TensorEntry], ...]


def write_overlays(
    component: Component, plan: QuantPlan, folder: Path, job: Job, *, resume: bool = False
) -> Overlays:
    """Quantise what `plan` names into the files `folder/NN.safetensors`, one a layer.

    Codes and scales of a file that holds them in the engine's own format are carried over bit by
    bit; all else is decoded, if it is quantised, and encoded.

    Args:
        resume: layers whose file is there are done: the folder is of a build that was stopped.

    Returns:
        for each layer, weight input of the graph -> where it lies; empty for plain layers.

    Raises:
        CheckpointError: a tensor cannot be decoded, or the disk is full.
    """
    every = component.layers or (component.weights,)
    paths = {
        layer: folder / f"{layer:02d}.safetensors"
        for layer in range(len(every))
        if layer not in plan.plain_layers
    }
    files = MappedFiles()
    layers = {
        layer: _layer(files, every[layer], plan)
        for layer, path in paths.items()
        if not (resume and path.exists())
    }
    metadata = {"precision": plan.rewrite.precision.name, "exact": str(plan.exact).lower()}
    folder.mkdir(parents=True, exist_ok=True)
    require_space(folder, sum(data_bytes(streams) for streams in layers.values()))
    kept = f"{len(paths) - len(layers)} layers were done" if len(layers) < len(paths) else ""
    job.report("quantize", 0, len(layers), kept)
    for done, (layer, streams) in enumerate(layers.items()):
        write_safetensors(paths[layer], streams, metadata, keep_order=True)
        job.report("quantize", done + 1, len(layers), kept)
    files.close()
    return tuple(
        dict(SafetensorsFile(paths[layer])) if layer in paths else {} for layer in range(len(every))
    )


def _layer(
    files: MappedFiles, weights: Mapping[str, TensorEntry], plan: QuantPlan
) -> dict[str, Stream]:
    """The quantised weights of one layer, by name of the graph's input."""
    return {
        f"{module}.{part}": stream
        for module in plan.modules
        for part, stream in _streams(
            files, weights[f"{module}.weight"], plan.rewrite.format, static=plan.rewrite.static
        ).items()
    }


def quantize_weight(files: MappedFiles, entry: TensorEntry, kind: EngineFormat) -> dict[str, Array]:
    """The parts of one weight in an engine's format."""
    return carried(files, entry, kind) or _encoded(files, entry, kind)


def _encoded(files: MappedFiles, entry: TensorEntry, kind: EngineFormat) -> dict[str, Array]:
    values, dtype = files.values(entry)
    return kind.encode(convert(values, dtype, "float32", entry.name))


def _streams(
    files: MappedFiles,
    entry: TensorEntry,
    kind: EngineFormat,
    *,
    static: bool,
) -> dict[str, Stream]:
    """The parts of a weight as streams; it is quantised when its first part is written, and
    forgotten after its last.
    """
    shapes = kind.shapes(*entry.shape)
    made: dict[str, Array] = {}

    def part(name: str) -> Iterator[Array]:
        if not made:
            made.update(quantize_weight(files, entry, kind))
        yield made[name]
        if name == list(shapes)[-1]:
            made.clear()

    streams: dict[str, Stream] = {
        name: (kind.dtypes[name], shape, part(name)) for name, shape in shapes.items()
    }
    if static:
        streams["input_scale"] = ("float32", (1,), _input_scale(files, entry))
    return streams


def _input_scale(files: MappedFiles, entry: TensorEntry) -> Iterator[Array]:
    if entry.encoding is None or not has_input_scale(entry):
        raise InternalError(f"{entry.name} has no activation scale")
    yield files.load(entry.encoding.parts["input_scale"], "float32").reshape(1)


def overlay_weights(plan: QuantPlan) -> Mapping[str, str]:
    """Weight -> engine format, as manifests record it."""
    return {f"{module}.weight": plan.rewrite.format.name for module in plan.modules}
