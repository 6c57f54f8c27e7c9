"""The components of a model from shipped graphs, where there are any for its configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ltx2rt.names import AUDIO_DECODER, AUDIO_ENCODER, VOCODER
from ltx2rt.weights.safetensors import TensorEntry
from ltx2rt_export.checkpoint import ModelFiles
from ltx2rt_export.component import Component
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.modules.audio_config import unused_names
from ltx2rt_export.modules.gemma_config import gemma_root
from ltx2rt_export.modules.vocoder_config import UNUSED_TENSORS
from ltx2rt_export.shipped.facts import facts_of
from ltx2rt_export.shipped.file import Shipped, path_of, read_shipped
from ltx2rt_export.sources import source_digests

#: components whose files may hold nothing that they do not compute with -> role, prefix
WHOLE = {
    AUDIO_ENCODER: ("audio_vae", "encoder."),
    AUDIO_DECODER: ("audio_vae", "decoder."),
    VOCODER: ("vocoder", ""),
}


def shipped_component(name: str, files: ModelFiles) -> Component | None:
    """The component `name` of these files with its graphs; None where none were shipped for its
    configuration, where the exporter has changed since, or where the files call its weights
    otherwise.

    Raises:
        CheckpointError, UnsupportedError: the files do not fit.
    """
    facts = facts_of(name, files)
    path = None if facts is None else path_of(name, facts)
    if path is None or not path.exists():
        return None
    shipped = read_shipped(path)
    about = shipped.about
    layers = None if is_stale(about.sources) else _layers(shipped, files)
    if layers is None or _has_more(name, files, layers[0]):
        return None
    return Component(
        name=name,
        module=None,
        inputs=about.inputs,
        outputs=about.outputs,
        weights=layers[0],
        trace={},
        layers=layers if about.repeated else (),
        weight_binding=about.weight_binding,
        options=about.options,
        shipped=shipped,
    )


def shipped_graph(component: Component, dtype: str) -> ExportedGraph | None:
    """The component's graph in a dtype; None for a component or a dtype that was not shipped."""
    if component.shipped is None or dtype not in component.shipped.about.graphs:
        return None
    model = component.shipped.model(dtype)
    kept = component.shipped.about.graphs[dtype]
    return ExportedGraph(
        dataclasses.replace(component, inputs=kept.inputs, outputs=kept.outputs),
        model,
        kept.weights,
        frozenset(kept.transposed),
        dtype,
    )


def is_stale(sources: Mapping[str, str]) -> bool:
    """Whether the exporter is another than the one that made a file."""
    return source_digests(sources) != dict(sources)


def _layers(shipped: Shipped, files: ModelFiles) -> tuple[dict[str, TensorEntry], ...] | None:
    """Every layer's weights in these files; None if one is not there or has another shape."""
    about = shipped.about
    tensors = {
        role: tensors_of(files, role) for layer in about.layers for role, _ in layer.values()
    }
    found = []
    for layer in about.layers:
        entries = {name: tensors[role].get(place) for name, (role, place) in layer.items()}
        if any(e is None or e.shape != about.shapes[n] for n, e in entries.items()):
            return None
        found.append({n: e for n, e in entries.items() if e is not None})
    return tuple(found)


def tensors_of(files: ModelFiles, role: str) -> Mapping[str, TensorEntry]:
    """Tensors of a role; Gemma's below the place where its language model lies."""
    tensors = files.tensors(role)
    if role != "gemma":
        return tensors
    root = gemma_root(tensors)
    return {n.removeprefix(root): e for n, e in tensors.items() if n.startswith(root)}


def _has_more(name: str, files: ModelFiles, known: Mapping[str, TensorEntry]) -> bool:
    if name not in WHOLE:
        return False
    role, prefix = WHOLE[name]
    return bool(unused_names(known, files.tensors(role), prefix, UNUSED_TENSORS))
